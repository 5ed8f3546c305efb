import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.tracking.mlflow import MlflowTracker

SQLALCHEMY_POOL_SIZE = 5
# MLflow's own use of SQLAlchemy; its first SQLite store warns once per process.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory):
    """One store for all tests of the module: making one takes two seconds."""
    return tmp_path_factory.mktemp("runs") / "out puts"


@pytest.fixture
def start(output_dir):
    """Start trackers that are closed when the test is over."""
    trackers = []

    def start_one(**changes):
        settings = {
            "uri": None,
            "experiment": "criteria",
            "run_name": "a run",
            "output_dir": output_dir,
            "system_metrics": False,
        }
        trackers.append(MlflowTracker(**{**settings, **changes}))
        return trackers[-1]

    yield start_one
    for tracker in trackers:
        tracker.finish("KILLED")


@pytest.fixture
def stored(output_dir):
    """Read a run back from the store, past the tracker, when all calls so far have been made."""

    def read(tracker):
        settle(tracker)
        return in_store(output_dir).get_run(tracker.run_id)

    return read


def settle(tracker):
    if not tracker._finished:
        is_reached = threading.Event()
        tracker._delivery.call(is_reached.set)
        assert is_reached.wait(20)


def in_store(output_dir):
    return MlflowClient(f"sqlite:///{output_dir}/mlflow.db")


def no_answer(*args, **kwargs):
    raise MlflowException("no answer", error_code=TEMPORARILY_UNAVAILABLE)


# First in the file, because the first tracker makes the store.
def test_the_store_is_made_without_a_word_below_the_output_directory(start, output_dir, capfd):
    start()

    assert capfd.readouterr() == ("", "")
    assert (output_dir / "mlflow.db").exists()


def test_nested_params_become_dotted_keys_with_values_as_in_the_config(start, stored):
    tracker = start()
    tracker.log_params(
        {
            "seed": 1,
            "training": {"amp": "bf16", "learning_rate": 1e-5, "resume": None, "fused": True},
            "model": {"layers": [1, 2], "lora": {}},
            "data": {"dir": Path("redsm5")},
        }
    )

    assert stored(tracker).data.params == {
        "seed": "1",
        "training.amp": "bf16",
        "training.learning_rate": "1e-05",
        "training.resume": "null",
        "training.fused": "true",
        "model.layers": "[1, 2]",
        "model.lora": "{}",
        "data.dir": "redsm5",
    }


def test_a_param_longer_than_mlflow_takes_is_read_back_from_its_chunks(start, stored):
    value = "".join(str(number) for number in range(5000))
    assert 2 * MAX_PARAM_VAL_LENGTH < len(value) <= 4 * MAX_PARAM_VAL_LENGTH
    tracker = start()
    tracker.log_params({"search_space": value})
    params = stored(tracker).data.params

    keys = ["search_space", *(f"search_space.{number}" for number in range(1, len(params)))]
    assert "".join(params[key] for key in keys) == value


def test_more_params_and_metrics_than_one_batch_holds_all_arrive(start, stored):
    tracker = start()
    tracker.log_params({f"p{number}": number for number in range(201)})
    tracker.log_metrics({f"m{number}": number for number in range(1001)}, step=1)
    data = stored(tracker).data

    assert data.params == {f"p{number}": str(number) for number in range(201)}
    assert data.metrics == {f"m{number}": number for number in range(1001)}


def test_our_metric_keys_are_kept_as_they_are(start, stored):
    metrics = {"val/per_criterion/A.1/f1": 0.5, "at_0.5/f1_macro": 1, "test/loss": 0.25}
    tracker = start()
    tracker.log_metrics(metrics, step=3)

    assert stored(tracker).data.metrics == metrics


@pytest.mark.parametrize("key", ["a//b", "../a", "a/", ".", "Depressed (mood)", "", "x" * 300])
def test_a_key_that_mlflow_refuses_is_made_valid(start, stored, key):
    tracker = start()
    tracker.log_metrics({key: 1.0}, step=1)
    tracker.log_params({key: "v"})

    assert list(stored(tracker).data.metrics.values()) == [1.0]
    assert list(stored(tracker).data.params.values()) == ["v"]


