"""A training that learns val too: how long, by which thresholds, and what is no longer said of it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from psy_agents_noaug import evaluate, load
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.config.series import load_series_config
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.errors import CheckpointError, ConfigError, DataError
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.overview import run_report
from psy_agents_noaug.run.series.plan import open_series, plan_sha256
from psy_agents_noaug.run.sharing import shareable
from psy_agents_noaug.run.train import train
from psy_agents_noaug.training.checkpoint import load_checkpoint, weights_sha256
from psy_agents_noaug.training.refit import RefitDecisions

CRITERIA = [criterion.criterion_id for criterion in MAJOR_DEPRESSIVE_EPISODE]
RULE = {
    "global_threshold": 0.4,
    "thresholds": {name: 0.4 + number / 100 for number, name in enumerate(CRITERIA)},
    "calibration": {"slope": 1.0, "intercepts": dict.fromkeys(CRITERIA, 0.0)},
    "prevalence": dict.fromkeys(CRITERIA, 0.1),
}
ORIGIN = {"plan_sha256": "ab" * 32, "n_folds": 2, "best_epochs": [1.0, 2.0], "epochs": 1.5}
DECISIONS = RefitDecisions(epochs=1.5, rule=RULE, lines=[], origin=ORIGIN)


def refit_config(overrides: list[str], *more: str) -> TrainConfig:
    config = load_train_config("criteria", [*overrides, "training.epochs=4", *more])
    return config.model_copy(update={"refit": "train+val"})


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refit") / "outputs"


@pytest.fixture(scope="module")
def refitted(outputs: Path, overrides_for: Callable[..., list[str]]) -> RunDirectory:
    """A run of 1.5 of 4 epochs that has learned val, with made-up thresholds."""
    config = refit_config(overrides_for(outputs), "run_name=final")
    return RunDirectory(train(config, refit=DECISIONS).directory)


def rows_of(directory: RunDirectory) -> list[dict[str, str]]:
    with directory.history.open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_learns_the_posts_of_val_for_the_given_epochs_on_the_schedule_of_all(
    refitted: RunDirectory,
):
    rows, manifest = rows_of(refitted), refitted.read_manifest()
    assert [int(row["step"]) for row in rows] == [7, 10]  # of seven updates an epoch
    # The linear schedule warms up over a tenth and ends at 0 after four epochs.
    rate = 0.001 * (28 - 10) / (28 - 2)
    assert float(rows[-1]["train/learning_rate"]) == pytest.approx(rate)
    assert manifest["status"] == "finished"
    assert manifest["refit"] == ORIGIN
    assert manifest["best_step"] is None
    sizes = json.loads(refitted.alignment.read_text())["splits"]
    assert {name: own["posts"] for name, own in sizes.items()} == {"train": 22, "test": 8}


def test_no_figure_of_val_is_written_and_the_last_weights_and_the_given_rule_are_kept(
    refitted: RunDirectory,
):
    best, last = map(load_checkpoint, (refitted.best_checkpoint, refitted.last_checkpoint))
    assert weights_sha256(best.weights) == weights_sha256(last.weights)
    assert best.decision_rule == RULE
    assert (best.metrics, last.metrics) == ({}, {})
    assert best.metadata["refit"] == ORIGIN
    assert not [key for row in rows_of(refitted) for key in row if key.startswith("val/")]
    assert not refitted.metrics.exists()


def test_val_is_refused_before_it_is_looked_at_and_test_is_judged_by_the_given_rule(
    refitted: RunDirectory,
):
    with pytest.raises(CheckpointError, match="has learned val"):
        evaluate(refitted.path, split="val", verbose=False)
    assert refitted.read_evaluations() == []
    result = evaluate(refitted.path, verbose=False)
    assert result.directory.samefile(refitted.path)
    assert "fitted on out-of-fold predictions" in result.summary
    assert "plan abababababab" in result.summary
    for number, name in enumerate(CRITERIA):
        key = f"test/per_criterion/{name}/threshold"
        assert result.metrics[key] == pytest.approx(0.4 + number / 100)
    assert "test/baseline_tfidf_lr/f1_macro" in result.metrics
    assert refitted.n_evaluations("test") == 1
    # Another division would judge posts of val, which the checkpoint remembers.
    with pytest.raises(CheckpointError, match="has seen"):
        evaluate(refitted.path, {"data.splits": None, "data.split_seed": 3}, verbose=False)


def test_what_prints_a_run_says_where_its_thresholds_come_from(refitted: RunDirectory):
    told = run_report(refitted.path, as_json=False)
    assert "cross-validation, plan abababababab" in told
    assert "undefined in every evaluation" not in told
    assert load(refitted.path, verbose=False).predict(["I am sad."])["threshold"][5] == 0.45


def test_a_shared_checkpoint_says_that_it_is_a_refit_without_what_can_be_tried_out(
    refitted: RunDirectory,
):
    shared = shareable(load_checkpoint(refitted.best_checkpoint))
    assert shared.metadata["refit"] == {k: v for k, v in ORIGIN.items() if k != "plan_sha256"}


def test_a_run_that_was_begun_by_another_cross_validation_is_refused(
    refitted: RunDirectory, outputs: Path, overrides_for: Callable[..., list[str]]
):
    config = refit_config(overrides_for(outputs), "run_name=final", "resume=auto")
    other = RefitDecisions(2.0, RULE, [], {**ORIGIN, "epochs": 2.0})
    with pytest.raises(CheckpointError, match="other decisions"):
        train(config, refit=other)


def test_val_of_other_data_is_no_part_of_train(overrides: list[str]):
    config = refit_config(overrides)
    own = prepare_data(config)
    assert "val" not in own.examples
    assert own.splits.val
    assert own.fingerprints() == prepare_data(refit_config(overrides)).fingerprints()
    assert "val" in prepare_data(config, trained_on={"corpus": "another"}).examples
    # A checkpoint that was made to be shared does not say how the corpus was divided.
    shared = {"corpus": own.corpus.fingerprint}
    assert "val" not in prepare_data(config, trained_on=shared).examples


def plan(overrides: list[str], *more: str) -> Any:
    settings, config = load_series_config("train", "criteria", [*overrides, *more])
    return open_series("refit", settings, config.model_copy(update={"refit": None}))


@pytest.fixture
def refit_overrides(overrides: list[str]) -> list[str]:
    return [*overrides, "refit=train+val", "folds=2", "data.split_fractions=[0.5,0.25,0.25]"]


def test_no_post_of_test_is_in_any_fold(refit_overrides: list[str], tiny_corpus: Path):
    series = plan(refit_overrides)
    division = json.loads((tiny_corpus / "splits.json").read_text())
    assert sorted(p for fold in series.folds.members for p in fold) == sorted(
        division["train"] + division["val"]
    )
    for run in series.runs:
        data = prepare_data(run.config)
        judged = {e.post_id for examples in data.examples.values() for e in examples}
        assert judged.isdisjoint(division["test"])


def test_a_file_of_folds_with_a_post_of_test_is_refused(
    refit_overrides: list[str], tiny_corpus: Path, tmp_path: Path
):
    division = json.loads((tiny_corpus / "splits.json").read_text())
    folds = {"format": 1, "folds": [division["train"], [*division["val"], division["test"][0]]]}
    file = tmp_path / "folds.json"
    file.write_text(json.dumps(folds))
    with pytest.raises(DataError, match=r"fold 2.*none of test"):
        plan(refit_overrides, f"folds={file}")


def test_the_plan_has_one_hash_in_every_place_and_another_for_other_settings(
    refit_overrides: list[str], tmp_path: Path
):
    first = plan_sha256(plan(refit_overrides))
    assert plan_sha256(plan(refit_overrides, f"output_dir={tmp_path}/other")) == first
    assert plan_sha256(plan(refit_overrides, "run_name=b", "training.epochs=3")) != first


@pytest.mark.parametrize(
    ("verb", "settings", "told"),
    [
        ("cv", ["refit=train+val"], "`refit`: `psy-agents train`"),
        ("train", ["refit=train+val", "seeds=[1,2]"], "`seeds`: there is one final model"),
        ("train", ["refit=val"], "refit"),
        ("train", ["folds=3"], r"refit=train\+val too"),
    ],
)
def test_settings_that_do_not_go_with_a_refit_are_refused(
    verb: Any, settings: list[str], told: str
):
    with pytest.raises(ConfigError, match=told):
        load_series_config(verb, "criteria", settings)


def test_a_search_has_no_refit():
    with pytest.raises(ConfigError, match="leave it out"):
        load_train_config("criteria", ["refit=train+val"])
