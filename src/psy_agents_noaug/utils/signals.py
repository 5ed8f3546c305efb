"""SIGTERM, SIGINT and SIGHUP as requests to stop after the current update."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# Windows has no SIGHUP.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Let stop signals wait, where the system can. A process that is started here inherits that."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopSignals:
    """A context that records the first stop signal in `received`, instead of ending the process.

    A second SIGINT has its usual effect. A second SIGTERM or SIGHUP has none: launchers (torchrun,
    Slurm) send several while the state is being saved. SIGHUP stays ignored where it is (`nohup`).
    Outside of the main thread, where Python allows no signal handlers, the context does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, self._previous.pop(signal.SIGINT) or signal.SIG_DFL)

    def _restore(self) -> None:
        # A signal that comes meanwhile may take its entry away.
        while self._previous:
            number, handler = self._previous.popitem()
            # None is a handler of another program that Python runs in, and cannot be put back.
            signal.signal(number, handler or signal.SIG_DFL)