def test_keys_that_differ_only_in_what_mlflow_refuses_stay_apart(start, stored):
    tracker = start()
    tracker.log_metrics({"a(b": 1.0, "a)b": 2.0, "a_b": 3.0}, step=1)

    assert sorted(stored(tracker).data.metrics.values()) == [1.0, 2.0, 3.0]


def test_undefined_metrics_are_skipped_and_steps_are_kept(start, stored, output_dir):
    tracker = start()
    tracker.log_metrics({"val/f1": 0.5, "val/auroc": None}, step=10)
    tracker.log_metrics({"val/f1": 0.75, "val/auroc": None}, step=20)

    assert stored(tracker).data.metrics == {"val/f1": 0.75}
    history = in_store(output_dir).get_metric_history(tracker.run_id, "val/f1")
    assert [(entry.step, entry.value) for entry in history] == [(10, 0.5), (20, 0.75)]


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_store_has_the_status_that_the_run_finished_with(start, stored, status):
    tracker = start()
    assert stored(tracker).info.status == "RUNNING"
    tracker.finish(status)
    tracker.finish("FINISHED")

    assert stored(tracker).info.status == status
    assert stored(tracker).info.end_time is not None


def test_a_file_and_a_folder_land_among_the_artifacts_of_the_output_directory(
    start, stored, output_dir, tmp_path
):
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "test.jsonl").write_text("{}\n")
    tracker = start()
    tracker.log_artifact(tmp_path / "metrics.json")
    tracker.log_artifact(tmp_path / "predictions")

    settle(tracker)
    folder = next((output_dir / "mlartifacts").rglob(f"{tracker.run_id}/artifacts"))
    assert (folder / "metrics.json").read_text() == "{}"
    assert (folder / "predictions" / "test.jsonl").read_text() == "{}\n"


