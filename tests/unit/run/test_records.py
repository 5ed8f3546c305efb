import logging
from pathlib import Path

import pytest

from psy_agents_noaug.config.schema import EvaluateConfig
from psy_agents_noaug.errors import Interrupted, StoppedError
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.evaluate import evaluate
from psy_agents_noaug.run.records import tracking_status
from psy_agents_noaug.run.train import train
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


def test_an_evaluation_of_a_run_in_training_counts_as_one_of_the_run(make_config, caplog):
    def stop(history):
        raise StoppedError

    config = make_config("run_name=one", "resume=auto")
    run = RunDirectory(Path(config.output_dir) / "criteria" / "one")
    evaluation = EvaluateConfig(checkpoint=str(run.best_checkpoint), split="test")
    with pytest.raises(StoppedError):
        train(config, on_evaluation=stop)
    first = evaluate(evaluation, task_name="criteria", explicit={})
    assert first.directory.parent == run.other_evaluations
    train(config)
    with caplog.at_level(logging.INFO):
        assert evaluate(evaluation, task_name="criteria", explicit={}).directory == run.path
    assert "This is evaluation 2 of test" in caplog.text


def test_evaluations_on_other_data_are_counted_apart(tmp_path):
    run = RunDirectory(tmp_path)
    other = RunDirectory(run.other_evaluations / "other")
    assert run.record_evaluation("test", data={"corpus": "a"}) == 1
    assert other.record_evaluation("test", data={"corpus": "b"}) == 1
    assert other.record_evaluation("test", data={"corpus": "a"}) == 2
    assert run.record_evaluation("test", data={"corpus": "a"}) == 3
    assert run.record_evaluation("val", data={"corpus": "a"}) == 1
