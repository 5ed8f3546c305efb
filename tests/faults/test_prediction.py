"""What fails while new posts are predicted: one message, and what was predicted before stays."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from psy_agents_noaug.cli import main

TEXT = "I lie awake every night, says xylozephyrquill."
N_CRITERIA = 9


@pytest.fixture
def posts(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a table of posts, some of whose lines are replaced."""

    def written(n_posts: int, bad: dict[int, str] | None = None) -> Path:
        lines = [f"p{row},{row} {TEXT.replace(',', ' ')}" for row in range(1, n_posts + 1)]
        for row, line in (bad or {}).items():
            lines[row - 1] = line
        path = tmp_path / "posts.csv"
        path.write_text("\n".join(["post_id,text", *lines, ""]))
        return path

    return written


@pytest.fixture
def refusal(
    finished: Path, own_logging: None, only_message: Callable[[], str]
) -> Callable[..., str]:
    """Return a function from arguments to the message with which predicting is refused."""

    def told(*arguments: str) -> str:
        settings = [f"checkpoint={finished}", "posts_per_chunk=5", *arguments]
        assert main(["predict", *settings]) == 2
        message = only_message()
        assert "xylozephyrquill" not in message
        return message

    return told


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.faults(
    "a row far down in a file of new posts breaks the data contract",
    "told with its row; the predictions of the posts before it stay",
)
def test_a_fault_far_down_keeps_the_predictions_before_it(
    refusal: Callable[..., str], posts: Callable[..., Path], tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"out.{suffix}"
    path = posts(20, {13: "p13,", 14: "p3,again", 15: ',"xylozephyrquill"'})
    told = refusal(f"data.posts={path}", f"output={output}")
    assert told.startswith("DataError: The posts break the data contract:\n")
    assert "posts.csv, row 13, column text: must not be missing" in told
    assert "posts.csv, row 14, column post_id: must be unique (an earlier row has 'p3'" in told
    assert "posts.csv, row 15, column post_id: must not be missing" in told
    partial = tmp_path / f"out.{suffix}.partial"
    assert f"The predictions of 10 posts are in {partial}, and are whole." in told
    assert not output.exists()
    n_rows = (
        len(partial.read_text().splitlines())
        if suffix == "jsonl"
        else pq.read_metadata(partial).num_rows
    )
    assert n_rows == 10 * N_CRITERIA


@pytest.mark.faults(
    "the disk gets full in a prediction", "one message; the lines of the posts before stay, whole"
)
def test_a_full_disk_keeps_whole_lines(
    refusal: Callable[..., str],
    posts: Callable[..., Path],
    tmp_path: Path,
    file_size_limit: Callable[[int], AbstractContextManager[None]],
) -> None:
    with file_size_limit(20_000):
        told = refusal(f"data.posts={posts(60)}", f"output={tmp_path / 'out.jsonl'}")
    assert told.startswith(f"StorageError: {tmp_path / 'out.jsonl.partial'} cannot be written: ")
    lines = (tmp_path / "out.jsonl.partial").read_text().splitlines()
    assert {line[-1] for line in lines} == {"}"}
    assert len(lines) % (5 * N_CRITERIA) == 0
    assert f"The predictions of {len(lines) // N_CRITERIA} posts are in" in told


@pytest.mark.faults("a file of new posts lacks columns", "refused before the model is loaded")
def test_missing_columns_are_told_before_a_checkpoint_is_looked_for(
    own_logging: None, only_message: Callable[[], str], tmp_path: Path
) -> None:
    path = tmp_path / "posts.csv"
    path.write_text("id,body\np1,a\n")
    assert main(["predict", "checkpoint=nowhere", f"data.posts={path}"]) == 2
    told = only_message()
    assert "column post_id: is missing (the file has " in told
    assert "column text: is missing" in told
    assert "nowhere" not in told


def test_a_damaged_checkpoint_leaves_no_file(
    checkpoint: Path,
    posts: Callable[..., Path],
    own_logging: None,
    only_message: Callable[[], str],
    tmp_path: Path,
) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    output = tmp_path / "out.csv"
    settings = [f"checkpoint={checkpoint}", f"data.posts={posts(3)}", f"output={output}"]
    assert main(["predict", *settings]) == 2
    assert only_message().startswith("CheckpointError: ")
    assert not list(tmp_path.glob("out.csv*"))


class _Command:
    """`psy-agents predict` in a process of its own, whose posts come from a pipe that stays open."""

    def __init__(self, finished: Path, output: Path | None) -> None:
        arguments = [f"checkpoint={finished}", "data.posts=-", "posts_per_chunk=5"]
        arguments += [f"output={output}"] * (output is not None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "psy_agents_noaug", "predict", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def give(self, rows: range) -> None:
        assert self.process.stdin is not None
        records = ({"post_id": f"p{row}", "text": f"{row} {TEXT}"} for row in rows)
        self.process.stdin.writelines(f"{json.dumps(record)}\n" for record in records)
        self.process.stdin.flush()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.faults(
    "Ctrl-C or SIGKILL to a prediction",
    "the predictions that were written stay; exit 130 after Ctrl-C",
)
def test_what_a_stopped_prediction_has_written_stays(
    finished: Path, tmp_path: Path, number: signal.Signals
) -> None:
    partial = tmp_path / "out.jsonl.partial"
    command = _Command(finished, tmp_path / "out.jsonl")
    command.give(range(1, 13))  # the third part waits for more
    until = time.monotonic() + 120
    while time.monotonic() < until and command.process.poll() is None:
        if partial.exists() and partial.read_text().count("\n") == 10 * N_CRITERIA:
            break
        time.sleep(0.05)
    command.process.send_signal(number)
    _, told = command.process.communicate(timeout=60)
    rows = [json.loads(line) for line in partial.read_text().splitlines()]
    assert {row["post_id"] for row in rows} == {f"p{row}" for row in range(1, 11)}
    assert not (tmp_path / "out.jsonl").exists()
    assert command.process.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert f"Stopped. The predictions of 10 posts are in {partial}, and are whole." in told


@pytest.mark.slow
@pytest.mark.faults(
    "the reader of a prediction's standard output leaves", "the prediction ends without a message"
)
def test_a_reader_may_leave(finished: Path) -> None:
    command = _Command(finished, None)
    assert command.process.stdout is not None
    command.give(range(1, 6))
    assert json.loads(command.process.stdout.readline())["post_id"] == "p1"
    command.process.stdout.close()
    command.give(range(6, 31))
    _, told = command.process.communicate(timeout=120)
    assert command.process.returncode == 0
    assert "Error" not in told
