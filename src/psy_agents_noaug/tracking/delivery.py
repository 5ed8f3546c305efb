"""Calls to a tracking store, made in the background, so that no training waits for one."""

import logging
import re
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

from psy_agents_noaug.tracking.base import without_private_parts

T = TypeVar("T")

# Before the last attempts to make the calls that failed.
_PAUSES_SECONDS = (0.0, 1.0, 3.0)
# How long a store is waited for that has let this process wait in vain before.
_SHORT_SECONDS = 1.0
_MAX_REASON = 300
_PREAMBLE = "(raised as a result of "
_DRIVERS_ERROR = re.compile(r"^\([\w.]+\) ")

# A search opens a tracker per trial: together they must not wait longer for a store than one run does.
_away: set[str] = set()

logger = logging.getLogger(__name__)


class Delivery:
    """Makes calls in order, in a daemon thread, which never delays the end of the process.

    A call that fails is kept, and repeated when a later one succeeds and at the end. The first failure
    is a warning, the others are not.

    Args:
        store: address of the store, the same for all runs that it records.
        remedy: what to do about calls that were never made, to end the warning.
    """

    def __init__(self, *, store: str, remedy: str) -> None:
        self._store = store
        self._remedy = remedy
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._kept: list[Callable[[], object]] = []
        self._has_warned = False
        self._reason = ""
        # Nobody waits for the calls any more: no further one is made.
        self.is_abandoned = False
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str | None:
        """Why calls were not made by the end of `close`; None if all were made."""
        return self._reason if self._kept or self.is_abandoned else None

    def answer(self, call: Callable[[], T], *, seconds: float, is_required: bool) -> T:
        """Return what `call` returns. If it fails or takes too long, the thread ends.

        Args:
            call: the first call.
            seconds: how long to wait for it.
            is_required: wait that long even if the store has let this process wait in vain before.

        Raises:
            TimeoutError: there was no answer in time.
            Exception: any error of `call`.
        """
        answers: list[T] = []
        errors: list[Exception] = []
        is_done = threading.Event()

        def attempt() -> None:
            try:
                answers.append(call())
                _away.discard(self._store)
            except Exception as error:  # noqa: BLE001  (raised again by who waits)
                errors.append(error)
            is_done.set()

        seconds = seconds if is_required else self._limit(seconds)
        self._queue.put(attempt)
        try:
            if not is_done.wait(seconds):
                _away.add(self._store)
                raise TimeoutError(f"no answer within {seconds:.0f} s")
            if errors:
                raise errors[0]
        except BaseException:
            self.is_abandoned = True
            self._queue.put(None)
            raise
        return answers[0]

    def call(self, call: Callable[[], object]) -> None:
        """Make a call after those before it. Returns at once."""
        self._queue.put(call)

    def close(self, last: Callable[[], object], *, seconds: float) -> None:
        """Make the last call, and wait until all are made, but not longer than `seconds`."""
        self._queue.put(last)
        self._queue.put(None)
        seconds = self._limit(seconds)
        try:
            # Not by `join`, after which an interrupted wait leaves the thread marked as ended.
            is_done = self._is_done.wait(seconds)
        except BaseException:
            self.is_abandoned = True
            self._warn("the wait for it was interrupted")
            raise
        if is_done:
            self._thread.join()
        else:
            self.is_abandoned = True
            _away.add(self._store)
            self._warn(f"no answer within {seconds:.0f} s")

    def _limit(self, seconds: float) -> float:
        return min(seconds, _SHORT_SECONDS) if self._store in _away else seconds

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            if self._attempt(call) and self._kept:
                self._repeat()
        for pause in _PAUSES_SECONDS:
            if self._kept and not self.is_abandoned:
                time.sleep(pause)
                self._repeat()
        self._is_done.set()

    def _repeat(self) -> None:
        kept, self._kept = self._kept, []
        for call in kept:
            self._attempt(call)
        if not self._kept and not self.is_abandoned:
            logger.info("MLflow has what it missed.")

    def _attempt(self, call: Callable[[], object]) -> bool:
        if self.is_abandoned:
            return False
        try:
            call()
        # The answer of a proxy that is no MLflow may be any error, and none may end a training.
        except Exception as error:  # noqa: BLE001
            self._kept.append(call)
            self._warn(first_line(error))
            return False
        _away.discard(self._store)
        return True

    def _warn(self, reason: str) -> None:
        self._reason = reason
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "MLflow does not record everything (%s). The run directory has all results; %s",
                reason,
                self._remedy,
            )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message that says what is wrong.

    It is without credentials and private paths, and without what SQLAlchemy puts before the words of a
    database: how it came to call it, and the type of the driver's error.
    """
    lines = (str(error).strip() or type(error).__name__).splitlines()
    text = next((line for line in lines if not line.startswith(_PREAMBLE)), lines[0])
    text = without_private_parts(_DRIVERS_ERROR.sub("", text))
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."
