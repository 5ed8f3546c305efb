"""`psy-agents compare`: what it finds, and what it refuses. Runs are made up but for the last tests."""

import json

import numpy as np
import pytest

from psy_agents_noaug.cli import main
from psy_agents_noaug.comparison.compare import Agreement, compare_systems
from psy_agents_noaug.comparison.systems import read_systems
from psy_agents_noaug.config.loading import load_train_config, to_yaml
from psy_agents_noaug.config.schema import EvaluateConfig
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.run.evaluate import evaluate
from psy_agents_noaug.run.train import train
from psy_agents_noaug.utils.files import write_json, write_text

CRITERIA = ("A.1", "A.2", "A.3")


@pytest.fixture(scope="module")
def config(overrides_for):
    """The settings of all made-up runs."""
    return load_train_config("criteria", overrides_for("outputs"))


@pytest.fixture
def run(tmp_path, config):
    """A function that makes the directory of a run, and returns its path."""

    def make(name, *, noise=0.8, seed=1, baseline=None, metrics=None, epochs=2, edit=None, **facts):
        folder = tmp_path / name
        manifest = {
            "task": "criteria",
            "weights_sha256": f"weights of {name}",
            "data": {"corpus": "c", "splits": "s"},
            **facts,
        }
        found = lines(noise, seed)
        for line in found:
            line |= (edit or dict)(line) or {}
        write_text(folder_of(folder) / "test.jsonl", jsonl(found))
        if baseline is not None:
            path = folder_of(folder) / "test.baseline_tfidf_lr.jsonl"
            write_text(path, jsonl(lines(baseline, 0)))
        write_json(folder / "manifest.json", manifest)
        write_json(folder / "metrics.json", metrics or {})
        training = config.training.model_copy(update={"epochs": epochs})
        own = config.model_copy(update={"seed": seed, "training": training})
        write_text(folder / "config.yaml", to_yaml(own))
        return folder

    return make


def folder_of(run):
    (run / "predictions").mkdir(parents=True, exist_ok=True)
    return run / "predictions"


def jsonl(lines):
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def lines(noise, seed):
    """The lines of a training on 60 posts; the labels are always the same."""
    labels = (np.random.default_rng(0).random((60, len(CRITERIA))) < 0.3).astype(int)
    chance = np.random.default_rng(seed).normal(size=labels.shape)
    probabilities = 1 / (1 + np.exp(-(2 * labels - 1 + noise * chance)))
    return [
        {
            "example_id": f"p{post:02d}/{criterion}",
            "post_id": f"p{post:02d}",
            "group_id": f"p{post:02d}",
            "criterion_id": criterion,
            "label": int(labels[post, column]),
            "probability": float(probabilities[post, column]),
            "decision": int(probabilities[post, column] >= 0.5),
            "threshold": 0.5,
        }
        for post in range(60)
        for column, criterion in enumerate(CRITERIA)
    ]


def compared(*words, split="test"):
    return compare_systems(read_systems([str(word) for word in words], split=split), split=split)


def refusal(*words):
    with pytest.raises(ConfigError) as error:
        compared(*words)
    return str(error.value)


def test_a_better_system_wins_and_the_other_loses(run):
    good, bad = run("good", noise=0.5), run("bad", noise=3.0, seed=2)
    (pair,) = compared(good, bad).pairs
    assert [row.figure for row in pair.headline] == [
        "f1_macro",
        "auroc_macro",
        "average_precision_macro",
    ]
    assert {row.result for row in (*pair.headline, *pair.criteria)} == {"win"}
    (turned,) = compared(bad, good).pairs
    assert {row.result for row in (*turned.headline, *turned.criteria)} == {"loss"}
    for one, other in zip(pair.criteria, turned.criteria, strict=True):
        assert one.found.difference == -other.found.difference
        assert one.p_adjusted == other.p_adjusted


def test_systems_of_the_same_configuration_tie(run):
    one, other = ([str(run(f"s{k}", seed=k)) for k in seeds] for seeds in ((1, 2, 3), (4, 5, 6)))
    (pair,) = compared(f"one={','.join(one)}", f"other={','.join(other)}").pairs
    assert {row.result for row in (*pair.headline, *pair.criteria)} == {"tie"}


