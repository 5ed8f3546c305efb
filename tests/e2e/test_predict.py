"""`psy-agents predict` and `load` after a training have the figures of an evaluation, to the bit."""

import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import psy_agents_noaug
from psy_agents_noaug import evaluate, load, train
from psy_agents_noaug.cli import main
from psy_agents_noaug.tasks.evidence.evaluation import THRESHOLD as NULL_THRESHOLD
from psy_agents_noaug.training.checkpoint import load_checkpoint, save_checkpoint

FIGURES = ("probability", "calibrated_probability", "decision", "threshold", "evidence")
SPAN = ("start_char", "end_char", "score")
CASES = {
    "criteria": ("criteria", "data.unit=post"),
    "criteria in one pass": ("criteria", "data.unit=post", "model.architecture=label_attention"),
    "evidence": ("evidence",),
    "evidence in one pass": ("evidence", "model.architecture=label_attention"),
    "joint": ("joint",),
    "joint in one pass": ("joint", "model.architecture=label_attention"),
}

pytestmark = pytest.mark.usefixtures("own_logging")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, overrides_for):
    """Return a function that trains once for each task and choice of settings, and returns the run."""
    runs = {}

    def run(task, *settings):
        if (task, settings) not in runs:
            own = [*overrides_for(tmp_path_factory.mktemp("runs"), task), *settings]
            runs[task, settings] = train(own, task=task, verbose=False)
        return runs[task, settings]

    return run


