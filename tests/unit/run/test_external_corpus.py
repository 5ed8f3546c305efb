"""`split=all`: a labelled corpus that training has not seen is evaluated whole, without a division."""

import csv
import json
from pathlib import Path

import pytest

from psy_agents_noaug import evaluate, train
from psy_agents_noaug.cli import main
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.errors import CheckpointError, ConfigError
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.tasks.criteria.evaluation import CriteriaEvaluation

OWN = "In the {n}th week at station {n} nobody of crew {n} wrote a line about the frozen lake. "
HELD_OUT = "A.8"


def write(folder: Path, numbers, extra=()) -> Path:
    """Write a corpus of a post per number, each with an annotation, and of the posts in `extra`."""
    folder.mkdir()
    tables = {
        "posts": [("post_id", "text")],
        "annotations": [("post_id", "criterion_id", "status", "ev")],
    }
    for number in numbers:
        criterion = MAJOR_DEPRESSIVE_EPISODE[number % 9]
        tables["posts"].append((f"x{number}", f"{OWN.format(n=f'{number}q')}{criterion.text}"))
        tables["annotations"].append(
            (f"x{number}", criterion.criterion_id, int(number % 5 != 0), criterion.text)
        )
    tables["posts"] += extra
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


def settings(folder: Path, **more):
    return {
        "data": "tables",
        "data.dir": folder,
        "data.posts": "posts.csv",
        "data.annotations": "annotations.csv",
        "data.columns.annotations.evidence_text": "ev",
        **more,
    }


@pytest.fixture
def run(overrides, task_name):
    return train([*overrides, "training.max_steps=2"], task=task_name, verbose=False)


def untrained(metrics, split):
    """Return the figures that need no training pairs, without their split."""
    own = {key.removeprefix(f"{split}/"): value for key, value in metrics.items()}
    return {key: v for key, v in own.items() if "baseline_" not in key and "brier_skill" not in key}


@pytest.mark.parametrize("architecture", ["cross_encoder", "label_attention"])
@pytest.mark.parametrize("task_name", ["criteria", "evidence", "joint"])
def test_figures_are_those_of_a_test_split_of_the_same_posts(run, tmp_path):
    whole = write(tmp_path / "whole", range(18))
    divided = write(tmp_path / "divided", range(20))
    ids = [f"x{number}" for number in range(20)]
    splits = {"format": 1, "train": ids[18:19], "val": ids[19:], "test": ids[:18]}
    (divided / "splits.json").write_text(json.dumps(splits))
    found = evaluate(run, settings(whole), split="all", verbose=False)
    other = evaluate(run, settings(divided, **{"data.splits": "splits.json"}), verbose=False)
    assert untrained(found.metrics, "all") == untrained(other.metrics, "test")
    assert all(key.startswith("all/") for key in found.metrics)

    absent = {k.split("/")[1] for k in other.metrics if "/baseline_" in k} - {
        k.split("/")[1] for k in found.metrics if "/baseline_" in k
    }
    assert absent == {"baseline_tfidf_lr", "baseline_majority", "baseline_tfidf_sentence"} & {
        k.split("/")[1] for k in other.metrics
    }
    reason = "there are no training pairs where a corpus is evaluated whole"
    assert f"Left out, as {reason}: TF-IDF + LR" in found.summary
    assert "Left out" not in other.summary

    folder = RunDirectory(found.directory)
    assert folder.path.parent == run.directory / "evaluations"
    assert folder.config.is_file()  # says where its posts are
    assert folder.metrics.is_file()
    lines = folder.predictions_of("all").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["post_id"] for line in lines} == set(ids[:18])
    (record,) = folder.read_evaluations()
    assert record["split"] == "all"
    assert record["data"]["corpus"]


def test_the_skill_of_probabilities_is_undefined_and_says_why(run, tmp_path):
    metrics = evaluate(
        run, settings(write(tmp_path / "whole", range(18))), split="all", verbose=False
    ).metrics
    for prefix in ("", "calibrated/"):
        assert metrics[f"all/{prefix}brier_skill"] is None
        assert "no training pairs" in metrics[f"all/{prefix}brier_skill_undefined"]
        assert metrics[f"all/{prefix}brier"] > 0


