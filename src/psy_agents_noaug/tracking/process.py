"""MLflow in a process of its own, which imports it on another core while PyTorch is imported here.

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
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from logging.handlers import QueueHandler
from operator import methodcaller
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, NamedTuple

from psy_agents_noaug import errors
from psy_agents_noaug.errors import ConfigError, Interrupted
from psy_agents_noaug.tracking.base import Status
from psy_agents_noaug.tracking.mlflow import MlflowTracker, import_mlflow

logger = logging.getLogger(__name__)

# How long an answer may keep others waiting that nobody waits for any more.
_PATIENCE_SECONDS = 30
_LENGTH_BYTES = 8


class ProcessEndedError(Exception):
    """Nobody records any more."""


class _Answer(NamedTuple):
    """What a call returned or raised, and what was logged since the last one: logger, level, text."""

    result: Any
    error: Exception | None
    told: list[tuple[str, int, str]]


class MlflowProcess:
    """Runs `MlflowTracker`s elsewhere; what they log with `logging` is logged here, after the call.

    A call that is interrupted (Ctrl-C) is carried out all the same. Calls wait for their turn.
    """

    def __init__(self) -> None:
        # -P: a file in the working directory must not pass for a module. A session of its own keeps
        # the terminal's signals away before it can ignore them.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._free = threading.Semaphore()
        self._numbers = itertools.count()

    @property
    def is_running(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def open(
        self,
        *,
        uri: str | None,
        experiment: str,
        run_name: str,
        output_dir: Path,
        run_id: str | None = None,
        parent_run_id: str | None = None,
        system_metrics: bool = True,
    ) -> "RemoteTracker":
        """Open a tracker; the arguments are those of `MlflowTracker`.

        All trackers get the environment and the working directory that this process has now.

        Raises:
            ConfigError: as `MlflowTracker` does, or the process has ended.
        """
        number = next(self._numbers)
        settings = {
            "uri": uri,
            "experiment": experiment,
            "run_name": run_name,
            "output_dir": output_dir,
            "run_id": run_id,
            "parent_run_id": parent_run_id,
            "system_metrics": system_metrics,
        }
        place = {"environment": dict(os.environ), "folder": Path.cwd()}
        try:
            opened = self.ask(methodcaller("open", number, settings, **place))
        except ProcessEndedError as error:
            raise ConfigError(
                "MLflow could not be used: its process ended, for the reason that it printed. Train "
                "without: `tracking=none`."
            ) from error
        except (KeyboardInterrupt, Interrupted):
            # Nobody would ever end the run that is being opened. What else may go wrong is not the news.
            with suppress(Exception):
                self.ask(methodcaller("finish", number, "KILLED"))
            raise
        return RemoteTracker(self, number, opened)

    def ask(self, call: Callable[["_Trackers"], object]) -> Any:
        """Return what `call` returns there, or raise what it raises.

        Raises:
            ProcessEndedError: the process has ended, or was ended as it did not answer.
        """
        request = pickle.dumps(call)
        answers: SimpleQueue[bytes | None] = SimpleQueue()
        # In a thread, as a signal that ends the wait must not cut an answer in two.
        exchange = threading.Thread(target=self._exchange, args=(request, answers), daemon=True)
        if not self._free.acquire(timeout=_PATIENCE_SECONDS):
            self._process.kill()
            raise ProcessEndedError
        try:
            exchange.start()
        except BaseException:
            # No thread is left, or a signal came: the next call must not wait for this one's answer.
            if exchange.ident is None:
                self._free.release()
            raise
        received = answers.get()
        if received is None:
            raise ProcessEndedError
        answer: _Answer = pickle.loads(received)
        for name, level, text in answer.told:
            logging.getLogger(name).log(level, "%s", text)
        if answer.error is not None:
            raise answer.error
        return answer.result

    def close(self) -> None:
        """End the process when it has answered what it was asked."""
        answered = False
        try:
            answered = self._free.acquire(timeout=_PATIENCE_SECONDS)
        finally:
            # It may still be importing what nobody has asked for.
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with suppress(OSError):
                    pipe.close()
            if answered:
                self._free.release()

    def _exchange(self, request: bytes, answers: SimpleQueue[bytes | None]) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        answer = None
        try:
            # ValueError: the pipes have been closed.
            with suppress(OSError, EOFError, ValueError):
                _send(stdin, request)
                answer = _receive(stdout)
        finally:
            self._free.release()
            answers.put(answer)


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
        self._ask(methodcaller("log_params", dict(params)))

    def log_metrics(self, metrics: Mapping[str, float | int | None], *, step: int) -> None:
        """Record metrics after `step` optimizer steps; None means undefined and is skipped."""
        self._ask(methodcaller("log_metrics", dict(metrics), step=step))

    def log_artifact(self, path: Path) -> None:
        """Keep a copy of a file, or of a folder with all it holds.

        Raises:
            FileNotFoundError: if `path` isn't there.
        """
        self._ask(methodcaller("log_artifact", path.absolute()))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Label the run; a later value replaces an earlier one."""
        self._ask(methodcaller("set_tags", dict(tags)))

    def close_children(self) -> None:
        """Call those runs below this one KILLED that no process is at any more."""
        self._ask(methodcaller("close_children"))

    def finish(self, status: Status) -> None:
        """Close the run. A second call does nothing."""
        self._send(methodcaller("finish", self._number, status))
        self._process = None

    def _ask(self, call: Callable[[MlflowTracker], object]) -> None:
        self._send(methodcaller("call", self._number, call))

    def _send(self, call: Callable[["_Trackers"], object]) -> None:
        if self._process is None:
            return
        try:
            self._process.ask(call)
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


