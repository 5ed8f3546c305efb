import ctypes
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
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


def test_an_error_of_mlflows_own_arrives_without_mlflow(process, settings, output_dir):
    tracker = process.open(**settings)
    MlflowClient(f"sqlite:///{output_dir}/mlflow.db").delete_run(tracker.run_id)
    with pytest.raises(RuntimeError, match=r"^MlflowException: .*must be in the 'active' state"):
        tracker.log_metrics({"loss": 1.0}, step=1)


def test_warnings_are_logged_where_the_call_was_made(process, settings, caplog):
    process.open(**settings, run_id="0" * 32).finish("FINISHED")
    (record,) = [record for record in caplog.records if record.name.endswith("tracking.mlflow")]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"MLflow has no run {'0' * 32} to resume; a new run starts."


def test_the_environment_is_that_of_the_call(process, settings, monkeypatch):
    away = {**settings, "uri": "http://127.0.0.1:1"}
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "no number")
    with pytest.raises(ValueError, match="no number"):
        process.open(**away)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match="can be reached"):
        process.open(**away)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    with pytest.raises(ConfigError, match="can be reached"):
        process.open(**away)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_that_stop_a_training_do_not_stop_it(process, settings, stored, number):
    tracker = process.open(**settings)
    os.kill(pid_of(process), number)
    tracker.finish("KILLED")
    assert stored(tracker).info.status == "KILLED"


@pytest.fixture
def interrupt():
    """Raise KeyboardInterrupt after some seconds."""

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def another():
    """A process that may be ill-treated."""
    process = MlflowProcess()
    yield process
    process.close()


def test_a_run_whose_opening_is_interrupted_is_ended_and_the_next_one_opens(
    another, settings, output_dir, interrupt
):
    # It is still importing.
    interrupt(0.1)
    with pytest.raises(KeyboardInterrupt):
        another.open(**{**settings, "experiment": "interrupted"})
    tracker = another.open(**{**settings, "experiment": "interrupted", "run_name": "next"})
    tracker.finish("FINISHED")

    client = MlflowClient(f"sqlite:///{output_dir}/mlflow.db")
    experiment = client.get_experiment_by_name("interrupted").experiment_id
    runs = {run.info.run_name: run.info.status for run in client.search_runs([experiment])}
    assert runs == {"a run": "KILLED", "next": "FINISHED"}


def test_an_interrupted_call_is_carried_out_and_the_next_answer_is_whole(
    another, settings, output_dir, interrupt
):
    tracker = another.open(**settings)
    os.kill(pid_of(another), signal.SIGSTOP)
    interrupt(0.2)
    with pytest.raises(KeyboardInterrupt):
        tracker.log_metrics({"loss": 1.0}, step=1)
    os.kill(pid_of(another), signal.SIGCONT)
    tracker.log_metrics({"loss": 2.0}, step=2)
    tracker.finish("KILLED")
    history = MlflowClient(f"sqlite:///{output_dir}/mlflow.db").get_metric_history(
        tracker.run_id, "loss"
    )
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0)]


def test_a_server_that_hangs_does_not_hold_up_who_was_interrupted(
    another, settings, interrupt, monkeypatch, caplog
):
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.5)
    tracker = another.open(**settings)
    os.kill(pid_of(another), signal.SIGSTOP)
    interrupt(0.2)
    with pytest.raises(KeyboardInterrupt):
        tracker.log_metrics({"loss": 1.0}, step=1)
    tracker.finish("KILLED")
    assert "has ended" in caplog.text
    another._process.wait(timeout=20)


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
        # Its standard error, which the child has open too, ends with the child.
        assert parent.communicate(timeout=60) == ("", "")
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running()


def test_it_is_not_imported_before_it_is_asked_for():
    code = (
        "import sys\nimport psy_agents_noaug.tracking.process\nsys.exit('mlflow' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("argument", [threading.Lock(), ctypes.c_char_p(b"x")])
def test_an_error_with_what_cannot_be_sent_arrives_as_text(argument):
    error = module._portable(ValueError("no lock", argument))
    assert str(pickle.loads(pickle.dumps(error))).startswith("ValueError: ('no lock', ")


@pytest.mark.parametrize("stop", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_a_call_that_could_not_be_made_is_not_waited_for(
    process, settings, stored, monkeypatch, stop
):
    tracker = process.open(**settings)

    def start(thread):
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(type(stop)):
            tracker.log_metrics({"loss": 1.0}, step=1)
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 1)
    tracker.finish("FINISHED")
    assert stored(tracker).info.status == "FINISHED"
