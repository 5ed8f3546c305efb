import io
import logging
import re

import pytest
from rich.console import Console

from psy_agents_noaug.training.progress import BestSoFar, ConsoleProgress, NullProgress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="psy_agents_noaug")
    return lambda: [record.getMessage() for record in caplog.records]


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=200)


def test_without_a_terminal_a_line_says_loss_rates_and_the_time_left(clock, lines):
    screen = console(terminal=False)
    with ConsoleProgress(total_steps=100, eval_steps=50, console=screen, clock=clock) as progress:
        for step in range(1, 11):
            clock.now += 2.0
            progress.update(step=step, loss=0.5, examples=16, tokens=1000)
    # 20 s for 10 steps; lines 15 s apart.
    assert lines() == [
        "step 8/100: loss 0.5000, 8.0 examples/s, 500 tokens/s, at least 0:03:04 left",
    ]
    assert screen.file.getvalue().strip() == ""


def test_lines_are_seconds_apart_and_the_last_step_has_one(clock, lines):
    progress = ConsoleProgress(
        total_steps=20,
        eval_steps=20,
        console=console(terminal=False),
        seconds_between_lines=5.0,
        clock=clock,
    )
    with progress:
        for step in range(1, 21):
            clock.now += 1.0
            progress.update(step=step, loss=1.0, examples=1, tokens=1)
    assert [line.split(":")[0] for line in lines()] == [f"step {k}/20" for k in (5, 10, 15, 20)]
    assert lines()[-1].endswith("0:00:00 left")


def test_a_resumed_run_counts_its_own_steps_alone(clock, lines):
    progress = ConsoleProgress(
        total_steps=100,
        first_step=90,
        eval_steps=25,
        evaluated_step=75,
        best=BestSoFar("val/f1_macro", 0.5, 2.5, 1),
        console=console(terminal=False),
        clock=clock,
    )
    clock.now += 500  # between making and entering nothing is counted
    with progress:
        for step in range(91, 96):
            clock.now += 4.0
            progress.update(step=step, loss=1.0, examples=8, tokens=80)
    assert lines() == [
        "step 94/100: loss 1.0000, best val/f1_macro 0.5000 in epoch 2.5, patience 1, "
        "2.0 examples/s, 20 tokens/s, at least 0:00:24 left"
    ]


def test_on_a_terminal_there_is_a_bar_and_no_line(clock, lines):
    screen = console(terminal=True)
    with ConsoleProgress(total_steps=4, eval_steps=4, console=screen, clock=clock) as progress:
        for step in range(1, 5):
            clock.now += 20.0
            progress.update(step=step, loss=0.25, examples=10, tokens=200)
    assert lines() == []
    shown = screen.file.getvalue()
    assert "4/4" in shown
    assert "loss 0.2500, 0.5 examples/s, 10 tokens/s" in shown


def test_no_time_at_all_is_no_division_by_zero(clock, lines):
    with ConsoleProgress(
        total_steps=1, eval_steps=1, console=console(terminal=False), clock=clock
    ) as progress:
        progress.update(step=1, loss=0.0, examples=1, tokens=1)
    assert len(lines()) == 1


def test_a_null_progress_says_nothing(lines, capsys):
    with NullProgress() as progress:
        progress.update(step=1, loss=0.0, examples=1, tokens=1)
        progress.evaluated(step=1, best=BestSoFar("val/f1_macro"))
    assert lines() == []
    assert capsys.readouterr().out == ""


class Training:
    """A training of known pace: what is left of it is known at every update."""

    REPORT = 12.0

    def __init__(self, clock, *, total: int, eval_steps: int) -> None:
        self.clock, self.total, self.eval_steps = clock, total, eval_steps

    def events(self):
        """Yield (`update` or `evaluated`, step, seconds that it takes)."""
        for step in range(1, self.total + 1):
            yield "update", step, 1.5
            if step % self.eval_steps == 0 or step == self.total:
                yield "evaluated", step, 11.0 if step % 20 else 13.0

    def shown(self, lines, *, begin: int = 0) -> dict[int, tuple[float, float]]:
        """Return by step the seconds that were said to be left, and that were."""
        events = [event for event in self.events() if event[1] > begin]
        moments, found = [], {}
        evaluated = begin // self.eval_steps * self.eval_steps
        progress = ConsoleProgress(
            total_steps=self.total,
            first_step=begin,
            eval_steps=self.eval_steps,
            evaluated_step=evaluated,
            console=console(terminal=False),
            seconds_between_lines=0.0,
            clock=self.clock,
        )
        with progress:
            for kind, step, seconds in events:
                self.clock.now += seconds
                if kind == "evaluated":
                    progress.evaluated(step=step, best=BestSoFar("val/f1_macro", 0.5, 1.0, 2))
                else:
                    progress.update(step=step, loss=1.0, examples=4, tokens=40)
                    moments.append((step, self.clock.now))
        end = self.clock.now + self.REPORT
        for (step, moment), line in zip(moments, lines(), strict=True):
            hours, minutes, left = map(int, re.search(r"(\d+):(\d+):(\d+) left", line).groups())
            found[step] = (3600 * hours + 60 * minutes + left, end - moment)
        return found


@pytest.mark.parametrize(("total", "eval_steps"), [(100, 10), (95, 10), (30, 1), (64, 64)])
@pytest.mark.parametrize("begin", [0, 23])
def test_the_time_left_has_the_evaluations_and_the_report_in_it(
    clock, lines, total, eval_steps, begin
):
    shown = Training(clock, total=total, eval_steps=eval_steps).shown(lines, begin=begin)
    first_known = (begin // eval_steps + 1) * eval_steps + 1
    for step, (said, left) in shown.items():
        if step >= first_known:
            assert said == pytest.approx(left, rel=0.2, abs=2.0), step
        else:
            assert said < left


def test_before_an_evaluation_is_measured_the_time_left_is_a_lower_bound(clock, lines):
    Training(clock, total=20, eval_steps=10).shown(lines)
    assert ["at least" in line for line in lines()] == [True] * 10 + [False] * 10


def test_rates_are_of_the_updates_without_the_evaluations(clock, lines):
    Training(clock, total=20, eval_steps=10).shown(lines)
    assert all("2.7 examples/s, 27 tokens/s" in line for line in lines()[1::2])


def test_the_best_evaluation_and_the_patience_left_are_shown_once_there_is_one(clock, lines):
    Training(clock, total=4, eval_steps=2).shown(lines)
    assert ["best val/f1_macro 0.5000 in epoch 1, patience 2" in line for line in lines()] == [
        False,
        False,
        True,
        True,
    ]


def test_without_a_value_or_early_stopping_less_is_shown():
    assert str(BestSoFar("val/f1_macro")) == ""
    assert str(BestSoFar("val/f1_macro", patience_left=3)) == "patience 3"
    assert (
        str(BestSoFar("val/f1_macro", 0.25, 1.3333333)) == "best val/f1_macro 0.2500 in epoch 1.333"
    )


def test_a_narrow_terminal_shows_the_time_left_and_the_best(clock):
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with ConsoleProgress(total_steps=2000, eval_steps=1, console=screen, clock=clock) as progress:
        clock.now += 5.0
        progress.evaluated(step=1, best=BestSoFar("val/f1_macro", 0.5466, 3.0, 2))
        progress.update(step=1, loss=0.25, examples=16, tokens=3000)
    last = screen.file.getvalue().split("\x1b[2K")[-1]
    assert "1/2000" in last
    assert "left\n" in last
    assert "best val/f1_macro 0.5466 in epoch 3, patience 2" in last
