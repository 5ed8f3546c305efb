import pytest

from psy_agents_noaug.errors import Interrupted, StoppedError
from psy_agents_noaug.run.records import tracking_status
from psy_agents_noaug.tracking.base import NullTracker


class Recorder(NullTracker):
    """Keeps the statuses that it is closed with."""

    def __init__(self):
        self.statuses = []

    def finish(self, status):
        self.statuses.append(status)


def test_a_run_that_ends_is_finished():
    tracker = Recorder()
    with tracking_status(tracker):
        pass
    assert tracker.statuses == ["FINISHED"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Interrupted("SIGTERM", exit_code=143), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (StoppedError(), "KILLED"),
        (ZeroDivisionError(), "FAILED"),
        (SystemExit(1), "FAILED"),
    ],
)
def test_a_run_that_an_error_ends_has_the_status_of_the_error(error, status):
    tracker = Recorder()
    with pytest.raises(type(error)), tracking_status(tracker):
        raise error
    assert tracker.statuses == [status]