def test_seeds_of_a_system_are_averaged_and_widen_its_interval(run):
    for seed in (1, 2, 3):
        run(f"a{seed}", seed=seed)
    other = run("b", noise=2.0, seed=9)
    found = compared(f"a={other.parent}/a*", other)
    assert found.n_trainings == {"a": 3, "b": 1}
    (pair,) = found.pairs
    singles = [compared(other.parent / f"a{k}", other).pairs[0].headline[0] for k in (1, 2, 3)]
    mean = np.mean([row.found.first for row in singles])
    assert pair.headline[0].found.first == pytest.approx(mean)


def test_criteria_are_adjusted_by_holm_and_headline_figures_over_pairs_of_systems(run):
    three = run("a", noise=0.9), run("b", noise=1.6, seed=2), run("c", noise=2.4, seed=3)
    for number in (2, 3):
        pairs = compared(*three[:number]).pairs
        for rows, n_tests in (
            ([pair.headline[0] for pair in pairs], len(pairs)),
            ([row for pair in pairs for row in pair.criteria], len(pairs) * len(CRITERIA)),
        ):
            smallest = min(rows, key=lambda row: row.found.p_value)
            assert smallest.p_adjusted == pytest.approx(min(1, n_tests * smallest.found.p_value))


def test_disagreements_are_counted_by_criterion_and_by_post(run):
    def flip(line):
        if line["post_id"] == "p07" and line["criterion_id"] != "A.3":
            return {"decision": 1 - line["decision"], "probability": 1 - line["probability"]}
        return None

    one = run("one", noise=0.0)  # right everywhere
    (pair,) = compared(one, run("two", noise=0.0, edit=flip)).pairs
    assert pair.agreement == [
        Agreement("label", "A.1", 59, 1, 0, 0),
        Agreement("label", "A.2", 59, 1, 0, 0),
        Agreement("label", "A.3", 60, 0, 0, 0),
    ]
    assert pair.posts == [Agreement("label", "p07", 1, 2, 0, 0)]


def test_a_baseline_is_a_system_that_a_run_has_kept(run):
    found = compared(run("model", noise=0.5, baseline=3.0), "baseline:tfidf_lr")
    assert found.n_trainings == {"model": 1, "TF-IDF + LR": 1}
    assert found.pairs[0].headline[0].result == "win"
    assert [note for note in found.notes if "Trained once: model." in note]


def test_a_baseline_that_decides_otherwise_for_another_run_is_said(run):
    models = run("a", baseline=3.0), run("b", seed=2, baseline=2.0)
    notes = compared(*models, "baseline:tfidf_lr").notes
    assert "TF-IDF + LR is that of a; with the settings of b it decides otherwise." in notes


def test_systems_that_judged_something_else_are_refused_with_all_faults(run):
    def other_label(line):
        return {"label": 1 - line["label"]} if line["example_id"] == "p03/A.1" else None

    def other_post(line):
        return {"post_id": "p99", "example_id": "p99"} if line["post_id"] == "p05" else None

    message = refusal(
        run("first"),
        run("labels", edit=other_label),
        run("posts", edit=other_post),
        run("corpus", data={"corpus": "d", "splits": "s"}),
        run("splits", data={"corpus": "c", "splits": "t"}),
        run("task", task="joint"),
    )
    assert message.count("\n") == 5
    for fault in (
        "labels has other labels than ",
        "as of p03",
        "posts has other posts than ",
        "as of p05, p99",
        "corpus has judged another corpus than ",
        "splits has judged another division of the posts than ",
        "task is of the task joint, but ",
    ):
        assert fault in message


def test_what_is_not_there_is_refused_with_the_command_that_makes_it(run, tmp_path):
    unjudged = run("unjudged")
    (unjudged / "predictions" / "test.jsonl").unlink()
    message = refusal(unjudged, tmp_path / "nothing", "baseline:tfidf_lr", f"x={tmp_path}/y*")
    assert f"`psy-agents eval checkpoint={unjudged} split=test`" in message
    assert "nothing must be the directory of a run, but holds no manifest.json" in message
    assert "no run has the predictions of baseline:tfidf_lr" in message
    assert "y* leads to no folder" in message