class _Trackers:
    """The process's trackers, by the numbers that they are asked for."""

    def __init__(self) -> None:
        self._by_number: dict[int, MlflowTracker] = {}

    def open(
        self, number: int, settings: dict[str, Any], *, environment: dict[str, str], folder: Path
    ) -> str:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        self._by_number[number] = MlflowTracker(**settings)
        return self._by_number[number].run_id

    def call(self, number: int, call: Callable[[MlflowTracker], object]) -> object:
        return call(self._by_number[number])

    def finish(self, number: int, status: Status) -> None:
        tracker = self._by_number.pop(number, None)
        if tracker is not None:
            tracker.finish(status)


def serve() -> None:
    """Answer on standard output what is asked on standard input, until that ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What anyone prints must not come between the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    told: SimpleQueue[logging.LogRecord] = SimpleQueue()
    # What it keeps is text, with the traceback; a message that does not fit its arguments stops nobody.
    logging.getLogger().addHandler(QueueHandler(told))
    # If it cannot be imported, opening a tracker says so.
    with suppress(ConfigError, ImportError):
        import_mlflow()
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    trackers = _Trackers()
    # Ends where whoever asks does.
    with suppress(EOFError, BrokenPipeError):
        while True:
            request = _receive(sys.stdin.buffer)
            result, error = None, None
            try:
                result = pickle.loads(request)(trackers)
            except Exception as raised:  # noqa: BLE001  # whatever it is, it is raised where it was asked
                error = _portable(raised)
            records = [told.get() for _ in range(told.qsize())]
            texts = [(record.name, record.levelno, record.msg) for record in records]
            _send(answers, pickle.dumps(_Answer(result, error, texts)))


def _send(stream: IO[bytes], message: bytes) -> None:
    stream.write(len(message).to_bytes(_LENGTH_BYTES, "big") + message)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    length = int.from_bytes(_read(stream, _LENGTH_BYTES), "big")
    return _read(stream, length)


def _read(stream: IO[bytes], n_bytes: int) -> bytes:
    data = stream.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError
    return data


def _portable(error: Exception) -> Exception:
    """Return an error that pickle takes and that needs no import of MLflow, with where it was raised."""
    place = "".join(traceback.format_exception(error))
    is_known = type(error).__module__ in ("builtins", errors.__name__)
    if not is_known or not all(isinstance(arg, str | int | float | None) for arg in error.args):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"raised in the process that records in MLflow:\n{place}")
    return error
