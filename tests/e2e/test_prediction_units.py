"""Prediction in units by real processes: killed, in shards, on Ray; the merged bytes are the same."""

import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.run.scoring import Scorer
from psy_agents_noaug.run.train import train

REPOSITORY = Path(__file__).parents[2]
COMMAND = str(REPOSITORY / "src" / "psy_agents_noaug" / "__main__.py")
WORDS = ["sad", "tired", "bus", "late", "exam", "appetite", "weight", "guilt", "asleep", "soup"]
N_POSTS, UNIT = 240, 10
CRITERIA = "criteria=[A.1,A.5,A.9]"


@pytest.fixture(scope="module")
def checkpoint(
    overrides_for: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    overrides = overrides_for(tmp_path_factory.mktemp("run"))
    return train(load_train_config("criteria", [*overrides, "training.epochs=1"])).directory


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two Parquet files, in row groups that are no units, and a CSV file."""
    folder = tmp_path_factory.mktemp("posts")
    draw = random.Random(0)
    for name, n_posts in (("a", N_POSTS - 100), ("b", 90)):
        ids = [f"{name}{number}" for number in range(n_posts)]
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 40))) for _ in ids]
        table = pa.table({"post_id": ids, "text": texts})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=33)
    lines = [f"c{number},{draw.choice(WORDS)}" for number in range(10)]
    (folder / "c.csv").write_text("\n".join(["post_id,text", *lines, ""]))
    return folder


@pytest.fixture(scope="module")
def arguments_of(checkpoint: Path, posts: Path) -> Callable[..., list[str]]:
    """Return a function from an output and further settings to the command line."""
    return lambda output, *more: [
        "predict",
        f"checkpoint={checkpoint}",
        f"data.posts={posts}",
        f"output={output}",
        f"unit_posts={UNIT}",
        CRITERIA,
        *more,
    ]


@pytest.fixture(scope="module")
def undisturbed(
    arguments_of: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """The merged file of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(arguments_of(folder / "scores")) == 0
    return merged(folder / "scores")


def merged(scores: Path) -> bytes:
    """Merge a folder, and return the bytes of the file."""
    path = scores.with_name("all.parquet")
    assert main(["merge", str(scores), f"output={path}"]) == 0
    return path.read_bytes()


def parts(scores: Path) -> list[Path]:
    return sorted(scores.glob("part-*"))


def wait_for_parts(scores: Path, number: int, process: object) -> None:
    """Wait until a folder has so many parts, or the process has ended."""
    end = time.monotonic() + 100
    while len(parts(scores)) < number and process.is_alive():  # type: ignore[attr-defined]
        assert time.monotonic() < end
        time.sleep(0.005)


def descendants(process: psutil.Popen) -> list[psutil.Process]:
    """Return a process and those that it has started, as far as they still run."""
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(process.pid), *process.children(recursive=True)]
    return []


def kill_again_and_again(
    start_script: Callable[..., object], arguments: Sequence[str], scores: Path, *, kills: int
) -> int:
    """Kill as many processes at random moments, each after a part of its own; then let one end."""
    draw = random.Random(kills)
    killed = 0
    for _ in range(kills):
        process = start_script(COMMAND, *arguments)
        wait_for_parts(scores, len(parts(scores)) + 1, process)
        time.sleep(draw.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)  # type: ignore[attr-defined]
        killed += process.wait().returncode == -signal.SIGKILL  # type: ignore[attr-defined]
    done = start_script(COMMAND, *arguments).wait()  # type: ignore[attr-defined]
    assert done.returncode == 0, done.stderr
    return killed


@pytest.mark.usefixtures("own_logging")
def test_the_merged_file_has_the_rows_of_a_prediction_of_each_file(
    undisturbed: bytes,
    checkpoint: Path,
    posts: Path,
    tmp_path: Path,
) -> None:
    rows = pq.read_table(pa.BufferReader(undisturbed))
    assert rows.num_rows == N_POSTS * 3
    tables = []
    for file in sorted(posts.iterdir()):
        output = tmp_path / f"{file.stem}.parquet"
        arguments = [f"checkpoint={checkpoint}", f"data.posts={file}", f"output={output}"]
        assert main(["predict", *arguments, CRITERIA]) == 0
        tables.append(pq.read_table(output))
    assert rows.equals(pa.concat_tables(tables))


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_merged_bytes_are_those_of_an_undisturbed_run(
    start_script: Callable[..., object],
    arguments_of: Callable[..., list[str]],
    undisturbed: bytes,
    tmp_path: Path,
    kills: int,
) -> None:
    scores = tmp_path / "scores"
    # Of small units, so that there are enough; their size does not show in the merged file.
    arguments = arguments_of(scores, "unit_posts=2")
    assert kill_again_and_again(start_script, arguments, scores, kills=kills) == kills
    assert merged(scores) == undisturbed
    # Nothing is left of the killed ones.
    assert sorted(path.name for path in scores.iterdir()) == [
        *(path.name for path in parts(scores)),
        "plan.json",
    ]


