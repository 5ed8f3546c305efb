"""The progress of a training or a prediction: a bar on a terminal, else a log line every few seconds."""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

logger = logging.getLogger(__name__)


class BestSoFar(NamedTuple):
    """The best evaluation of a training so far.

    Args:
        monitor: name of the monitored figure, such as `val/f1_macro`.
        value: of the figure; None: no evaluation had one.
        epoch: at the end of which it was found; None as for `value`.
        patience_left: further evaluations without an improvement that end the training; None: none do.
    """

    monitor: str
    value: float | None = None
    epoch: float | None = None
    patience_left: int | None = None

    def __str__(self) -> str:
        parts = []
        if self.value is not None:
            parts.append(f"best {self.monitor} {self.value:.4f} in epoch {self.epoch:.4g}")
        if self.patience_left is not None:
            parts.append(f"patience {self.patience_left}")
        return ", ".join(parts)


class TrainingProgress(Protocol):
    """Shows the progress of a training. Rates are averages of this process, without evaluations."""

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

    def evaluated(self, *, step: int, best: BestSoFar) -> None:
        """Show that an evaluation has ended, and what it led to is saved.

        Args:
            step: number of the last update before it.
            best: evaluation so far.
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

    def evaluated(self, *, step: int, best: BestSoFar) -> None:
        return None


def _terminal_may_be_gone() -> AbstractContextManager[None]:
    """Keep a progress that nobody sees from ending a training, which still has to save its state."""
    return suppress(OSError)


class _Bar(Progress):
    """A bar with lines below it, which need not fit beside it."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(task.fields["below"]) for task in self.tasks if task.fields["below"])


class _Console:
    """A bar on a terminal, else a log line now and then; a context.

    Args:
        name: of what is shown.
        total: at which the bar is full; None: not known.
        completed: of it, at the start.
        console: where the bar is drawn, if it is a terminal; None is standard error.
        seconds_between_lines: between two log lines, if there is no terminal.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        total: float | None,
        completed: int = 0,
        console: Console | None,
        seconds_between_lines: float,
        clock: Callable[[], float],
    ) -> None:
        console = console or Console(stderr=True)
        self._clock = clock
        self._seconds_between_lines = seconds_between_lines
        self._bar = _Bar(
            TextColumn(name),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar_id = self._bar.add_task(
            "", total=total, completed=completed, text="", left="", below=""
        )
        self._began = self._last_line = clock()

    def __enter__(self) -> Self:
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

    def _seconds(self) -> float:
        """Return the time since the start."""
        return max(self._clock() - self._began, 1e-9)

    def _draw(
        self, *, completed: float, total: float | None, text: str, left: str, below: str = ""
    ) -> None:
        with _terminal_may_be_gone():
            self._bar.update(
                self._bar_id, completed=completed, total=total, text=text, left=left, below=below
            )

    def _line_is_due(self, *, is_last: bool = False) -> bool:
        """Whether a line is to be logged now; then the next one is due later."""
        now = self._clock()
        is_due = now - self._last_line >= self._seconds_between_lines or is_last
        if not (self._bar.disable and is_due):
            return False
        self._last_line = now
        return True


class ConsoleProgress(_Console):
    """Shows loss, the best evaluation so far, examples/s, tokens/s and the time left of the command.

    The time left is that of the updates and evaluations that are left, at the mean pace of those that
    this process has made, if early stopping does not end them. The report on val at the end counts as an
    evaluation. Before the first evaluation has been measured, it is a lower bound.

    Args:
        total_steps: updates of the whole run.
        first_step: updates done before this process started.
        eval_steps: updates between two evaluations; there is also one after the last.
        evaluated_step: step of the last evaluation before this process started.
        best: evaluation before this process started; None: nothing is shown before the first.
        console: see `_Console`, as the others.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        first_step: int = 0,
        eval_steps: int,
        evaluated_step: int = 0,
        best: BestSoFar | None = None,
        console: Console | None = None,
        seconds_between_lines: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            "training",
            total=total_steps,
            completed=first_step,
            console=console,
            seconds_between_lines=seconds_between_lines,
            clock=clock,
        )
        self._total = total_steps
        self._first = first_step
        self._eval_steps = eval_steps
        self._evaluated_step = evaluated_step
        self._best = best
        self._examples = self._tokens = self._n_evaluations = 0
        self._updating = self._evaluating = 0.0  # seconds

    def update(self, *, step: int, loss: float, examples: int, tokens: int) -> None:
        self._examples += examples
        self._tokens += tokens
        self._updating = self._seconds() - self._evaluating
        seconds = max(self._updating, 1e-9)
        shown = ", ".join(
            part
            for part in (
                f"loss {loss:.4f}",
                str(self._best or ""),
                f"{self._examples / seconds:.1f} examples/s",
                f"{self._tokens / seconds:.0f} tokens/s",
            )
            if part
        )
        left = self._left(step)
        self._draw(
            completed=step, total=self._total, text=f"{step}/{self._total}", left=left, below=shown
        )
        if self._line_is_due(is_last=step == self._total):
            logger.info("step %d/%d: %s, %s", step, self._total, shown, left)

    def evaluated(self, *, step: int, best: BestSoFar) -> None:
        self._n_evaluations += 1
        self._evaluating = self._seconds() - self._updating
        self._evaluated_step = step
        self._best = best

    def _left(self, step: int) -> str:
        per_update = self._updating / max(step - self._first, 1)
        per_evaluation = self._evaluating / max(self._n_evaluations, 1)
        n_evaluations = self._n_due(self._total) - self._n_due(self._evaluated_step) + 1
        seconds = per_update * (self._total - step) + per_evaluation * n_evaluations
        bound = "" if self._n_evaluations else "at least "
        return f"{bound}{timedelta(seconds=round(seconds))} left"

    def _n_due(self, step: int) -> int:
        """Return how many evaluations there are up to a step."""
        is_extra = step == self._total and step % self._eval_steps > 0
        return step // self._eval_steps + is_extra


class PostsProgress(_Console):
    """Shows how many posts are predicted, posts/s and the remaining time.

    Args:
        console: see `_Console`, as the others.
    """

    def __init__(
        self,
        *,
        console: Console | None = None,
        seconds_between_lines: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            "predicting",
            total=None,
            console=console,
            seconds_between_lines=seconds_between_lines,
            clock=clock,
        )
        self._posts = 0

    def update(self, *, posts: int, fraction: float | None) -> None:
        """Show that more is done.

        Args:
            posts: that were predicted since the last call.
            fraction: of the input that is done, from 0 to 1; None: its size is not known.
        """
        self._posts += posts
        seconds = self._seconds()
        rate = f"{self._posts:,} posts, {self._posts / seconds:,.1f} posts/s"
        left = ""
        if fraction:
            left = f"{timedelta(seconds=round(seconds / fraction - seconds))} left"
        total = None if fraction is None else 1.0
        self._draw(completed=fraction or 0.0, total=total, text=rate, left=left)
        if self._line_is_due():
            logger.info(", ".join(filter(None, (rate, left))))
