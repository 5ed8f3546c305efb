"""A criterion of `data.held_out_criteria` is not learned, and is judged on test beside a baseline."""

import csv
import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest

from psy_agents_noaug.config.schema import EvaluateConfig
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.examples import HELD_OUT
from psy_agents_noaug.errors import CheckpointError, DataError
from psy_agents_noaug.metrics.baselines import tfidf_similarities
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.evaluate import evaluate
from psy_agents_noaug.run.train import train
from psy_agents_noaug.training.checkpoint import load_checkpoint, save_checkpoint

ID = "A.8"
HELD = f"data.held_out_criteria=[{ID}]"


@pytest.fixture
def corpus_without(tiny_corpus, tmp_path):
    """The tiny corpus without the criterion: neither in the criteria nor in the annotations."""
    folder = shutil.copytree(tiny_corpus, tmp_path / "without")
    kept = [c for c in MAJOR_DEPRESSIVE_EPISODE if c.criterion_id != ID]
    (alias,) = {c.aliases[0] for c in MAJOR_DEPRESSIVE_EPISODE} - {c.aliases[0] for c in kept}
    with (folder / "criteria.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["criterion_id", "name", "text", "aliases"])
        writer.writerows([c.criterion_id, c.name, c.text, "|".join(c.aliases)] for c in kept)
    table = folder / "redsm5_annotations.csv"
    rows = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(row for row in rows if f",{alias}," not in row), encoding="utf-8")
    return folder


@pytest.fixture
def settings_without(corpus_without):
    return [f"data.dir={corpus_without}", "data.criteria=criteria.csv"]


def judged(directory, *, split="test", task="criteria", **explicit):
    chosen = EvaluateConfig(checkpoint=str(directory), split=split)
    return evaluate(chosen, task_name=task, explicit=explicit)


def lines(result, split="test"):
    path = result.directory / "predictions" / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("unit", ["post", "sentence"])
@pytest.mark.parametrize("sentences", ["all", "annotated"])
def test_train_val_and_test_have_the_pairs_of_a_corpus_without_the_criterion(
    make_config, settings_without, unit, sentences
):
    made = [f"data.unit={unit}", f"data.sentences={sentences}"]
    data = prepare_data(make_config(HELD, *made))
    without = prepare_data(make_config(*settings_without, *made))
    for split in ("train", "val", "test"):
        assert data.examples[split] == without.examples[split]
    assert (data.counts, data.warnings) == (without.counts, without.warnings)
    assert [c.criterion_id for c in data.held_out] == [ID]
    assert data.criteria == without.criteria
    whole = prepare_data(make_config(*made)).examples["test"]
    assert data.examples[HELD_OUT] == [e for e in whole if e.criterion_id == ID]
    assert HELD_OUT not in without.examples


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_name", "architecture"),
    [
        ("criteria", "cross_encoder"),
        ("evidence", "cross_encoder"),
        ("joint", "cross_encoder"),
        ("criteria", "label_attention"),
    ],
)
def test_headline_figures_are_to_the_bit_those_of_a_corpus_without_the_criterion(
    make_config, settings_without, weights_of, task_name
):
    one, other = train(make_config(HELD)), train(make_config(*settings_without))
    assert weights_of(one) == weights_of(other)
    assert one.metrics == other.metrics
    assert one.summary == other.summary
    tested, alone = (judged(run.directory, task=task_name) for run in (one, other))
    assert {k: v for k, v in tested.metrics.items() if "/held_out/" not in k} == alone.metrics
    assert tested.summary.startswith(f"{alone.summary}\n\nheld out of training")
    assert [line for line in lines(tested) if "held_out" not in line] == lines(alone)
    assert [line["criterion_id"] for line in lines(tested) if "held_out" in line] == [ID] * 8


def test_the_held_out_criterion_is_judged_by_what_was_fitted_without_it(make_config):
    run = train(make_config(HELD, "task.thresholds=per_criterion", "task.threshold_min_support=1"))
    tested = judged(run.directory)
    rule = load_checkpoint(run.directory / "checkpoints" / "best_checkpoint.pt").decision_rule
    assert ID not in {*rule["thresholds"], *rule["calibration"]["intercepts"]}
    assert len(set(rule["thresholds"].values())) > 1
    own = [line for line in lines(tested) if line.get("held_out")]
    for line in own:
        assert line["threshold"] == rule["global_threshold"]
        assert "calibrated_probability" not in line
    metrics = tested.metrics
    prefix = f"test/held_out/{ID}/"
    assert metrics[f"{prefix}threshold"] == rule["global_threshold"]
    assert (metrics[f"{prefix}n_pairs"], metrics[f"{prefix}n_positive"]) == (8, 1)
    (met,) = [line["probability"] for line in own if line["label"]]
    above = [met > line["probability"] for line in own if not line["label"]]
    assert metrics[f"{prefix}auroc"] == pytest.approx(np.mean(above))
    # A single post meets it, so that there is no interval.
    assert metrics[f"{prefix}auroc_ci_low"] is None
    assert metrics[f"{prefix}auroc_ci_low_undefined"].startswith("too few")