@pytest.mark.parametrize("task_name", ["criteria", "evidence", "joint"])
def test_a_criterion_that_training_has_not_seen_is_reported_apart(overrides, task_name, tmp_path):
    held = f"data.held_out_criteria=[{HELD_OUT}]"
    run = train([*overrides, "training.max_steps=2", held], task=task_name, verbose=False)
    whole = write(tmp_path / "whole", range(27))
    more = settings(whole, **{"data.held_out_criteria": [HELD_OUT]})
    found = evaluate(run, more, split="all", verbose=False)
    keys = [key for key in found.metrics if key.startswith(f"all/held_out/{HELD_OUT}/")]
    assert keys
    assert not [key for key in keys if "baseline" in key]
    assert not [key for key in found.metrics if f"per_criterion/{HELD_OUT}" in key]
    held_out = found.summary[found.summary.index("held out of training") :]
    assert "TF-IDF similarity." in held_out
    assert held_out.count("Left out") == 1


def test_prevalence_and_the_command_line(run, tmp_path, own_logging, capsys):
    whole = write(tmp_path / "whole", range(18))
    own = settings(whole, prevalence=0.1, checkpoint=run.directory, split="all")
    assert main(["eval", *(f"{key}={value}" for key, value in own.items())]) == 0
    shown = capsys.readouterr()
    assert "where a share of 0.1 of the judged texts meets the criterion" in shown.out
    assert "Splits (not divided): all 18 posts" in shown.err
    assert main(["eval", "--help"]) == 0
    assert "split=train|val|test|all" in capsys.readouterr().out


def test_the_corpus_of_the_training_is_refused(run, tiny_corpus):
    with pytest.raises(CheckpointError, match=r"trained on this one\. Evaluate its test split"):
        evaluate(run, split="all", verbose=False)


def test_a_corpus_with_a_post_of_the_training_is_refused(run, tmp_path, tiny_corpus):
    with (tiny_corpus / "redsm5_posts.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    whole = write(tmp_path / "whole", range(9), extra=[("copied", first["text"].upper())])
    with pytest.raises(CheckpointError, match=r"has seen 1 posts.*out of the tables: copied\."):
        evaluate(run, settings(whole), split="all", verbose=False)


def test_near_duplicates_of_training_posts_are_counted(overrides, tmp_path, caplog):
    one, other = write(tmp_path / "one", range(30)), tmp_path / "other"
    own = [f"{key}={value}" for key, value in settings(one).items()]
    kept = [item for item in overrides if not item.startswith("data")]
    run = train([*kept, *own, "training.max_steps=2"], verbose=False)
    splits = json.loads((run.directory / "splits.json").read_text())
    number = int(splits["train"][0].removeprefix("x"))
    text = f"{OWN.format(n=f'{number}q')}{MAJOR_DEPRESSIVE_EPISODE[number % 9].text} Edit: thanks"
    write(other, range(40, 49), extra=[("edited", text)])
    found = evaluate(run, settings(other), split="all", verbose=False)
    assert found.metrics["all/n_near_duplicates_of_train"] >= 1
    assert "edited" in caplog.text


def test_settings_that_divide_a_corpus_are_refused(run, tmp_path):
    whole = write(tmp_path / "whole", range(9))
    more = {"data.splits": "splits.json", "data.split_seed": 3}
    with pytest.raises(ConfigError, match=r"leave out:\n.*`data\.splits`\n.*`data\.split_seed`"):
        evaluate(run, settings(whole, **more), split="all", verbose=False)


def test_a_task_whose_report_needs_training_pairs_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(CriteriaEvaluation, "needs_training_pairs", True)
    whole = write(tmp_path / "whole", range(9))
    with pytest.raises(ConfigError, match="is not possible with the task criteria"):
        evaluate(run, settings(whole), split="all", verbose=False)


def test_one_post_is_a_corpus(run, tmp_path, caplog):
    found = evaluate(run, settings(write(tmp_path / "one", [1])), split="all", verbose=False)
    assert found.metrics["all/n_posts"] == 1
    assert found.metrics["all/f1_macro_ci_low"] is None
    assert "the corpus has 1 authors or posts, fewer than 20: its figures hang on" in caplog.text


def test_annotated_sentences_of_a_corpus_are_prepared_whole(make_config):
    config = make_config("data.unit=sentence", "data.sentences=annotated")
    data = prepare_data(config, divided=False)
    assert list(data.examples) == ["all"]
    assert data.examples["all"]
