"""Disks that are full, read-only or closed, names that are too long, and other runs' broken files."""

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.run.directory import RunDirectory, open_run_directory
from psy_agents_noaug.run.train import train
from psy_agents_noaug.training.checkpoint import load_checkpoint, weights_sha256
from psy_agents_noaug.utils import files

Train = Callable[..., tuple[int, str]]
FileSizeLimit = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def run_training(
    overrides: list[str], own_logging: None, capfd: pytest.CaptureFixture[str]
) -> Train:
    """Return a function from further overrides to the exit code of a training and what it said."""

    def run(*more: str) -> tuple[int, str]:
        code = main(["train", "task=criteria", *overrides, *more])
        said = capfd.readouterr().err
        assert "Traceback" not in said
        assert len(re.findall(r"^\w+Error: ", said, flags=re.MULTILINE)) == (code == 2)
        return code, said

    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The folder of the runs of `run_training`."""
    return tmp_path / "outputs" / "criteria"


class FailingDisk:
    """Fails when a file whose name holds `name` is flushed to disk for the nth time."""

    def __init__(self, number: int, *, name: str = "", nth: int = 1) -> None:
        self.flushed: list[str] = []
        self.failed = False
        self._number, self._name, self._nth = number, name, nth
        self._fsync = os.fsync

    def fsync(self, descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if self._name in path:
            self.flushed.append(path)
            if len(self.flushed) == self._nth:
                self.failed = True
                raise OSError(self._number, os.strerror(self._number))
        self._fsync(descriptor)


def left_over(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def weights(run: Path) -> list[str]:
    directory = RunDirectory(run)
    paths = (directory.best_checkpoint, directory.last_checkpoint)
    return [weights_sha256(load_checkpoint(path).weights) for path in paths]


def status(run: Path) -> str:
    return json.loads((run / "manifest.json").read_text())["status"]


@pytest.mark.faults(
    "the disk gets full in a training", "one message with path and space; resumable"
)
def test_a_training_on_a_disk_that_gets_full_ends_with_one_message_and_goes_on_later(
    run_training: Train, runs: Path, file_size_limit: FileSizeLimit
) -> None:
    assert run_training("run_name=whole")[0] == 0
    with file_size_limit(300_000):  # the best checkpoint fits, the last one does not
        code, said = run_training("run_name=full", "data.token_cache=off")
    run = runs / "full"
    assert code == 2
    last = re.escape(str(run / "checkpoints" / "last_checkpoint.pt"))
    assert re.search(
        rf"StorageError: {last} cannot be written: .*\(0\.\d MB needed, [\d,.]+ MB free\)", said
    )
    assert (status(run), left_over(runs)) == ("failed", [])
    assert load_checkpoint(run / "checkpoints" / "best_checkpoint.pt").step > 0
    assert run_training("run_name=full", "resume=auto")[0] == 0
    assert (status(run), weights(run)) == ("finished", weights(runs / "whole"))


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        *(
            pytest.param(number, reason, marks=pytest.mark.slow)
            for number, reason in (
                (errno.EDQUOT, "the disk quota is used up"),
                (errno.EROFS, "the file system is read-only"),
                (errno.EACCES, "there is no permission"),
                (errno.EIO, "the disk reports an error"),
            )
        ),
    ],
)
@pytest.mark.faults(
    "the disk refuses a checkpoint", "the last good one stays, and resuming uses it"
)
def test_a_refused_checkpoint_leaves_the_one_before(
    run_training: Train, runs: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    disk = FailingDisk(number, name="last_checkpoint", nth=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk.fsync)
        code, said = run_training("run_name=a")
    run = runs / "a"
    assert (code, status(run), left_over(runs)) == (2, "failed", [])
    assert f"cannot be written: {reason}" in said
    last = load_checkpoint(run / "checkpoints" / "last_checkpoint.pt")
    assert last.resume
    code, said = run_training("resume=auto")
    assert (code, status(run)) == (0, "finished")
    assert f"Going on with {run} from step {last.step}." in said


@pytest.mark.slow
@pytest.mark.faults("the disk is full at any one write", "exit 2, no partial file, resumable")
def test_whichever_write_is_refused_the_run_can_go_on(
    run_training: Train, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_training("run_name=whole")
    for nth in range(1, 100):
        disk = FailingDisk(errno.ENOSPC, name="outputs", nth=nth)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", disk.fsync)
            code, said = run_training(f"run_name=at{nth}")
        if not disk.failed:
            break
        run = runs / f"at{nth}"
        assert (code, left_over(runs)) == (2, []), said
        assert "cannot be written: the disk is full" in said
        if run.exists():
            assert status(run) in ("failed", "running")
        assert run_training(f"run_name=at{nth}", "resume=auto")[0] == 0
        assert weights(run) == weights(runs / "whole")
        shutil.rmtree(run)
    assert nth > 10


@pytest.mark.faults("the disk is too small for the checkpoints", "refused before training")
def test_space_is_estimated_before_training(
    run_training: Train, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
        code, said = run_training("run_name=a")
    assert code == 2
    checkpoints = re.escape(str(runs / "a" / "checkpoints"))
    found = re.search(rf"StorageError: {checkpoints} lacks space: .* need ([\d.]+) MB", said)
    assert found
    assert "0.1 MB are free" in said
    assert not (tmp_path / "outputs").exists()
    assert run_training("run_name=a")[0] == 0
    best, last = (
        (runs / "a" / "checkpoints" / f"{name}_checkpoint.pt").stat().st_size
        for name in ("best", "last")
    )
    assert 0.6 * (best + 2 * last) < float(found[1]) * 1e6 <= best + 2 * last


@pytest.mark.faults("SIGKILL while a checkpoint is written", "swept on the next start; resumable")
def test_what_a_killed_process_was_writing_is_swept_on_the_next_start(
    run_training: Train, runs: Path, overrides: list[str], start_script: Callable, tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, sys\n"
        "from psy_agents_noaug.cli import main\n"
        "fsync, seen = os.fsync, []\n"
        "def kill(descriptor):\n"
        "    path = os.readlink(f'/proc/self/fd/{descriptor}')\n"
        "    seen.append('last_checkpoint' in path)\n"
        "    os.kill(os.getpid(), 9 if sum(seen) == 2 else 0)\n"
        "    fsync(descriptor)\n"
        "os.fsync = kill\n"
        "sys.exit(main(['train', 'task=criteria', *sys.argv[1:]]))\n"
    )
    killed = start_script(str(script), *overrides, "run_name=a").wait()
    assert killed.returncode == -signal.SIGKILL
    (left,) = left_over(runs)
    assert left.parent == runs / "a" / "checkpoints"
    assert run_training("resume=auto")[0] == 0
    assert (left_over(runs), status(runs / "a")) == ([], "finished")
    run_training("run_name=whole")
    assert weights(runs / "a") == weights(runs / "whole")


def test_a_file_that_a_living_process_is_writing_is_not_swept(tmp_path: Path) -> None:
    theirs, ours, gone = (
        tmp_path / f".metrics.json.{number}.tmp"
        for number in (os.getppid(), os.getpid(), 2**22 + 1)
    )
    others = [tmp_path / name for name in (".hidden.tmp", "notes.1.tmp", ".metrics.json.x.tmp")]
    for path in (theirs, ours, gone, *others):
        path.touch()
    files.sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {theirs, *others}
    files.sweep(tmp_path, in_use_by_others=False)
    assert set(tmp_path.iterdir()) == set(others)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("new/" + "n" * 300, "the name is too long"),
        ("file/below", "a part of the path is a file"),
        ("/sys/nowhere", "read-only|no permission"),
    ],
)
@pytest.mark.faults("output_dir cannot be made", "refused with path and reason; nothing is left")
def test_an_output_folder_that_cannot_be_made_is_refused(
    run_training: Train, tmp_path: Path, place: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    before = set(tmp_path.iterdir())
    output_dir = tmp_path / place
    code, said = run_training(f"output_dir={output_dir}")
    assert code == 2
    assert re.search(rf"StorageError: {re.escape(str(output_dir))}.* cannot be written: ", said)
    assert re.search(reason, said)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "wrong",
    ["training.monitor=val/nothing", "data.dir=/nowhere", "model.pretrained_model=/nowhere"],
)
@pytest.mark.faults("a training is refused at its start", "nothing is left behind")
def test_a_refused_start_leaves_nothing_behind(
    run_training: Train, tmp_path: Path, wrong: str
) -> None:
    assert run_training(wrong, f"output_dir={tmp_path / 'deep' / 'outputs'}")[0] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults("a search is refused at its start", "nothing is left behind")
def test_a_search_that_is_refused_leaves_nothing_behind(
    overrides: list[str], own_logging: None, only_message: Callable[[], str], tmp_path: Path
) -> None:
    search = ["tune", "hpo=stage0_sanity", "task=criteria", *overrides, "data.dir=/nowhere"]
    assert main(search) == 2
    assert "/nowhere/redsm5_posts.csv: there is no such file" in only_message()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", ""),
        ("config.yaml", "a: ["),
        ("config.yaml", "[" * 10_000),
        ("config.yaml", "seed: " + "9" * 5_000),
        ("config.yaml", "1: {2: 3}"),
        ("config.yaml", "task: !!python/object/apply:os.abort []"),
        ("manifest.json", ""),
        ("manifest.json", '{"status": "run'),
        ("manifest.json", "[1]"),
        ("manifest.json", "[" * 10_000),
        ("manifest.json", '{"format": ' + "9" * 5_000 + "}"),
    ],
)
@pytest.mark.faults(
    "another run has a broken config.yaml or manifest", "passed over with a warning"
)
def test_a_broken_file_of_another_run_does_not_block_this_one(
    make_config, caplog, runs: Path, name: str, content: str
) -> None:
    config = make_config("resume=auto")
    for run in ("broken", "good"):
        with open_run_directory(make_config(f"run_name={run}")) as directory:
            directory.manifest.write_text("{}")
    (runs / "broken" / name).write_text(content)
    with open_run_directory(config) as directory:
        assert directory.path == runs / "good"
    if content != "1: {2: 3}":  # which can be read: other settings
        assert f"resume=auto passes over a run: {runs / 'broken' / name}" in caplog.text


@pytest.mark.faults("resume=auto with a changed setting", "says that it starts anew, and why")
def test_resuming_with_a_changed_setting_says_that_it_starts_anew_and_why(
    run_training: Train, runs: Path
) -> None:
    assert run_training("run_name=a")[0] == 0
    manifest = runs / "a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"running"'))
    code, said = run_training("resume=auto", "training.learning_rate=0.002")
    assert code == 0
    assert f"resume=auto starts a new run. The latest unfinished one, {runs / 'a'}" in said
    assert "`training.learning_rate` was 0.001, but is 0.002 now" in said
    assert len(list(runs.iterdir())) == 2
    code, said = run_training("resume=auto", f"output_dir={runs / 'other'}")
    assert "resume=auto starts a new run: there is no unfinished one in" in said


@pytest.mark.faults("half a line in evaluations.jsonl", "skipped with a warning; the next is whole")
def test_half_a_line_in_the_log_of_evaluations_is_skipped(tmp_path: Path, caplog) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.record_evaluation("test", weights_sha256="0") == 1
    whole = directory.evaluations.read_bytes()
    directory.evaluations.write_bytes(whole + whole[:20])
    assert directory.record_evaluation("test", weights_sha256="0") == 2
    assert directory.record_evaluation("test", weights_sha256="0") == 3
    assert f"{directory.evaluations}, line 2: skipped" in caplog.text
    assert [len(line) for line in directory.evaluations.read_bytes().splitlines()] == [
        len(whole) - 1,
        20,
        len(whole) - 1,
        len(whole) - 1,
    ]


@pytest.mark.faults("the disk is full when an evaluation is recorded", "refused; the log is whole")
def test_an_evaluation_that_cannot_be_recorded_is_refused(
    tmp_path: Path, file_size_limit: FileSizeLimit
) -> None:
    directory = RunDirectory(tmp_path)
    directory.record_evaluation("test", weights_sha256="0" * 64)
    before = directory.evaluations.read_bytes()
    with (
        file_size_limit(len(before) + 10),
        pytest.raises(
            files.StorageError, match=r"evaluations\.jsonl cannot be written: .*ulimit -f"
        ),
    ):
        directory.record_evaluation("test", weights_sha256="0" * 64)
    assert directory.evaluations.read_bytes() == before


@pytest.mark.faults("a limit on the size of files (`ulimit -f`)", "refused; raise it")
def test_a_limit_on_the_size_of_files_is_to_be_raised(
    tmp_path: Path, file_size_limit: FileSizeLimit
) -> None:
    with file_size_limit(10), pytest.raises(files.StorageError, match="Raise that limit"):
        files.write_bytes(tmp_path / "file", bytes(100))
    assert not list(tmp_path.iterdir())


@pytest.mark.faults("metrics.json or manifest.json is damaged", "a warning; written anew")
def test_damaged_records_of_a_run_are_written_anew(tmp_path: Path, caplog) -> None:
    directory = RunDirectory(tmp_path)
    for path in (directory.metrics, directory.manifest):
        path.write_text('{"val/f1_ma')
    directory.add_metrics({"test/f1_macro": 0.5})
    assert json.loads(directory.metrics.read_text()) == {"test/f1_macro": 0.5}
    assert directory.read_manifest() == {}
    for path in (directory.metrics, directory.manifest):
        assert str(path) in caplog.text


@pytest.mark.faults("history.csv is damaged", "a run that goes on writes it anew")
def test_a_damaged_history_is_written_anew_by_a_run_that_goes_on(
    make_config: Callable[..., TrainConfig],
) -> None:
    done = train(make_config("run_name=r")).directory
    history = done / "history.csv"
    before = history.read_bytes()
    history.write_bytes(before[:-40] + b"\xff")
    train(make_config("run_name=r", "resume=auto"))
    assert history.read_bytes() == before


@pytest.mark.parametrize(("descriptor", "code"), [(1, 2), (2, 0)])
@pytest.mark.faults(
    "the log or the output goes to a full disk", "training is finished all the same"
)
def test_a_full_disk_under_the_log_does_not_end_a_training(
    runs: Path,
    overrides: list[str],
    start_script: Callable,
    tmp_path: Path,
    descriptor: int,
    code: int,
) -> None:
    script = tmp_path / "full.py"
    script.write_text(
        "import os, sys\n"
        f"os.dup2(os.open('/dev/full', os.O_WRONLY), {descriptor})\n"
        "from psy_agents_noaug.cli import main\n"
        "sys.exit(main(['train', 'task=criteria', *sys.argv[1:]]))\n"
    )
    ended = start_script(str(script), *overrides, "run_name=a").wait()
    assert (ended.returncode, status(runs / "a")) == (code, "finished")
    if descriptor == 1:
        assert ended.stderr.count("Error: ") == 1
        assert "StorageError: Standard output cannot be written" in ended.stderr


@pytest.mark.faults(
    "two containers write a file of a shared disk, by processes of one number", "both succeed"
)
def test_writers_of_the_same_process_number_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "tokens"

    def write(file: BinaryIO) -> None:
        file.write(b"mine")
        files.write_bytes(path, b"theirs")
        assert path.read_bytes() == b"theirs"

    files.write_atomically(path, write)
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.faults("parts of files that another machine left", "kept for a day, then removed")
def test_temporary_files_of_another_machine_are_swept_when_they_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(files, "_HOST", "0" * 8)
        young, old = (files.temporary_beside(tmp_path / name) for name in ("a", "b"))
    for path in (young, old):
        path.touch()
    os.utime(old, (0, 0))
    files.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [young]
    files.sweep(tmp_path, in_use_by_others=False)
    assert list(tmp_path.iterdir()) == []
