import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.tracking import process as module
from psy_agents_noaug.tracking.process import MlflowProcess, mlflow_process


@pytest.fixture(scope="module")
def process():
    """One for the module: each takes seconds to import MLflow."""
    process = MlflowProcess()
    yield process
    process.close()


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def settings(output_dir):
    return {
        "uri": None,
        "experiment": "criteria",
        "run_name": "a run",
        "output_dir": output_dir,
        "system_metrics": False,
    }


@pytest.fixture
def stored(output_dir):
    return lambda tracker: MlflowClient(f"sqlite:///{output_dir}/mlflow.db").get_run(tracker.run_id)


def pid_of(process):
    return process._process.pid


def test_what_is_logged_is_in_the_store(process, settings, stored):
    tracker = process.open(**settings)
    tracker.log_params({"training": {"epochs": 3}})
    tracker.log_metrics({"loss": 0.5, "undefined": None}, step=7)
    tracker.set_tags({"data.corpus": "abc"})
    tracker.finish("KILLED")
    tracker.finish("FINISHED")

    run = stored(tracker)
    assert run.data.params == {"training.epochs": "3"}
    assert run.data.metrics == {"loss": 0.5}
    assert run.data.tags["data.corpus"] == "abc"
    assert run.info.status == "KILLED"


def test_paths_are_meant_from_here(process, settings, stored, output_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = process.open(**settings)
    tracker.set_tags({"place": str(tmp_path / "here")})
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    Path("splits.json").write_text("{}")
    tracker.log_artifact(Path("splits.json"))
    tracker.finish("FINISHED")

    assert stored(tracker).data.tags["place"] == "./here"
    assert list((output_dir / "mlartifacts").rglob("splits.json"))


def test_two_runs_at_once_are_told_apart(process, settings, stored):
    first, second = process.open(**settings), process.open(**settings)
    first.log_metrics({"loss": 1.0}, step=1)
    second.log_metrics({"loss": 2.0}, step=1)
    first.finish("FINISHED")
    second.log_metrics({"loss": 3.0}, step=2)
    second.finish("FAILED")

    assert stored(first).data.metrics == {"loss": 1.0}
    assert stored(second).data.metrics == {"loss": 3.0}
    assert [stored(run).info.status for run in (first, second)] == ["FINISHED", "FAILED"]


def test_errors_arrive_where_the_call_was_made(process, settings, tmp_path):
    with pytest.raises(ConfigError, match="must be an MLflow store that can be reached"):
        process.open(**{**settings, "uri": "postgresql://user:pw@127.0.0.1:1/none"})
    tracker = process.open(**settings)
    with pytest.raises(FileNotFoundError, match="absent is not there") as caught:
        tracker.log_artifact(tmp_path / "absent")
    assert "in log_artifact" in caught.value.__notes__[0]
    tracker.finish("FINISHED")


def test_errors_that_cannot_travel_say_what_they_were():
    class LocalError(Exception):
        pass

    portable = module._portable(LocalError("why"))
    assert type(portable) is RuntimeError
    assert str(portable) == "LocalError: why"


def test_warnings_are_logged_where_the_call_was_made(process, settings, caplog):
    process.open(**settings, run_id="0" * 32).finish("FINISHED")
    (record,) = [record for record in caplog.records if record.name.endswith("tracking.mlflow")]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"MLflow has no run {'0' * 32} to resume; a new run starts."


def test_the_environment_is_that_of_the_call(process, settings, monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "no number")
    with pytest.raises(Exception, match="no number"):
        process.open(**{**settings, "uri": "http://127.0.0.1:1"})
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    process.open(**settings).finish("FINISHED")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_stop_a_training_do_not_stop_it(process, settings, stored, number):
    tracker = process.open(**settings)
    os.kill(pid_of(process), number)
    tracker.finish("KILLED")
    assert stored(tracker).info.status == "KILLED"


def test_an_interrupted_wait_leaves_the_next_answer_whole(settings, stored):
    class StopError(Exception):
        pass

    def stop(*_):
        raise StopError

    process = MlflowProcess()
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        # It is still importing.
        with pytest.raises(StopError):
            process.open(**settings, run_id=None)
        tracker = process.open(**{**settings, "run_name": "the next"})
        tracker.finish("FINISHED")
    finally:
        signal.signal(signal.SIGALRM, before)
        process.close()
    assert stored(tracker).info.run_name == "the next"


def test_training_goes_on_when_it_dies_and_the_next_run_gets_another(
    settings, stored, caplog, monkeypatch
):
    module._started.cache_clear()
    process = mlflow_process()
    tracker = process.open(**settings)
    os.kill(pid_of(process), signal.SIGKILL)
    process._process.wait()
    tracker.log_metrics({"loss": 1.0}, step=1)
    tracker.finish("FINISHED")
    assert [record.getMessage() for record in caplog.records] == [
        "The process that records in MLflow has ended; the run directory still has everything."
    ]
    with pytest.raises(ConfigError, match="its process ended"):
        process.open(**settings)

    following = mlflow_process().open(**settings)
    following.finish("FINISHED")
    assert stored(following).info.status == "FINISHED"
    mlflow_process().close()
    module._started.cache_clear()


def test_it_ends_when_nobody_is_left_to_ask():
    code = (
        "import time\n"
        "from psy_agents_noaug.tracking.process import mlflow_process\n"
        "print(mlflow_process()._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        # Which the child has open, too.
        assert parent.stderr.read() == ""
    deadline = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_it_is_not_imported_before_it_is_asked_for():
    code = (
        "import sys\nimport psy_agents_noaug.tracking.process\nsys.exit('mlflow' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