def test_a_missing_artifact_is_an_error(start, tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must be a file or folder"):
        start().log_artifact(tmp_path / "missing.json")


def test_tags_are_kept_replaced_and_chunked(start, stored):
    tracker = start()
    tracker.set_tags({"task": "criteria", "note": "a" * MAX_TAG_VAL_LENGTH + "b"})
    tracker.set_tags({"task": "joint"})
    tags = stored(tracker).data.tags

    assert tags["task"] == "joint"
    assert (tags["note"], tags["note.1"]) == ("a" * MAX_TAG_VAL_LENGTH, "b")


def test_a_run_can_be_shown_below_its_study(start, stored):
    study = start(run_name="study")
    trial = start(run_name="trial", parent_run_id=study.run_id)

    assert stored(trial).data.tags["mlflow.parentRunId"] == study.run_id
    assert stored(trial).info.run_name == "trial"


def test_two_trackers_in_one_process_do_not_mix(start, stored):
    first, second = start(), start()
    first.log_metrics({"loss": 1.0}, step=1)
    second.log_metrics({"loss": 2.0}, step=1)
    first.finish("FINISHED")

    assert stored(first).data.metrics == {"loss": 1.0}
    assert stored(second).data.metrics == {"loss": 2.0}
    assert stored(second).info.status == "RUNNING"


def test_resuming_reopens_the_same_run_and_keeps_its_metrics(start, stored):
    first = start()
    first.log_metrics({"loss": 1.0}, step=1)
    first.finish("KILLED")
    resumed = start(run_id=first.run_id)
    assert stored(resumed).info.status == "RUNNING"
    resumed.log_metrics({"other": 2.0}, step=2)
    resumed.finish("FINISHED")

    assert resumed.run_id == first.run_id
    assert stored(first).data.metrics == {"loss": 1.0, "other": 2.0}
    assert stored(first).info.status == "FINISHED"


def test_the_params_of_a_resumed_run_may_be_the_same_new_or_changed(start, stored):
    long = "x" * (MAX_PARAM_VAL_LENGTH + 1)
    first = start()
    first.log_params({"same": 1, "long": long, "training": {"epochs": 2}})
    settle(first)
    resumed = start(run_id=first.run_id)
    resumed.log_params({"same": 1, "long": long, "training": {"epochs": 3}, "new": 4})
    data = stored(resumed).data

    assert data.params["training.epochs"] == "2"
    assert data.params["new"] == "4"
    assert {key: value for key, value in data.tags.items() if key.startswith("resumed.")} == {
        "resumed.training.epochs": "3"
    }


def test_a_setting_that_returns_to_its_first_value_does_not_leave_a_stale_tag(start, stored):
    first = start()
    run_id = first.run_id
    for epochs in (2, 3, 2):
        last = start(run_id=run_id)
        last.log_params({"epochs": epochs})
        last.finish("KILLED")

    assert stored(last).data.tags["resumed.epochs"] == "2"


@pytest.mark.parametrize("unknown", ["0123456789abcdef0123456789abcdef", "not/an id"])
def test_resuming_a_run_that_the_store_does_not_have_starts_a_new_one(start, caplog, unknown):
    with caplog.at_level(logging.WARNING):
        tracker = start(run_id=unknown)

    assert tracker.run_id != unknown
    assert "a new run starts" in caplog.text


def test_resuming_a_deleted_run_starts_a_new_one(start, output_dir, caplog):
    deleted = start()
    deleted.finish("FINISHED")
    in_store(output_dir).delete_run(deleted.run_id)
    with caplog.at_level(logging.WARNING):
        tracker = start(run_id=deleted.run_id)

    assert tracker.run_id != deleted.run_id
    assert "was deleted; a new run starts" in caplog.text


def test_a_deleted_experiment_is_an_error_that_says_how_to_restore_it(start, output_dir):
    client = in_store(output_dir)
    number = client.create_experiment("old")
    client.delete_experiment(number)
    with pytest.raises(ConfigError, match=rf"mlflow experiments restore -x {number}"):
        start(experiment="old")


def test_what_the_store_missed_arrives_when_it_answers_again(start, stored, monkeypatch, caplog):
    tracker = start()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(tracker._client, "log_batch", no_answer)
        tracker.log_params({"seed": 1})
        tracker.log_metrics({"loss": 1.0}, step=1)
        settle(tracker)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "MLflow does not record everything (no answer)" in caplog.text
    tracker.set_tags({"back": "again"})

    assert stored(tracker).data.metrics == {"loss": 1.0}
    assert stored(tracker).data.params == {"seed": "1"}
    tracker.finish("FINISHED")
    assert tracker.failure is None


def test_calls_that_fail_until_the_end_are_repeated_there(start, stored, monkeypatch):
    tracker = start()
    made = []

    def fails_twice(*args, **kwargs):
        made.append(args)
        if len(made) < 3:
            no_answer()

    monkeypatch.setattr(tracker._client, "set_terminated", fails_twice)
    tracker.finish("FINISHED")
    assert (len(made), tracker.failure) == (3, None)


def test_what_is_refused_to_the_end_is_warned_of_once_and_the_run_is_closed(
    start, stored, monkeypatch, caplog
):
    def full(*args):
        raise OSError("No space left on device")

    tracker = start()
    monkeypatch.setattr(tracker._client, "log_artifact", full)
    with caplog.at_level(logging.WARNING):
        tracker.log_artifact(Path(__file__))
        tracker.log_artifact(Path(__file__))
        tracker.finish("FINISHED")

    assert len(caplog.records) == 1
    assert tracker.failure == "No space left on device"
    assert stored(tracker).info.status == "FINISHED"


def test_nothing_waits_for_a_store_that_hangs(start, monkeypatch, caplog):
    tracker = start(patience_seconds=0.5)
    is_over = threading.Event()
    monkeypatch.setattr(tracker._client, "log_batch", lambda *args, **kwargs: is_over.wait(20))
    began = time.monotonic()
    for step in range(100):
        tracker.log_metrics({"loss": 1.0}, step=step)
    assert time.monotonic() - began < 10  # a call that hangs: 20 seconds
    tracker.finish("FINISHED")
    waited = time.monotonic() - began
    is_over.set()

    assert 0.5 <= waited < 15
    assert "no answer within 0 s" in caplog.text
    assert len(caplog.records) == 1


def test_a_metric_is_recorded_once_for_a_step_unless_it_replaces_another_value(
    start, stored, output_dir
):
    first = start()
    first.log_metrics({"f1": 0.25, "speed": 10.0}, step=2)
    first.finish("KILLED")
    resumed = start(run_id=first.run_id)
    resumed.log_metrics({"f1": 0.25, "speed": 20.0}, step=2)
    resumed.log_metrics({"f1": 0.75}, step=2, replaces=True)
    resumed.log_metrics({"f1": 0.75}, step=2, replaces=True)
    resumed.finish("FINISHED")

    client = in_store(output_dir)
    history = {
        key: [point.value for point in client.get_metric_history(first.run_id, key)]
        for key in ("f1", "speed")
    }
    assert {key: sorted(values) for key, values in history.items()} == {
        "f1": [0.25, 0.75],
        "speed": [10.0],
    }
    assert stored(first).data.metrics == {"f1": 0.75, "speed": 10.0}


def test_a_metric_that_is_no_number_is_an_error_and_not_an_outage(start):
    with pytest.raises(ValueError, match="could not convert"):
        start().log_metrics({"loss": "high"}, step=1)


def test_a_run_that_is_deleted_meanwhile_is_warned_of_and_not_raised(start, output_dir, caplog):
    tracker = start()
    in_store(output_dir).delete_run(tracker.run_id)
    tracker.log_metrics({"loss": 1.0}, step=1)
    tracker.log_metrics({"loss": 2.0}, step=2)
    tracker.finish("KILLED")

    assert "must be in the 'active' state" in caplog.text
    assert len(caplog.records) == 1


def test_system_metrics_are_sampled_until_the_run_finishes(start, stored, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker = start(system_metrics=True)
    thread = tracker._monitor._process
    for _ in range(100):
        time.sleep(0.05)
        if len(tracker._monitor.mlflow_logger.data) or tracker._monitor._logging_step > 1:
            break
    tracker.finish("FINISHED")

    assert "system/cpu_utilization_percentage" in stored(tracker).data.metrics
    assert not thread.is_alive()


def test_ten_runs_in_one_process_leave_no_thread_and_no_open_file_behind(start):
    def used():
        return threading.active_count(), len(psutil.Process().open_files())

    threads, files = used()
    for _ in range(10):
        start(system_metrics=True).finish("FINISHED")

    assert used()[0] == threads
    # SQLAlchemy keeps a few connections to a database open for the next call.
    assert used()[1] - files <= SQLALCHEMY_POOL_SIZE


def test_params_carry_neither_a_password_nor_a_home_directory(start, stored, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    tracker = start()
    tracker.log_params({"uri": "http://ada:secret@host", "data": {"dir": "/home/ada/redsm5"}})

    assert stored(tracker).data.params == {"uri": "http://***@host", "data.dir": "~/redsm5"}


def test_a_run_names_neither_its_user_nor_its_host(start, stored):
    run = stored(start())

    assert run.info.user_id == "unknown"
    assert set(run.data.tags) == {"mlflow.runName"}


def test_mlflow_reports_no_usage_and_leaves_the_signals_alone():
    code = (
        "import signal\n"
        "def handlers(): return [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]\n"
        "before = handlers()\n"
        "from psy_agents_noaug.tracking.store import import_mlflow\n"
        "import_mlflow()\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "assert handlers() == before and get_telemetry_client() is None\n"
    )
    # MLflow reports nothing under pytest or in CI anyway.
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:{port}",
        "postgresql://ada:secret@127.0.0.1:{port}/mlflow",
        "sqlite:///{folder}",
        "sqlite:///{folder}/text.db",
        "ftp://ada:secret@nowhere",
        "mysql+no_such_driver://nowhere/mlflow",
    ],
)
def test_a_store_that_cannot_be_used_is_a_config_error_within_seconds(start, tmp_path, uri):
    (tmp_path / "text.db").write_text("this is no database, however long one looks at it\n" * 20)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"`tracking\.uri` must be .*`tracking=none`") as caught:
        start(uri=uri.format(port=free_port(), folder=tmp_path))

    assert time.monotonic() - began < 40  # MLflow itself: 100 seconds
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("missing", ["mlflow", "sqlalchemy"])
def test_without_mlflow_the_error_says_how_to_install_it_or_do_without(start, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ConfigError, match=r"`tracking=none`.*pip install 'psy-agents-noaug\[mlflow\]'"
    ):
        start()
