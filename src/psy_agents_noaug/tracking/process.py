"""MLflow in a process of its own: it takes seconds to import, while PyTorch does on another core.

One process serves all the runs that this one tracks. It outlives the signals that stop a training, which
has yet to say how it ended, and ends when nobody is left to ask.
"""

import atexit
import functools
import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.tracking.base import Status
from psy_agents_noaug.tracking.mlflow import MlflowTracker, import_mlflow

logger = logging.getLogger(__name__)


class ProcessEndedError(Exception):
    """Nobody records any more."""


class _Request(NamedTuple):
    tracker: int
    method: str
    arguments: tuple[object, ...]
    settings: dict[str, Any]


class _Answer(NamedTuple):
    result: Any
    error: Exception | None
    records: list[logging.LogRecord]


class MlflowProcess:
    """Runs `MlflowTracker`s elsewhere; what they log and raise arrives here."""

    def __init__(self) -> None:
        # -P: a file in the working directory must not pass for a module.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        # A signal that ends the wait for an answer must not cut the answer in two.
        self._exchanges = ThreadPoolExecutor(max_workers=1)
        self._numbers = itertools.count()

    @property
    def is_running(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def open(self, **settings: Any) -> "RemoteTracker":
        """Open a tracker; `settings` as for `MlflowTracker`.

        Raises:
            ConfigError: as `MlflowTracker` does, or the process has ended.
        """
        number = next(self._numbers)
        # It may have been started before these were changed.
        place = {"environment": dict(os.environ), "folder": Path.cwd()}
        try:
            run_id = self.ask(number, "open", **place, settings=settings)
        except ProcessEndedError as error:
            raise ConfigError(
                "MLflow could not be used: its process ended, for the reason that it printed. Train "
                "without: `tracking=none`."
            ) from error
        return RemoteTracker(self, number, run_id)

    def ask(self, tracker: int, method: str, *arguments: object, **settings: object) -> Any:
        """Call a tracker's method and return what it does.

        Raises:
            ProcessEndedError: the process has ended.
        """
        request = pickle.dumps(_Request(tracker, method, arguments, settings))
        answer = self._exchanges.submit(self._exchange, request).result()
        for record in answer.records:
            source = logging.getLogger(record.name)
            if source.isEnabledFor(record.levelno):
                source.handle(record)
        if answer.error is not None:
            raise answer.error
        return answer.result

    def close(self) -> None:
        """End the process when it has answered all that it was asked."""
        self._exchanges.shutdown()
        # It may still be importing what nobody has asked for.
        self._process.kill()
        self._process.communicate()

    def _exchange(self, request: bytes) -> _Answer:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(request)
            stdin.flush()
            answer: _Answer = pickle.load(stdout)
        except (OSError, EOFError) as error:
            raise ProcessEndedError from error
        return answer


class RemoteTracker:
    """A `MlflowTracker` in an `MlflowProcess`; should that die, training goes on, with a warning."""

    def __init__(self, process: MlflowProcess, number: int, run_id: str) -> None:
        self._process: MlflowProcess | None = process
        self._number = number
        self._run_id = run_id

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings, nested as they are in the config."""
        self._ask("log_params", dict(params))

    def log_metrics(self, metrics: Mapping[str, float | int | None], *, step: int) -> None:
        """Record metrics after `step` optimizer steps; None means undefined and is skipped."""
        self._ask("log_metrics", dict(metrics), step=step)

    def log_artifact(self, path: Path) -> None:
        """Keep a copy of a file, or of a folder with all it holds.

        Raises:
            FileNotFoundError: if `path` isn't there.
        """
        self._ask("log_artifact", path.absolute())

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Label the run; a later value replaces an earlier one."""
        self._ask("set_tags", dict(tags))

    def close_children(self) -> None:
        """Call those runs below this one KILLED that no process is at any more."""
        self._ask("close_children")

    def finish(self, status: Status) -> None:
        """Close the run. A second call does nothing."""
        self._ask("finish", status)
        self._process = None

    def _ask(self, method: str, *arguments: object, **settings: object) -> None:
        if self._process is None:
            return
        try:
            self._process.ask(self._number, method, *arguments, **settings)
        except ProcessEndedError:
            self._process = None
            logger.warning(
                "The process that records in MLflow has ended; the run directory still has everything."
            )


def mlflow_process() -> MlflowProcess:
    """Return this process's own, started if there is none, or none any more."""
    if not _started().is_running:
        _started.cache_clear()
    return _started()


@functools.cache
def _started() -> MlflowProcess:
    process = MlflowProcess()
    atexit.register(process.close)
    return process


class _Server:
    """The trackers of the process, by the numbers that they are asked for."""

    def __init__(self) -> None:
        self._trackers: dict[int, MlflowTracker] = {}

    def answer(self, request: _Request) -> object:
        if request.method == "open":
            return self._open(request.tracker, **request.settings)
        method = getattr(self._trackers[request.tracker], request.method)
        result: object = method(*request.arguments, **request.settings)
        if request.method == "finish":
            del self._trackers[request.tracker]
        return result

    def _open(
        self, number: int, *, environment: dict[str, str], folder: Path, settings: dict[str, Any]
    ) -> str:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        self._trackers[number] = MlflowTracker(**settings)
        return self._trackers[number].run_id


def serve() -> None:
    """Answer on standard output what is asked on standard input, until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What anyone prints must not come between the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    logging.getLogger().addHandler(QueueHandler(records))
    # If it cannot be imported, opening a tracker says so.
    with suppress(ConfigError, ImportError):
        import_mlflow()
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    server = _Server()
    # Ends where whoever asks does.
    with suppress(EOFError, BrokenPipeError):
        while True:
            request: _Request = pickle.load(sys.stdin.buffer)
            result, error = None, None
            try:
                result = server.answer(request)
            except Exception as raised:  # noqa: BLE001
                error = _portable(raised)
            told = [records.get() for _ in range(records.qsize())]
            answers.write(pickle.dumps(_Answer(result, error, told)))
            answers.flush()


def _portable(error: Exception) -> Exception:
    """Return the error, or what it says if it cannot travel, with the place where it was raised."""
    place = "".join(traceback.format_exception(error))
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(f"raised in the process that records in MLflow:\n{place}")
    return copy