def test_a_run_is_not_compared_with_itself(run):
    one = run("one")
    assert "is given twice: a run cannot be compared with itself" in refusal(one, f"again={one}")
    assert "two systems have the name one" in refusal(one, one)
    assert "at least two systems" in refusal(one)
    copy = run("copy", weights_sha256="weights of one")
    assert (
        compared(one, copy).notes[0] == "one and copy share weights, which are judged in two ways."
    )


def test_seeds_of_a_system_differ_in_their_seed_alone(run):
    one, other = run("one"), run("other", seed=2, epochs=3)
    message = refusal(f"a={one},{other}", run("b", seed=3))
    assert "differ in training.epochs" in message
    assert "a has two seeds, which say next to nothing of their spread: give 3 or more" in message
    again = run("again", weights_sha256="weights of one")
    assert "but are one training twice" in refusal(f"a={one},{again}", run("b", seed=3))


def test_predictions_that_do_not_give_the_reported_figures_are_refused(run):
    wrong, right = run("wrong", metrics={"test/f1_macro": 0.5}), run("right", seed=2)
    message = refusal(wrong, right)
    assert "do not give its figures in metrics.json (f1_macro): `psy-agents eval" in message


def test_damaged_lines_and_other_labels_are_refused(run):
    damaged, ordinal = run("damaged"), run("ordinal", edit=lambda line: {"label": 3})
    (damaged / "predictions" / "test.jsonl").write_text('{"post_id": "a sad')
    old = run("old", edit=lambda line: {"probability": "high"})
    message = refusal(damaged, ordinal, old)
    assert "damaged (JSONDecodeError): evaluate that run on test again" in message
    assert "ordinal must have binary labels" in message
    assert "old: its predictions are damaged, or of an earlier version (ValueError)" in message
    assert "a sad" not in message


def test_the_command_writes_all_files_and_prints_the_table(run, tmp_path, capsys, own_logging):
    good, bad = run("good & new", noise=0.5), run("bad", noise=3.0, seed=2)
    output = tmp_path / "out"
    assert main(["compare", str(good), f"old={bad}", f"output={output}"]) == 0
    printed = capsys.readouterr().out
    assert "good & new against old: f1 of each criterion" in printed
    assert "By f1_macro, good & new is better than old: +0." in printed
    assert "Wins 3, ties 0, losses 0. Holm: 3 criteria." in printed
    found = json.loads((output / "comparison.json").read_text())
    assert [row["result"] for row in found["pairs"][0]["criteria"]] == ["win"] * 3
    assert (output / "figures.csv").read_text().count("\n") == 7
    assert r"good \& new" in (output / "comparison.tex").read_text()
    page = (output / "comparison.html").read_text()
    assert "good &amp; new against old" in page
    assert "://" not in page
    assert main(["compare", str(good), f"old={bad}", f"output={output}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_train_is_refused_because_training_has_seen_it(run, capsys, own_logging):
    assert main(["compare", str(run("a")), str(run("b", seed=2)), "split=train"]) == 2
    assert "split" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task_name", "figure"),
    [
        ("criteria", "f1_macro"),
        ("evidence", "evidence_iou_f1"),
        ("joint", "evidence_iou_f1"),
    ],
)
def test_the_gain_over_tfidf_is_that_of_the_evaluation(make_config, task_name, figure):
    folder = train(make_config()).directory
    chosen = EvaluateConfig(checkpoint=str(folder), split="test")
    metrics = evaluate(chosen, task_name=task_name, explicit={}).metrics
    found = compared(folder, "baseline:tfidf_lr")
    (row,) = [row for row in found.pairs[0].headline if row.figure == figure]
    reported = f"test/baseline_tfidf_lr/{figure}_gain"
    assert row.found.difference == pytest.approx(metrics[reported])
    for end in ("ci_low", "ci_high"):
        expected = metrics[f"{reported}_{end}"]
        assert getattr(row.found, end) == (None if expected is None else pytest.approx(expected))