@pytest.mark.usefixtures("own_logging")
def test_three_processes_with_a_shard_each_make_the_same_bytes(
    start_script: Callable[..., object],
    arguments_of: Callable[..., list[str]],
    undisturbed: bytes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = tmp_path / "scores"
    processes = [
        start_script(COMMAND, *arguments_of(scores, f"shard={number}/3")) for number in (1, 3)
    ]
    for process in processes:
        assert process.wait().returncode == 0  # type: ignore[attr-defined]
    assert main(["merge", str(scores), f"output={tmp_path / 'all.parquet'}"]) == 2
    assert "8 of 24 units are not scored yet: unit 2" in capsys.readouterr().err
    assert main(arguments_of(scores, "shard=2/3")) == 0
    assert merged(scores) == undisturbed


@pytest.mark.usefixtures("own_logging")
def test_stopped_by_a_signal_it_says_how_to_go_on_and_leaves_whole_units(
    start_script: Callable[..., object],
    arguments_of: Callable[..., list[str]],
    undisturbed: bytes,
    tmp_path: Path,
) -> None:
    scores = tmp_path / "scores"
    process = start_script(COMMAND, *arguments_of(scores))
    wait_for_parts(scores, 2, process)
    process.send_signal(signal.SIGTERM)  # type: ignore[attr-defined]
    done = process.wait()  # type: ignore[attr-defined]
    left = N_POSTS // UNIT - len(parts(scores))
    assert done.returncode == 128 + signal.SIGTERM
    assert f"The same command scores the {left} units of shard 1/1 that are left." in done.stderr
    assert all(path.name[0] != "." for path in scores.iterdir())
    # What a killed process would have left.
    (scores / ".part-00001-000000000.parquet.99999999.tmp").write_text("half")
    assert main(arguments_of(scores)) == 0
    assert merged(scores) == undisturbed
    assert all(path.name[0] != "." for path in scores.iterdir())


@pytest.mark.usefixtures("own_logging")
def test_other_settings_or_other_posts_are_refused_and_nothing_is_lost(
    arguments_of: Callable[..., list[str]],
    posts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = tmp_path / "posts"
    own.mkdir()
    for name in ("b.parquet", "c.csv"):
        (own / name).write_bytes((posts / name).read_bytes())
    scores = tmp_path / "scores"
    arguments = arguments_of(scores, f"data.posts={own}")
    assert main(arguments) == 0
    before = {path.name: path.read_bytes() for path in scores.iterdir()}
    capsys.readouterr()

    assert main([*arguments, "threshold=0.3"]) == 2
    assert "threshold: None there, 0.3 asked for" in capsys.readouterr().err

    # As long as before: only the content tells.
    changed = (own / "c.csv").read_text()
    word = changed.splitlines()[1].partition(",")[2]
    (own / "c.csv").write_text(changed.replace(word, word[::-1], 1))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "unit 10 (c.csv): the posts have changed since they were scored" in error
    assert word not in error
    assert main(["merge", str(scores), f"output={tmp_path / 'all.parquet'}"]) == 2
    assert "unit 10 (c.csv): the posts have changed" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in scores.iterdir()} == before


@pytest.mark.usefixtures("own_logging")
def test_a_faulty_post_is_told_with_file_and_row_and_all_other_units_are_scored(
    arguments_of: Callable[..., list[str]],
    posts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = tmp_path / "posts"
    own.mkdir()
    table = pq.read_table(posts / "b.parquet").to_pylist()
    table[44]["text"] = None
    table[67]["post_id"] = table[66]["post_id"]
    pq.write_table(pa.Table.from_pylist(table), own / "b.parquet", row_group_size=33)
    scores = tmp_path / "scores"
    arguments = arguments_of(scores, f"data.posts={own}")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "unit 5 (b.parquet, rows 41 to 50)" in error
    assert "b.parquet, row 45, column text: must not be missing" in error
    assert "unit 7 (b.parquet, rows 61 to 70)" in error
    assert "b.parquet, row 68, column post_id: must be unique" in error
    assert len(parts(scores)) == 7

    # Mended, in a file of other rows: what was scored before them stays.
    table[44]["text"] = "mended"
    del table[67]
    pq.write_table(pa.Table.from_pylist(table), own / "b.parquet")
    kept = parts(scores)[3].stat().st_mtime_ns
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "Files have changed since they were planned: b.parquet" in error
    assert "unit 8 (b.parquet, rows 71 to 80): the posts have changed" in error
    assert "unit 9 (b.parquet, rows 81 to 89): the posts have changed" in error
    for begin in (70, 80):
        (scores / f"part-00001-{begin:09d}.parquet").unlink()
    assert main(arguments) == 0
    assert parts(scores)[3].stat().st_mtime_ns == kept
    assert len(pq.read_table(pa.BufferReader(merged(scores)))) == 89 * 3


@pytest.mark.usefixtures("own_logging")
def test_what_needs_a_folder_is_refused_with_a_file_at_once(
    arguments_of: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = arguments_of(tmp_path / "all.parquet", "shard=1/2", "data.posts=[a.csv,b.csv]")
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("need") == 2
    assert main(arguments_of(tmp_path / "scores", "shard=3/2", "engine=spark", "workers=0")) == 2
    error = capsys.readouterr().err
    assert all(f"`{name}`" in error for name in ("shard", "engine", "workers"))
    assert main(arguments_of(tmp_path / "scores", "data.posts=-", "skip=3", "workers=2")) == 2
    error = capsys.readouterr().err
    assert all(f"`{name}`" in error for name in ("data.posts", "skip", "workers"))


@pytest.mark.usefixtures("own_logging")
def test_a_merge_says_what_is_wrong_with_its_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        (["merge"], "must be given one folder"),
        (["merge", "a", "b", "output=c.parquet"], "must be given one folder"),
        (["merge", str(tmp_path)], "`output` must be given"),
        (["merge", str(tmp_path), "output=a.csv"], "must be a .parquet file"),
        (["merge", str(tmp_path), "output=a.parquet"], "holds no predictions in units"),
        (["merge", str(tmp_path), "output=a.parquet", "check=1"], "`check` is not a known key"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("own_logging")
def test_two_workers_of_ray_of_which_one_is_killed_make_the_same_bytes(
    arguments_of: Callable[..., list[str]], undisturbed: bytes, tmp_path: Path
) -> None:
    scores = tmp_path / "scores"
    command = [sys.executable, "-m", "psy_agents_noaug", *arguments_of(scores, "engine=ray")]
    process = psutil.Popen(
        [*command, "workers=2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 200
        while not parts(scores):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        workers = [child for child in descendants(process) if "UnitActor" in child.cmdline()[0]]
        assert len(workers) == 2
        workers[0].kill()
        assert len(parts(scores)) < N_POSTS / UNIT
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    finally:
        for one in descendants(process):
            one.kill()
    assert merged(scores) == undisturbed


def test_the_function_for_spark_makes_the_rows_of_the_scorer(checkpoint: Path, posts: Path) -> None:
    example = runpy.run_path(str(REPOSITORY / "examples" / "spark_predict.py"))
    table = pq.read_table(posts / "b.parquet")
    batches = list(example["predictions_of"](str(checkpoint))(iter(table.to_batches(40))))
    assert len(batches) > 1
    scored = Scorer(checkpoint, overrides=example["SETTINGS"])(table)
    assert pa.Table.from_batches(batches).equals(scored.combine_chunks())


def test_the_example_for_slurm_is_bash_and_runs_one_shard_a_task(tmp_path: Path) -> None:
    script = REPOSITORY / "examples" / "slurm_predict.sh"
    stand_in = tmp_path / "psy-agents"
    stand_in.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "17"}
    done = subprocess.run(
        ["bash", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "predict"
    assert "shard=17/64" in done.stdout.splitlines()
    assert "#SBATCH --array=1-64" in script.read_text()
