"""The process of a command: its log, its signals, its last message and its exit code.

Exit codes: 0 done; 2 a config, data, checkpoint or storage error, in one message; 129 / 130 / 143
stopped by SIGHUP, Ctrl-C or SIGTERM, state saved; anything else is a bug and keeps its traceback
(exit 1).
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TextIO

from psy_agents_noaug.errors import Interrupted, PsyAgentsError, StorageError
from psy_agents_noaug.utils.files import environment_refusal
from psy_agents_noaug.utils.shown import PrintableFormatter, discard, printable
from psy_agents_noaug.utils.signals import STOP_SIGNALS

_STOPPED = (
    "Stopped without saving more; resume=auto goes on from the last checkpoint, if there is one."
)
_SECONDS_UNTIL_AGAIN = 0.1
_SIGNAL = 128  # before the number of a signal, in an exit code


def guarded(run: Callable[[], str]) -> int:
    """Print what `run` returns; turn what stops it into a message and an exit code."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else _interrupted(number)

    handler = _StderrHandler()
    handler.setFormatter(PrintableFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    speaks = _is_first_process()
    logging.getLogger("psy_agents_noaug").setLevel(logging.INFO if speaks else logging.ERROR)
    # A training has handlers of its own. An ignored signal (`nohup`, `&` in a script) stays ignored.
    before = {
        number: signal.signal(number, stop)
        for number in STOP_SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        with _repeated_if_ignored(received):
            shown = run()
        exit_code = _print(shown) if speaks and shown else 0
        _leave_process_group()
    except BaseException as error:
        # Asked again, it is ending already; only SIGKILL ends it sooner.
        ignored = dict.fromkeys(before, signal.SIG_IGN)
        try:
            _set_handlers(ignored)
        except (Interrupted, KeyboardInterrupt):
            _set_handlers(ignored)
        ending = _ending_of(error, received)
        if ending is None:
            raise
        message, exit_code = ending
        if message:
            _say(message)
        if exit_code > _SIGNAL:
            _leave_process_group()
            return exit_code
    # The end of the interpreter must not be stopped by an exception of ours.
    _set_handlers(before)
    return exit_code


@contextmanager
def _repeated_if_ignored(received: Sequence[int]) -> Iterator[None]:
    """Send a signal again where Python ignores what its handler raises: while an object is freed.

    Args:
        received: the signals until now.
    """

    def again(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(received[-1])

    def on_ignored(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, Interrupted | KeyboardInterrupt) and received:
            signal.setitimer(signal.ITIMER_REAL, _SECONDS_UNTIL_AGAIN)
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, on_ignored
    alarm = signal.signal(signal.SIGALRM, again)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        sys.unraisablehook = hook


def _set_handlers(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        # None is a handler of another program that Python runs in, and cannot be put back.
        signal.signal(number, handler or signal.SIG_DFL)


def _ending_of(error: BaseException, received: Sequence[int]) -> tuple[str, int] | None:
    """Return the message and the exit code of a command that `error` ends; None for a bug.

    Args:
        error: what `guarded` has caught.
        received: the signals until then. A library may turn what a signal handler raises into an error
            of its own.
    """
    if isinstance(error, Interrupted | KeyboardInterrupt):
        # A launcher that sees another process end by the same error sends a signal to this one.
        failure = error.__context__
        while failure is not None and not isinstance(failure, PsyAgentsError):
            failure = failure.__context__
    else:
        failure = error
    if isinstance(failure, PsyAgentsError):
        shown = "" if failure.is_shown_elsewhere else f"{type(failure).__name__}: {failure}"
        return shown, 2
    if isinstance(error, KeyboardInterrupt):
        error = _interrupted(signal.SIGINT)
    elif received and isinstance(error, Exception):
        error = _interrupted(received[-1])
    if isinstance(error, Interrupted):
        return str(error), error.exit_code
    refusal = environment_refusal(error) if isinstance(error, OSError) else None
    return None if refusal is None else (f"{StorageError.__name__}: {refusal}", 2)


def _print(text: str) -> int:
    """Write to standard output. Return the exit code, which is 2 where that is not possible."""
    if sys.stdout is None:  # closed by who started the process (`>&-`)
        return 0
    try:
        sys.stdout.write(printable(f"{text}\n"))
        sys.stdout.flush()
    except (OSError, UnicodeEncodeError) as error:
        discard(sys.stdout)
        _say(
            f"{StorageError.__name__}: Standard output cannot be written: {error}. All else is done."
        )
        return 2
    return 0


def _interrupted(number: int) -> Interrupted:
    return Interrupted(_STOPPED, exit_code=_SIGNAL + number)


def _say(line: str) -> None:
    """Write to standard error, which may be closed, or a terminal that is gone, or on a full disk."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"{printable(line)}\n")
    except OSError:
        discard(sys.stderr)


def _leave_process_group() -> None:
    """End the threads of a process group, which may crash an interpreter that ends before them.

    Not after an error of this process alone: with NCCL, leaving may wait for the others.
    """
    torch = sys.modules.get("torch")
    if (
        torch is not None
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
    ):
        torch.distributed.destroy_process_group()


def _is_first_process() -> bool:
    """Whether this process is the one, of several (torchrun, accelerate launch), that prints."""
    return os.environ.get("RANK", "0") == "0"


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment, so that lines stay clear of a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
