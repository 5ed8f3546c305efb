"""How the process of a command ends: message, exit code, signals, closed streams."""

import signal
import subprocess
import sys

import pytest

from psy_agents_noaug.process import guarded

IN_A_GROUP = """
import signal
import sys
import torch.distributed
from psy_agents_noaug.process import guarded
from psy_agents_noaug.errors import Interrupted

def run():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    if sys.argv[1] == "interrupted":
        raise Interrupted("stopped", exit_code=130)
    if sys.argv[1] == "asked twice":
        leave = torch.distributed.destroy_process_group
        torch.distributed.destroy_process_group = lambda: (signal.raise_signal(signal.SIGTERM), leave())
        signal.raise_signal(signal.SIGTERM)
    return "done"

code = guarded(run)
print(code, torch.distributed.is_initialized())
"""


@pytest.mark.parametrize(
    ("how", "out"),
    [
        ("done", "done\n0 False\n"),
        ("interrupted", "130 False\n"),
        ("asked twice", "143 False\n"),
    ],
)
def test_a_process_leaves_its_group_before_it_ends(how, out):
    done = subprocess.run(
        [sys.executable, "-c", IN_A_GROUP, how], capture_output=True, text=True, check=True
    )
    assert done.stdout == out


def run(program: str, redirection: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program whose `end(work)` ends it as a command that does `work`."""
    start = (
        "import signal, sys\n"
        "from psy_agents_noaug.errors import ConfigError, Interrupted\n"
        "from psy_agents_noaug.process import guarded\n"
        "def end(work):\n"
        "    sys.exit(guarded(work))\n"
    )
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, start + program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


FAILS = """
def work():
    raise ConfigError("wrong")
end(work)
"""


@pytest.mark.faults("standard output or standard error is closed", "the exit code is as ever")
def test_closed_streams_change_no_exit_code():
    assert run("end(lambda: 'done')", ">&-").returncode == 0
    assert run(FAILS, "2>&-").returncode == 2


@pytest.mark.faults("a signal while the result is printed", "no traceback, exit 143")
def test_a_signal_during_the_last_words_is_no_traceback():
    done = run(
        """
class Output:
    def write(self, text):
        signal.raise_signal(signal.SIGTERM)
    def flush(self):
        pass
sys.stdout = Output()
end(lambda: "done")
"""
    )
    assert done.returncode == 143
    assert "Traceback" not in done.stderr


@pytest.mark.faults("a signal while the message of an error is shown", "the message, exit 2")
def test_a_signal_while_an_error_is_shown_changes_nothing():
    done = run(
        """
class Errors:
    def write(self, text):
        signal.raise_signal(signal.SIGTERM)
        sys.__stderr__.write(text)
    def flush(self):
        pass
sys.stderr = Errors()
"""
        + FAILS
    )
    assert (done.returncode, done.stderr) == (2, "ConfigError: wrong\n")


@pytest.mark.faults("the launcher ends a process that has failed", "the error is still shown")
def test_a_signal_after_an_error_does_not_hide_it():
    done = run(
        """
def work():
    try:
        raise ConfigError("wrong")
    finally:  # as the tracker is waited for
        signal.raise_signal(signal.SIGTERM)
end(work)
"""
    )
    assert (done.returncode, done.stderr) == (2, "ConfigError: wrong\n")


@pytest.mark.faults("Ctrl-C twice within a moment", "no traceback, exit 130")
def test_a_second_ctrl_c_before_signals_are_ignored_is_no_traceback():
    done = run(
        """
handle, sent = signal.signal, []
def interrupted(number, handler):
    if handler == signal.SIG_IGN and not sent:
        sent.append(number)
        signal.raise_signal(signal.SIGINT)
    return handle(number, handler)
signal.signal = interrupted
def work():
    signal.raise_signal(signal.SIGINT)
end(work)
"""
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("own_logging")
def test_signal_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    assert guarded(lambda: "") == 0
    assert signal.getsignal(signal.SIGTERM) == before


SWALLOWED = """
import time
class Freed:
    def __del__(self):
        signal.raise_signal(signal.NAME)
        time.sleep(0)
def work():
    freed = Freed()
    del freed
    time.sleep(30)
end(work)
"""


@pytest.mark.faults("a signal while an object is freed, where Python ignores errors", "obeyed")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_that_python_ignores_comes_again(name, code):
    done = run(SWALLOWED.replace("NAME", name))
    assert done.returncode == code
    assert "Traceback" not in done.stderr
