"""The evidence scripts as a user runs them: files, figures, exact evaluation, long posts, real data."""

import csv
import json
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from psy_agents_noaug.cli import main
from psy_agents_noaug.training.checkpoint import load_checkpoint

PREDICTION_KEYS = {
    "example_id",
    "post_id",
    "group_id",
    "criterion_id",
    "evidence",
    "gold_evidence",
    "exact_match",
    "token_f1",
    "null_score_diff",
    "null_score_diff_threshold",
}


@pytest.fixture
def task_name() -> str:
    return "evidence"


def figures(folder: Path, split: str) -> dict[str, object]:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key.startswith(f"{split}/")}


def test_the_script_trains_and_evaluating_val_gives_its_figures_to_the_last_bit(
    overrides: list[str], tmp_path: Path, start_script: Callable[..., Any], own_logging: None
) -> None:
    trained = start_script("train_evidence.py", *overrides, "run_name=one").wait()
    assert trained.returncode == 0, trained.stderr
    assert "TF-IDF sentence" in trained.stdout
    assert "windows of" in trained.stderr
    folder = tmp_path / "outputs" / "evidence" / "one"
    recorded = figures(folder, "val")
    assert recorded["val/baseline_whole_post/answerable/evidence_token_f1"] > 0
    assert not figures(folder, "test")
    lines = [json.loads(x) for x in (folder / "predictions" / "val.jsonl").read_text().splitlines()]
    assert {key for line in lines for key in line} == PREDICTION_KEYS

    best = tmp_path / "outputs" / "checkpoints" / "best_checkpoint.pt"
    (folder / "metrics.json").unlink()
    assert main(["eval", "task=evidence", f"checkpoint={best}", "split=val"]) == 0
    assert figures(folder, "val") == recorded
    assert main(["eval", "task=evidence", f"checkpoint={best}"]) == 0
    assert figures(folder, "test")["test/evidence_n_pairs"] == 8 * 9
    threshold = load_checkpoint(best, task="evidence").decision_rule["null_score_diff_threshold"]
    assert figures(folder, "test")["test/null_score_diff_threshold"] == threshold


def test_a_checkpoint_of_another_task_is_refused(
    overrides: list[str],
    tmp_path: Path,
    own_logging: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    argv = [*overrides, "training.max_steps=1", "run_name=other"]
    assert main(["train", "task=evidence", *argv]) == 0
    best = tmp_path / "outputs" / "checkpoints" / "best_checkpoint.pt"
    assert main(["eval", "task=criteria", f"checkpoint={best}"]) == 2
    assert "CheckpointError" in capfd.readouterr().err


def test_offsets_that_do_not_fit_are_refused_all_at_once(
    overrides: list[str],
    tiny_corpus: Path,
    tmp_path: Path,
    own_logging: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    posts = [{"post_id": f"p{n}", "text": f"I slept badly in week {n}."} for n in range(12)]
    bad = [
        {"start_char": 2, "end_char": 99},
        {"start_char": 9, "end_char": 4},
        {"start_char": 2, "end_char": 7, "evidence_text": "badly"},
        {"start_char": -1, "end_char": 4},
    ]
    annotations = [
        {"post_id": f"p{n}", "criterion_id": "A.4", "status": 1, **offsets}
        for n, offsets in enumerate(bad)
    ]
    for name, rows in (("posts", posts), ("annotations", annotations)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    argv = [
        *(item for item in overrides if not item.startswith("data")),
        "data=tables",
        f"data.dir={tmp_path}",
        "data.posts=posts.jsonl",
        "data.annotations=annotations.jsonl",
    ]
    assert main(["train", "task=evidence", *argv]) == 2
    told = capfd.readouterr().err
    for row, column in ((1, "end_char"), (2, "end_char"), (3, "evidence_text"), (4, "start_char")):
        assert f"annotations.jsonl, row {row}, column {column}: must" in told
    assert "slept" not in told


def _train_and_report_peak(argv: list[str], pipe: Connection) -> None:
    assert main(["train", "task=evidence", *argv]) == 0
    # `ru_maxrss` is no less than that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    pipe.send(int(status.split("VmHWM:")[1].split()[0]) // 1024)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_post_of_seven_thousand_words_trains_in_bounded_memory(
    overrides: list[str], tiny_corpus: Path, tmp_path: Path, own_logging: None
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for path in tiny_corpus.iterdir():
        (corpus / path.name).write_bytes(path.read_bytes())
    with (corpus / "redsm5_posts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for post in (rows[0], rows[14]):
        post["text"] = "The bus was late again this morning. " * 1000 + post["text"]
    with (corpus / "redsm5_posts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    settings = [*overrides, f"data.dir={corpus}", "training.max_steps=4", "run_name=long"]
    peaks = []
    context = multiprocessing.get_context("spawn")
    for tokens in (256, 100_000):
        argv = [*settings, f"training.micro_batch_tokens={tokens}", f"run_name=held{tokens}"]
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_train_and_report_peak, args=(argv, sender))
        child.start()
        child.join(200)
        assert child.exitcode == 0
        peaks.append(receiver.recv())
    # With all windows at once the activations of 14,000 tokens are held: about 80 MiB here.
    assert peaks[0] + 40 < peaks[1]
    lines = (tmp_path / "outputs/evidence/held256/predictions/val.jsonl").read_text().splitlines()
    assert len([line for line in lines if '"p14"' in line]) == 9


def test_training_runs_on_the_little_evidence_of_a_paraphrased_corpus_that_was_found(
    overrides: list[str],
    paraphrased_corpus: Path,
    tmp_path: Path,
    own_logging: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    own = [item for item in overrides if not item.startswith(("data.", "task.stride"))]
    argv = [
        *own,
        f"data.dir={paraphrased_corpus}",
        "task.stride=16",
        "training.epochs=1",
        "run_name=paraphrased",
    ]
    assert main(["train", "task=evidence", *argv]) == 0
    told = capfd.readouterr().err
    assert "0 given, 0 verbatim, 0 folded, 1 fuzzy, 21 lost" in told
    report = json.loads((tmp_path / "outputs/evidence/paraphrased/alignment.json").read_text())
    assert [name.split(" ")[1] for name in report["alignment"]["ids"]["fuzzy"]] == ["(94.1)"]
    assert len(report["alignment"]["ids"]["lost"]) == 21
