"""A refit from its command to the report: folds, decisions, the final model, kills."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from kills import finish_with_kills

from psy_agents_noaug import evaluate, train
from psy_agents_noaug.cli import main
from psy_agents_noaug.run.ensemble import fitted_rule, load_members
from psy_agents_noaug.run.scoring import Scorer
from psy_agents_noaug.training.checkpoint import load_checkpoint, weights_sha256

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REFIT = (
    "import sys; from psy_agents_noaug.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"
)


@pytest.fixture(scope="module")
def settings_for(overrides_for: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Return a function from output_dir and task to the settings of a tiny refit."""

    def settings(output_dir: Path, task: str = "criteria", epochs: int = 4) -> list[str]:
        own = [o for o in overrides_for(output_dir, task) if not o.startswith("training.epochs")]
        own += ["refit=train+val", "folds=2", "run_name=x", "data.split_fractions=[0.5,0.25,0.25]"]
        return [f"task={task}", *own, f"training.epochs={epochs}"]

    return settings


@pytest.fixture(scope="module")
def refitted(
    settings_for: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a refit of the task criteria."""
    out = tmp_path_factory.mktemp("refit")
    result = train(settings_for(out), verbose=False)
    assert result.directory == out / "criteria/refit-x/final"
    return result.directory.parent


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_thresholds_are_those_of_the_out_of_fold_predictions(refitted: Path, tiny_corpus: Path):
    """Every post of train and val is predicted once, by a model that had not seen it; none of test."""
    lines = lines_of(refitted / "final/predictions/out_of_fold.jsonl")
    division = json.loads((tiny_corpus / "splits.json").read_text())
    posts = [line["post_id"] for line in lines if line["criterion_id"] == "A.1"]
    assert sorted(posts) == sorted(division["train"] + division["val"])
    for line in lines:
        seen = json.loads((refitted / f"fold-{line['fold']}-seed-42/splits.json").read_text())
        assert line["post_id"] in seen["test"]
    (member,) = load_members([refitted / "final"])
    rule = fitted_rule([member], Scorer(refitted / "final")._evaluation)
    assert rule == member.checkpoint.decision_rule
    origin = member.checkpoint.metadata["refit"]
    assert origin["epochs"] == np.median(origin["best_epochs"])
    assert (refitted.parents[1] / "checkpoints").resolve() == refitted / "final/checkpoints"


def test_the_same_command_again_trains_nothing(
    refitted: Path, settings_for: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("psy_agents_noaug.run.series.work.train", pytest.fail)
    monkeypatch.setattr("psy_agents_noaug.run.series.refit.train", pytest.fail)
    again = train(settings_for(refitted.parents[1]), verbose=False)
    assert again.directory == refitted / "final"
    assert "cv/f1_macro" in again.metrics
    assert not [key for key in again.metrics if key.startswith("val/")]


def test_a_refit_is_evaluated_reported_predicted_compared_and_exported(
    refitted: Path,
    tmp_path: Path,
    overrides_for: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    own_logging: None,
):
    run = tmp_path / "outputs/criteria/refit-x/final"
    shutil.copytree(refitted.parents[1], tmp_path / "outputs", symlinks=True)

    def told(*words: str, code: int = 0) -> str:
        assert main(list(words)) == code, words
        found = capsys.readouterr()
        return " ".join((found.out if code == 0 else found.err).split())

    assert "has no figures yet" in told("report", str(run), code=2)
    assert "has learned val" in told("eval", f"checkpoint={run}", "split=val", code=2)
    described = "was fitted on out-of-fold predictions of train and val"
    assert described in told("eval", f"checkpoint={run}", "report=true")
    page = (run / "report.html").read_text()
    assert described in page
    assert "fitted on val" not in page
    assert described in told("info", str(run))
    posts = tmp_path / "posts.csv"
    posts.write_text("post_id,text\n1,I wake at three every night.\n")
    output = tmp_path / "predictions.jsonl"
    told("predict", f"checkpoint={run}", f"data.posts={posts}", f"output={output}")
    rule = load_checkpoint(run / "checkpoints/best_checkpoint.pt").decision_rule
    for line in lines_of(output):
        assert line["threshold"] == rule["thresholds"][line["criterion_id"]]
    other = train([*overrides_for(tmp_path / "outputs"), "run_name=plain"], verbose=False)
    evaluate(other, verbose=False)
    result = told("compare", str(run), str(other.directory), f"output={tmp_path}/comparison")
    assert described in result
    assert "has learned val" in told("compare", str(run), str(other.directory), "split=val", code=2)
    told("export", f"checkpoint={run}", "format=bundle", f"output={tmp_path}/bundle")
    card = (tmp_path / "bundle/README.md").read_text()
    assert described in card
    assert "On val" not in card
    assert "validation split" not in card
    plan = json.loads((run / "manifest.json").read_text())["refit"]["plan_sha256"]
    everything = b"".join(p.read_bytes() for p in (tmp_path / "bundle").rglob("*") if p.is_file())
    assert plan[:12].encode() not in everything
    assert "has learned val" in told(
        "eval",
        f"checkpoint={tmp_path}/bundle",
        f"data.dir={_folder(run)}",
        "split=val",
        code=2,
    )


def _folder(run: Path) -> str:
    return str(load_checkpoint(run / "checkpoints/best_checkpoint.pt").config["data"]["dir"])


@pytest.fixture
def with_other_labels(tiny_corpus: Path, tmp_path: Path) -> Callable[[str, set[str]], Path]:
    """Return a function from a name and posts to a copy of the corpus where they meet more criteria."""

    def copied(name: str, posts: set[str]) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_corpus, folder)
        path = folder / "redsm5_annotations.csv"
        table = pd.read_csv(path)
        turned = table["post_id"].isin(posts) & (table["status"] == 0)
        assert turned.any() or not posts
        table.loc[turned, "status"] = 1
        table.to_csv(path, index=False)
        return folder

    return copied


def test_a_threshold_cannot_see_the_posts_that_it_judges(
    refitted: Path,
    settings_for: Callable[..., list[str]],
    with_other_labels: Callable[[str, set[str]], Path],
    tmp_path: Path,
):
    """With other labels of fold 1, its own model and thresholds are the same to the bit.

    Those of fold 2 are not. With other labels of test all are, the final ones too.
    """
    content = json.loads((refitted / "folds.json").read_text())
    folds = tmp_path / "folds.json"
    folds.write_text(json.dumps({key: content[key] for key in ("format", "folds")}))
    division = json.loads((with_other_labels("same", set()) / "splits.json").read_text())
    found = {}
    cases = {"same": set(), "fold 1": set(content["folds"][0]), "test": set(division["test"])}
    for name, posts in cases.items():
        data = tmp_path / "same" if name == "same" else with_other_labels(name, posts)
        out = tmp_path / "outputs" / name
        settings = [*settings_for(out), f"data.dir={data}", f"folds={folds}"]
        folder = train(settings, verbose=False).directory.parent
        found[name] = {
            run: load_checkpoint(folder / run / "checkpoints/best_checkpoint.pt")
            for run in ("fold-1-seed-42", "fold-2-seed-42", "final")
        }

    def same(name: str, run: str) -> bool:
        one, other = found["same"][run], found[name][run]
        weights = weights_sha256(one.weights) == weights_sha256(other.weights)
        return weights and one.decision_rule == other.decision_rule

    assert same("fold 1", "fold-1-seed-42")
    assert not same("fold 1", "fold-2-seed-42")
    assert not same("fold 1", "final")
    assert all(same("test", run) for run in found["test"])


@pytest.mark.parametrize(
    ("task", "more", "rule"),
    [
        ("evidence", (), "null_score_diff_threshold"),
        ("joint", ("data.held_out_criteria=[A.8]",), "thresholds"),
        ("joint", ("model.architecture=label_attention",), "thresholds"),
    ],
)
def test_the_other_tasks_and_label_attention_refit_too(
    settings_for: Callable[..., list[str]], tmp_path: Path, task: str, more: Any, rule: str
):
    result = train([*settings_for(tmp_path, task, epochs=2), *more], verbose=False)
    checkpoint = load_checkpoint(result.directory / "checkpoints/best_checkpoint.pt")
    assert rule in checkpoint.decision_rule
    metrics = evaluate(result, verbose=False).metrics
    for system in ("", "baseline_tfidf_lr/"):
        assert f"test/{system}evidence_iou_f1" in metrics
    if task == "joint":
        assert "test/baseline_tfidf_lr/f1_macro" in metrics


def test_a_final_model_that_was_removed_is_trained_again(
    settings_for: Callable[..., list[str]], tmp_path: Path
):
    settings = settings_for(tmp_path, epochs=2)
    result = train(settings, verbose=False)
    best = result.directory / "checkpoints/best_checkpoint.pt"
    before = weights_sha256(load_checkpoint(best).weights)
    best.unlink()
    train(settings, verbose=False)
    assert weights_sha256(load_checkpoint(best).weights) == before


@pytest.mark.faults(
    "`train refit=train+val` killed at random", "it ends as if undisturbed, to the bit"
)
def test_a_refit_that_is_killed_at_random_ends_as_an_undisturbed_one(
    start_script: Callable[..., Any], settings_for: Callable[..., list[str]], tmp_path: Path
):
    def start(name: str) -> Any:
        more = ["training.num_threads=1", "training.save_steps=2"]
        command = [*settings_for(tmp_path / name, epochs=8), *more]
        return start_script("train_criteria.py", *command, prelude=REFIT)

    began = time.monotonic()
    undisturbed = start("undisturbed").wait()
    assert undisturbed.returncode == 0, undisturbed.stderr
    finish_with_kills(lambda: start("killed"), seconds=time.monotonic() - began)
    one, other = (
        load_checkpoint(tmp_path / name / "criteria/refit-x/final/checkpoints/best_checkpoint.pt")
        for name in ("undisturbed", "killed")
    )
    assert weights_sha256(one.weights) == weights_sha256(other.weights)
    assert one.decision_rule == other.decision_rule
    assert one.metadata["refit"] == other.metadata["refit"]
