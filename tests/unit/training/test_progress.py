import io
import logging

import pytest
from rich.console import Console

from psy_agents_noaug.training.progress import ConsoleProgress, NullProgress


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
    with ConsoleProgress(total_steps=100, console=screen, clock=clock) as progress:
        for step in range(1, 11):
            clock.now += 2.0
            progress.update(step=step, loss=0.5, examples=16, tokens=1000)
    # 20 s for 10 steps; lines 15 s apart.
    assert lines() == [
        "step 8/100: loss 0.5000, 8.0 examples/s, 500 tokens/s, 0:03:04 left",
    ]
    assert screen.file.getvalue().strip() == ""


def test_lines_are_seconds_apart_and_the_last_step_has_one(clock, lines):
    progress = ConsoleProgress(
        total_steps=20, console=console(terminal=False), seconds_between_lines=5.0, clock=clock
    )
    with progress:
        for step in range(1, 21):
            clock.now += 1.0
            progress.update(step=step, loss=1.0, examples=1, tokens=1)
    assert [line.split(":")[0] for line in lines()] == [f"step {k}/20" for k in (5, 10, 15, 20)]
    assert lines()[-1].endswith("0:00:00 left")


def test_a_resumed_run_counts_its_own_steps_alone(clock, lines):
    progress = ConsoleProgress(
        total_steps=100, first_step=90, console=console(terminal=False), clock=clock
    )
    clock.now += 500  # between making and entering nothing is counted
    with progress:
        for step in range(91, 96):
            clock.now += 4.0
            progress.update(step=step, loss=1.0, examples=8, tokens=80)
    assert lines() == ["step 94/100: loss 1.0000, 2.0 examples/s, 20 tokens/s, 0:00:24 left"]


def test_on_a_terminal_there_is_a_bar_and_no_line(clock, lines):
    screen = console(terminal=True)
    with ConsoleProgress(total_steps=4, console=screen, clock=clock) as progress:
        for step in range(1, 5):
            clock.now += 20.0
            progress.update(step=step, loss=0.25, examples=10, tokens=200)
    assert lines() == []
    shown = screen.file.getvalue()
    assert "4/4" in shown
    assert "loss 0.2500, 0.5 examples/s, 10 tokens/s" in shown


def test_no_time_at_all_is_no_division_by_zero(clock, lines):
    with ConsoleProgress(total_steps=1, console=console(terminal=False), clock=clock) as progress:
        progress.update(step=1, loss=0.0, examples=1, tokens=1)
    assert len(lines()) == 1


def test_a_null_progress_says_nothing(lines, capsys):
    with NullProgress() as progress:
        progress.update(step=1, loss=0.0, examples=1, tokens=1)
    assert lines() == []
    assert capsys.readouterr().out == ""