def test_the_baseline_is_the_similarity_of_the_criterions_text_and_the_posts(make_config):
    config = make_config(HELD)
    tested = judged(train(config).directory)
    data = prepare_data(config)
    pairs = data.examples[HELD_OUT]
    cosines = tfidf_similarities(
        train_texts=[example.text for example in data.examples["train"]],
        criterion_texts={c.criterion_id: c.text for c in data.corpus.criteria},
        texts=[example.text for example in pairs],
        criterion_ids=[ID] * len(pairs),
    )
    labels = np.asarray([example.label for example in pairs], dtype=bool)
    prefix = f"test/held_out/{ID}/baseline_tfidf_similarity/"
    (met,) = cosines[labels]
    assert tested.metrics[f"{prefix}auroc"] == (cosines[~labels] < met).mean() == 1.0
    gain = tested.metrics[f"test/held_out/{ID}/auroc"] - 1.0
    assert tested.metrics[f"{prefix}auroc_gain"] == pytest.approx(gain)
    assert f"{ID}: By AUROC the model is" in tested.summary
    assert "TF-IDF similarity" in tested.summary


@pytest.mark.parametrize("task_name", ["evidence", "joint"])
def test_the_evidence_of_a_held_out_criterion_has_figures_of_its_own(make_config, task_name):
    tested = judged(train(make_config(HELD)).directory, task=task_name)
    prefix = f"test/held_out/{ID}/"
    names = {k.removeprefix(prefix) for k in tested.metrics if k.startswith(prefix)}
    assert {"evidence_iou_f1", "evidence_iou_f1_ci_low", "n_answerable"} <= names
    assert tested.metrics[f"{prefix}n_answerable"] == 1
    # The sentence that is most similar to the criterion is, in this corpus, the criterion's text.
    assert tested.metrics[f"{prefix}baseline_tfidf_similarity/evidence_iou_recall"] == 1.0
    assert f"{prefix}baseline_tfidf_similarity/evidence_iou_f1_gain" in tested.metrics
    assert ("auroc" in names) is (task_name == "joint")
    assert f"{ID}: By IOU F1 the model is" in tested.summary


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_other_splits_say_nothing_of_it(make_config, split):
    run = train(make_config(HELD))
    result = judged(run.directory, split=split)
    assert "held out" not in result.summary
    assert not [key for key in result.metrics if "held_out" in key]
    assert ID not in {line["criterion_id"] for line in lines(result, split)}


def test_a_criterion_that_training_did_not_know_is_judged_with_the_same_figures(
    make_config, settings_without, tiny_corpus
):
    unaware, aware = train(make_config(*settings_without)), train(make_config(HELD))
    full = {"data.dir": str(tiny_corpus), "data.criteria": None, "data.held_out_criteria": [ID]}
    found, expected = judged(unaware.directory, **full).metrics, judged(aware.directory).metrics
    assert {k: v for k, v in found.items() if k in expected} == expected


def test_a_checkpoint_without_the_global_threshold_cannot_judge_it(make_config, tmp_path):
    run = train(make_config(HELD, "task.thresholds=per_criterion", "task.threshold_min_support=1"))
    original = load_checkpoint(run.directory / "checkpoints" / "best_checkpoint.pt")
    rule = {k: v for k, v in original.decision_rule.items() if k != "global_threshold"}
    save_checkpoint(tmp_path / "old.pt", replace(original, decision_rule=rule))
    with pytest.raises(CheckpointError, match="lacks global_threshold in its decision rule"):
        judged(tmp_path / "old.pt")


def test_what_is_held_out_stands_in_the_log_and_in_the_records(make_config, caplog):
    with caplog.at_level(logging.INFO):
        run = train(make_config(HELD))
    expected = "reported apart on test: A.8 (8 pairs of test, 1 met)."
    assert any(message.endswith(expected) for message in caplog.messages)
    alignment = json.loads((run.directory / "alignment.json").read_text())
    assert alignment["held_out_criteria"] == {ID: {"pairs": 8, "positives": 1}}
    manifest = json.loads((run.directory / "manifest.json").read_text())
    assert manifest["held_out_criteria"] == [ID]


def test_criteria_without_a_pair_on_test_are_warned_of(make_config, caplog):
    settings = ["data.held_out_criteria=[A.4]", "data.unannotated_pairs=drop"]
    tested = judged(train(make_config(*settings)).directory)
    assert "The held-out criteria have no figures: test has no pair of them" in caplog.text
    assert not [key for key in tested.metrics if "held_out" in key]


def test_ids_that_no_criterion_has_are_refused_with_all_other_faults(
    make_config, tiny_corpus, tmp_path
):
    folder = shutil.copytree(tiny_corpus, tmp_path / "corpus")
    table = folder / "redsm5_posts.csv"
    table.write_text(table.read_text(encoding="utf-8") + "p00,again\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        prepare_data(make_config(f"data.dir={folder}", "data.held_out_criteria=[A.8,B.1,A.10]"))
    message = str(caught.value)
    known = ", ".join(f"'{c.criterion_id}'" for c in MAJOR_DEPRESSIVE_EPISODE)
    assert f"data.held_out_criteria: must be ids of criteria ('A.10'); known: {known}" in message
    assert "data.held_out_criteria: must be ids of criteria ('B.1')" in message
    assert "column post_id" in message


def test_holding_out_all_criteria_is_refused(make_config):
    ids = ",".join(c.criterion_id for c in MAJOR_DEPRESSIVE_EPISODE)
    with pytest.raises(DataError, match=r"held_out_criteria: must leave a criterion to train on"):
        prepare_data(make_config(f"data.held_out_criteria=[{ids}]"))
