"""Worker processes that die, stop, hang or fail, and what a training with workers leaves behind."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import LoaderError
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.train import train
from psy_agents_noaug.training.checkpoint import load_checkpoint
from psy_agents_noaug.training.loading import loaded

# Long enough to be hit; evaluated at the end alone.
LONG = ("run_name=long", "training.num_workers=2", "training.eval_steps=100000", "resume=auto")
OPTIONS: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": "fork"}

MakeConfig = Callable[..., TrainConfig]


class Items:
    """A data set of tensors, whose item 3 does what `fault` says."""

    def __init__(self, fault: Callable[[], object] = lambda: None) -> None:
        self._fault = fault

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 3:
            self._fault()
        return {
            "ids": torch.full((3, 2), index),
            "mask": torch.ones(300_000, dtype=torch.bool),
            "bf16": torch.tensor([index], dtype=torch.bfloat16),
        }


@pytest.fixture
def start_long(
    start_script: Callable[..., Any], overrides: list[str], tmp_path: Path
) -> Iterator[Callable[..., tuple[Any, list[psutil.Process]]]]:
    """Return a function that starts a long training and returns it, and its workers, in its midst."""
    started = []

    def start(*settings: str, **options: str) -> tuple[Any, list[psutil.Process]]:
        child = start_script(
            "train_criteria.py", *overrides, *LONG, "training.save_steps=1", *settings, **options
        )
        started.append(child)
        last = tmp_path / "outputs/criteria/long/checkpoints/last_checkpoint.pt"
        while child.is_alive() and not last.exists():
            time.sleep(0.005)
        return child, psutil.Process(child.pid).children()

    yield start
    for child in started:
        if child.is_alive():
            child.send_signal(signal.SIGKILL)


def ended(processes: list[psutil.Process]) -> bool:
    """Whether all of them end soon; one whose parent was killed may stay a zombie."""
    deadline = time.monotonic() + 30
    while any(map(_is_left, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(_is_left, processes))


def _is_left(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.faults("an uncaught exception, with workers", "traceback, exit 1, no worker left")
def test_a_bug_in_the_main_process_ends_it_and_its_workers(
    overrides: list[str], tmp_path: Path
) -> None:
    program = (
        "import multiprocessing, sys\n"
        "from psy_agents_noaug.cli import main\n"
        "from psy_agents_noaug.tasks.criteria.task import CriteriaTask\n"
        "def crash(*_):\n"
        "    print([worker.pid for worker in multiprocessing.active_children()])\n"
        "    raise ZeroDivisionError('a bug')\n"
        "CriteriaTask.loss = crash\n"
        "sys.exit(main(['train', *sys.argv[1:]]))\n"
    )
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        # Not through pipes: a worker that is left would hold them open.
        done = subprocess.run(
            [sys.executable, "-c", program, *overrides, *LONG, "training.epochs=2000"],
            stdout=stdout,
            stderr=stderr,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert "ZeroDivisionError: a bug" in err.read_text()
    workers = json.loads(out.read_text())
    assert len(workers) == 2
    assert not any(psutil.pid_exists(worker) for worker in workers)


@pytest.mark.slow
@pytest.mark.faults(
    "a worker is killed (memory, a bus error)", "exit 2, one message; resumes to the same weights"
)
@pytest.mark.parametrize(
    ("number", "cause"), [(signal.SIGKILL, "ran out of memory"), (signal.SIGBUS, "was cut short")]
)
def test_a_killed_worker_is_one_message_and_the_run_goes_on_later(
    start_long: Callable[..., Any],
    make_config: MakeConfig,
    weights_of: Callable[[RunResult], object],
    number: signal.Signals,
    cause: str,
) -> None:
    epochs = "training.epochs=10"
    child, workers = start_long(epochs)
    workers[1].send_signal(number)
    done = child.wait()
    assert done.returncode == 2, done.stderr
    assert (
        f"LoaderError: A worker process that collates batches was killed by signal {number:d}"
        in (done.stderr)
    )
    assert cause in done.stderr
    assert "Traceback" not in done.stderr
    assert ended(workers)
    resumed = train(make_config(*LONG, epochs))
    whole = train(make_config(*LONG, epochs, "run_name=whole", "training.num_workers=0"))
    assert weights_of(resumed) == weights_of(whole)


@pytest.mark.faults("a worker stops or hangs", "exit 2 after `training.loader_timeout`")
def test_a_stopped_worker_ends_the_run_after_the_timeout(start_long: Callable[..., Any]) -> None:
    child, workers = start_long("training.epochs=2000", "training.loader_timeout=1.5")
    workers[0].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    done = child.wait()
    assert 1 < time.monotonic() - began < 60  # without the timeout: for ever
    assert done.returncode == 2, done.stderr
    assert (
        "LoaderError: A worker process has sent no batch for 1.5 s (`training.loader_timeout`)"
        in (done.stderr)
    )
    assert "Traceback" not in done.stderr
    assert ended(workers)


@pytest.mark.faults("a signal, while a worker hangs", "obeyed within seconds, state saved")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_obeyed_while_a_batch_is_waited_for(
    start_long: Callable[..., Any], tmp_path: Path, number: signal.Signals
) -> None:
    child, workers = start_long("training.epochs=2000", "training.loader_timeout=null")
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    time.sleep(0.7)
    began = time.monotonic()
    child.send_signal(number)
    done = child.wait()
    assert time.monotonic() - began < 60  # otherwise: for ever
    assert done.returncode == 128 + number, done.stderr
    assert "the state is saved" in done.stderr
    assert ended(workers)
    last = tmp_path / "outputs/criteria/long/checkpoints/last_checkpoint.pt"
    assert load_checkpoint(last, task="criteria").step > 0


@pytest.mark.slow
@pytest.mark.faults("SIGKILL, with workers", "no worker left; resumes to the same weights")
@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot end orphans")
def test_workers_end_with_the_main_process_even_if_they_are_stopped(
    start_long: Callable[..., Any],
    make_config: MakeConfig,
    weights_of: Callable[[RunResult], object],
) -> None:
    child, workers = start_long("training.epochs=10")
    workers[1].send_signal(signal.SIGSTOP)
    child.send_signal(signal.SIGKILL)
    assert child.wait().returncode == -signal.SIGKILL
    assert ended(workers)
    resumed = train(make_config(*LONG, "training.epochs=10"))
    whole = train(make_config(*LONG, "training.epochs=10", "run_name=whole"))
    assert weights_of(resumed) == weights_of(whole)


@pytest.mark.faults("a bug in a worker", "traceback of the worker too, exit 1, no worker left")
def test_an_exception_in_a_worker_keeps_its_traceback(start_long: Callable[..., Any]) -> None:
    prelude = (
        "from psy_agents_noaug.training.batching import TrainingSteps\n"
        "steps = TrainingSteps.indices\n"
        "def indices(self, step):\n"
        "    return steps(self, step) if step < 7 else {}['no such key']\n"
        "TrainingSteps.indices = indices\n"
    )
    child, workers = start_long("training.epochs=2000", prelude=prelude)
    done = child.wait()
    assert done.returncode == 1
    assert done.stderr.count("KeyError: 'no such key'") == 2
    assert "In a worker process:" in done.stderr
    assert ", in __getitem__" in done.stderr
    assert ended(workers)


@pytest.mark.faults("no process can be started", "one message that names the setting")
def test_workers_that_cannot_be_started_are_one_message(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    config = make_config(*LONG)
    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(LoaderError, match=r"cannot be started: .*unavailable.*num_workers=0"):
        train(config)


@pytest.mark.faults("a full /dev/shm", "nothing: workers do not use it")
def test_workers_need_no_shared_memory() -> None:
    process = multiprocessing.get_context("fork").Process(target=_load_without_shared_memory)
    process.start()
    process.join(20)
    assert process.exitcode == 0


def _load_without_shared_memory() -> None:
    # No file may grow in this process and its children: those of /dev/shm are files.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with loaded(Items(), range(8), OPTIONS) as items:
        assert [item["ids"][0, 0] for item in items] == list(range(8))


def test_items_come_in_order_and_unchanged() -> None:
    order = [7, 5, 3, 1, 2]
    with loaded(Items(), order, OPTIONS) as items:
        found = list(items)
    for index, item in zip(order, found, strict=True):
        for name, value in Items()[index].items():
            assert item[name].dtype == value.dtype
            assert torch.equal(item[name], value)


@pytest.mark.parametrize("how", ["end", "break", "error"])
def test_no_worker_outlives_its_loop(how: str) -> None:
    before = set(psutil.Process().children())
    try:
        with loaded(Items(), range(100), OPTIONS) as items:
            for number, _ in enumerate(items):
                if number == 5 and how == "break":
                    break
                if number == 5 and how == "error":
                    raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert set(psutil.Process().children()) <= before


@pytest.mark.faults("Ctrl-C while a worker starts", "the worker ignores it")
def test_a_signal_does_not_end_a_worker_that_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = multiprocessing.process.BaseProcess.run

    def interrupted(self: multiprocessing.process.BaseProcess) -> None:
        signal.raise_signal(signal.SIGINT)
        begin(self)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "run", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with loaded(Items(), range(4), OPTIONS) as items:
            assert len(list(items)) == 4
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGINT, before)


class OddError(Exception):
    """Its objects can be pickled, but not unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_an_error_that_cannot_travel_is_told_in_words() -> None:
    def fail() -> None:
        raise OddError("an odd", "error")

    with (
        pytest.raises(RuntimeError, match="OddError: an odd error"),
        loaded(Items(fail), range(9), OPTIONS) as items,
    ):
        list(items)


def test_a_worker_that_leaves_is_told_by_its_exit_code() -> None:
    with (
        pytest.raises(LoaderError, match="ended with exit code 5"),
        loaded(Items(lambda: os._exit(5)), range(9), OPTIONS) as items,
    ):
        list(items)