@pytest.fixture
def posts_of_test(tiny_corpus, tmp_path):
    """A table with nothing but the posts of test, in another order."""
    ids = json.loads((tiny_corpus / "splits.json").read_text())["test"]
    with (tiny_corpus / "redsm5_posts.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["post_id"] in ids]
    path = tmp_path / "posts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "post_id"])
        writer.writeheader()
        writer.writerows(reversed(rows))
    return path


def figures_of_an_evaluation(run):
    """Return the prediction lines of test by post and criterion, without the gold ones."""
    result = evaluate(run, split="test", verbose=False)
    lines = (result.directory / "predictions" / "test.jsonl").read_text().splitlines()
    found = {}
    for line in map(json.loads, lines):
        figures = {name: line[name] for name in FIGURES if name in line}
        if "evidence" in figures:
            spans = figures["evidence"]
            figures["evidence"] = [{name: span[name] for name in SPAN} for span in spans]
        found[line["post_id"], line["criterion_id"]] = figures
    return found


def figures_of(rows):
    return {
        (row["post_id"], row["criterion_id"]): {name: row[name] for name in FIGURES if name in row}
        for row in rows
    }


@pytest.mark.slow  # tests/unit/run/test_scoring.py compares them without the command
@pytest.mark.parametrize("case", CASES)
def test_predictions_have_the_bits_of_an_evaluation(trained, posts_of_test, tmp_path, case):
    run = trained(*CASES[case])
    expected = figures_of_an_evaluation(run)
    for part in (3, 100):
        output = tmp_path / f"{part}.jsonl"
        arguments = [
            f"checkpoint={run.directory}",
            f"data.posts={posts_of_test}",
            f"output={output}",
        ]
        assert main(["predict", *arguments, f"posts_per_chunk={part}"]) == 0
        found = figures_of(json.loads(line) for line in output.read_text().splitlines())
        assert found == expected
        assert list(found) == list(dict.fromkeys(found))
    predictor = load(run, verbose=False)
    with posts_of_test.open(newline="", encoding="utf-8") as file:
        texts = list(csv.DictReader(file))
    numbered = predictor.predict([row["text"] for row in texts])
    numbered["post_id"] = [texts[int(number)]["post_id"] for number in numbered["post_id"]]
    assert figures_of(numbered.to_dict("records")) == expected


def test_parquet_has_the_bits_of_json_lines(trained, posts_of_test, tmp_path):
    run = trained(*CASES["joint"])
    for name in ("o.parquet", "o.jsonl"):
        arguments = [f"checkpoint={run.directory}", f"data.posts={posts_of_test}"]
        assert main(["predict", *arguments, f"output={tmp_path / name}"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert pq.read_table(tmp_path / "o.parquet").to_pylist() == lines


@pytest.mark.parametrize("case", ["evidence", "joint in one pass"])
def test_an_explanation_is_the_evidence_of_the_prediction(trained, tiny_corpus, tmp_path, case):
    path = trained(*CASES[case]).directory / "checkpoints" / "best_checkpoint.pt"
    checkpoint = load_checkpoint(path)
    rule = {**checkpoint.decision_rule, NULL_THRESHOLD: 1e9}  # a span is always better than none
    answering = tmp_path / "answering.pt"
    save_checkpoint(answering, replace(checkpoint, decision_rule=rule))
    predictor = load(answering, verbose=False)
    with (tiny_corpus / "redsm5_posts.csv").open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    n_spans = 0
    for text in texts:
        rows = predictor.predict(text)
        if "decision" in rows:
            rows = rows[rows["decision"] == 1]
        expected = {
            (row.criterion_id, span["start_char"], span["end_char"], span["score"])
            for row in rows.itertuples()
            for span in row.evidence
        }
        spans = predictor.explain(text)
        assert {(s.criterion_id, s.start_char, s.end_char, s.score) for s in spans} == expected
        assert all(span.text == text[span.start_char : span.end_char] for span in spans)
        assert [span.score for span in spans] == sorted((s.score for s in spans), reverse=True)
        n_spans += len(spans)
    assert n_spans > 0


def test_a_model_of_sentences_explains_by_the_sentences_that_are_met(trained):
    run = trained("criteria", "data.unit=sentence")
    text = "The bus was late again this morning. I feel worthless. My exam is on Friday at noon."
    found = [
        load(run, threshold=1e-6, rows=rows, verbose=False).explain(text)
        for rows in ("post", "sentence")
    ]
    assert {span.text for span in found[0]} == {
        "The bus was late again this morning.",
        "I feel worthless.",
        "My exam is on Friday at noon.",
    }
    spans = [{(s.criterion_id, s.start_char, s.end_char) for s in spans} for spans in found]
    assert spans[0] == spans[1]


def test_eight_threads_get_the_bits_of_one(trained):
    predictor = load(trained(*CASES["joint"]), verbose=False)
    batches = [[f"Post {number} of {size}." for number in range(size)] for size in range(1, 17)]
    alone = [predictor.predict(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(predictor.predict, batches))
    assert all(one.equals(other) for one, other in zip(alone, together, strict=True))


def test_options_of_load_are_those_of_the_command(trained, posts_of_test, tmp_path):
    run = trained(*CASES["criteria"])
    options = {
        "criteria": ["A.9", "A.2"],
        "threshold": {"A.2": 0.25},
        "prevalence": 0.02,
        "with_text": True,
    }
    table = load(run, {"training.eval_batch_size": 2}, **options, verbose=False).predict(
        ["A text."]
    )
    assert table["criterion_id"].tolist() == ["A.2", "A.9"]
    assert table["text"].tolist() == ["A text."] * 2
    output = tmp_path / "o.jsonl"
    arguments = [f"checkpoint={run.directory}", f"data.posts={posts_of_test}", f"output={output}"]
    given = ["criteria=[A.9,A.2]", "threshold={A.2:0.25}", "prevalence=0.02", "with_text=true"]
    assert main(["predict", *arguments, *given]) == 0
    first = json.loads(output.read_text().splitlines()[0])
    assert list(first) == list(table.columns)
    assert first["threshold"] == table["threshold"][0] == 0.25


def test_the_package_has_the_predictor_and_loading_refuses_what_is_no_option(trained):
    predictor = load(trained(*CASES["criteria"]), verbose=False)
    assert isinstance(predictor, psy_agents_noaug.Predictor)
    assert [criterion.criterion_id for criterion in predictor.criteria][:2] == ["A.1", "A.2"]
    for settings in ({"output": "x.csv"}, ["data.posts=x.csv"], {"task": "joint"}):
        with pytest.raises(psy_agents_noaug.errors.ConfigError, match="`overrides` of `load`"):
            load(trained(*CASES["criteria"]), settings)


@pytest.mark.slow
def test_the_real_command_reads_a_pipe_and_writes_one(trained, posts_of_test):
    run = trained(*CASES["criteria"])
    environment = {**os.environ, "TERM": "dumb"}
    command = [sys.executable, "-m", "psy_agents_noaug", "predict", f"checkpoint={run.directory}"]
    done = subprocess.run(
        [*command, "data.posts=-"],
        input=posts_of_test.read_bytes(),
        capture_output=True,
        check=True,
        env=environment,
        timeout=200,
    )
    found = figures_of(json.loads(line) for line in done.stdout.splitlines())
    assert found == figures_of_an_evaluation(run)
    told = done.stderr.decode()
    assert "A model's predictions are no diagnosis." in told
    with posts_of_test.open(newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert not any(text in told for text in texts)
    assert str(Path.home()) not in told
