"""The progress of a training: a bar on a terminal, otherwise a log line every few seconds."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)


class TrainingProgress(Protocol):
    """Shows the progress of a training. Rates are averages since this process started."""

    def __enter__(self) -> "TrainingProgress": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, *, step: int, loss: float, examples: int, tokens: int) -> None:
        """Show an update.

        Args:
            step: number of the update.
            loss: mean loss of its examples.
            examples: in the update.
            tokens: in the update, without padding.
        """


class NullProgress:
    """Shows nothing."""

    def __enter__(self) -> "NullProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def update(self, *, step: int, loss: float, examples: int, tokens: int) -> None:
        return None


def _terminal_may_be_gone() -> AbstractContextManager[None]:
    """Keep a progress that nobody sees from ending a training, which still has to save its state."""
    return suppress(OSError)


class ConsoleProgress:
    """Shows loss, examples/s, tokens/s and the remaining time.

    Args:
        total_steps: updates of the whole run.
        first_step: updates done before this process started.
        console: where the bar is drawn, if it is a terminal; None is standard error.
        seconds_between_lines: between two log lines, if there is no terminal.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        first_step: int = 0,
        console: Console | None = None,
        seconds_between_lines: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        console = console or Console(stderr=True)
        self._total = total_steps
        self._first = first_step
        self._clock = clock
        self._seconds_between_lines = seconds_between_lines
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[rates]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar_id = self._bar.add_task("", total=total_steps, completed=first_step, rates="")
        self._examples = self._tokens = 0
        self._began = self._last_line = clock()

    def __enter__(self) -> "ConsoleProgress":
        self._began = self._last_line = self._clock()
        with _terminal_may_be_gone():
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _terminal_may_be_gone():
            self._bar.stop()

    def update(self, *, step: int, loss: float, examples: int, tokens: int) -> None:
        self._examples += examples
        self._tokens += tokens
        now = self._clock()
        seconds = max(now - self._began, 1e-9)
        rates = (
            f"loss {loss:.4f}, {self._examples / seconds:.1f} examples/s, "
            f"{self._tokens / seconds:.0f} tokens/s"
        )
        with _terminal_may_be_gone():
            self._bar.update(self._bar_id, completed=step, rates=rates)
        is_due = now - self._last_line >= self._seconds_between_lines or step == self._total
        if self._bar.disable and is_due:
            self._last_line = now
            left = seconds / max(step - self._first, 1) * (self._total - step)
            logger.info(
                "step %d/%d: %s, %s left", step, self._total, rates, timedelta(seconds=round(left))
            )
