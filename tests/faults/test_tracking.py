"""MLflow that dies, hangs, refuses or forgets: training goes on, and `tracking sync` makes up for it."""

import errno
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.schema import EvaluateConfig, TrainConfig
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.run.evaluate import RunResult, evaluate
from psy_agents_noaug.run.sync import sync
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tracking import delivery
from psy_agents_noaug.tracking import mlflow as tracking
from psy_agents_noaug.training.checkpoint import load_checkpoint

STAND_IN = Path(__file__).with_name("mlflow_stand_in.py")
# Differ between two runs of the same settings.
OWN_PARAMS = ("output_dir", "run_name", "tracking.uri")
OWN_METRICS = ("train/examples_per_second", "train/tokens_per_second")
PATIENCE = 1.0
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


class Server:
    """A stand-in for a tracking server, in a process of its own."""

    def __init__(self) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, str(STAND_IN), str(self._port)])
        for _ in range(100):
            try:
                self.runs()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the stand-in does not start")

    def fail(self, *faults: dict[str, Any]) -> None:
        self._ask("/faults", json.dumps(faults).encode())

    def runs(self) -> dict[str, dict[str, Any]]:
        return dict(self._ask("/state"))

    def forget(self) -> None:
        """End, with all that is in memory, and start again."""
        self.die()
        self.start()

    def die(self) -> None:
        self.process.kill()
        self.process.wait()

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        with urllib.request.urlopen(self.uri + path, data=body, timeout=5) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.die()


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """A server without faults; one that a test stopped or killed is running again after it."""
    yield shared_server
    shared_server.process.send_signal(signal.SIGCONT)
    if shared_server.process.poll() is not None:
        shared_server.start()
    shared_server.fail()


@pytest.fixture(autouse=True)
def no_store_is_away() -> None:
    delivery._away.clear()


@pytest.fixture
def tracked(make_config: Callable[..., TrainConfig], server: Server) -> Callable[..., TrainConfig]:
    """Return a function from further settings to a run that is tracked by the server."""
    return lambda *more: make_config(
        "tracking=mlflow",
        "tracking.system_metrics=false",
        f"tracking.uri={server.uri}",
        f"tracking.patience_seconds={PATIENCE}",
        "run_name=one",
        *more,
    )


def at_evaluation(number: int, action: Callable[[], object]) -> Callable[[list[Any]], None]:
    """Return an observer of a training that acts at an evaluation."""
    return lambda history: action() if len(history) == number else None


def content(run: dict[str, Any]) -> dict[str, Any]:
    """What must be equal in two runs of the same settings."""
    points = {
        key: sorted((int(point["step"]), point["value"]) for point in values)
        for key, values in run["metrics"].items()
    }
    return {
        "status": run["status"],
        "params": {key: value for key, value in run["params"].items() if key not in OWN_PARAMS},
        "tags": run["tags"],
        "metrics": {key: value for key, value in points.items() if key not in OWN_METRICS},
        "steps": {key: [step for step, _ in value] for key, value in points.items()},
        "artifacts": sorted(run["artifacts"]),
    }


def run_of(server: Server, result: RunResult) -> dict[str, Any]:
    manifest = json.loads((result.directory / "manifest.json").read_text())
    return server.runs()[manifest["mlflow_run_id"]]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "MLflow" in r.getMessage() and r.levelno > 20]


LOG_BATCH = "runs/log-batch"
BREAK: dict[str, tuple[Callable[[Server], object], Callable[[Server], object]]] = {
    "dies": (Server.die, Server.start),
    "is stopped": (
        lambda server: server.process.send_signal(signal.SIGSTOP),
        lambda server: (server.process.send_signal(signal.SIGCONT), time.sleep(0.5)),
    ),
    "hangs": (lambda server: server.fail({"path": LOG_BATCH, "answer": "hang"}), Server.fail),
    "answers 500": (lambda server: server.fail({"path": LOG_BATCH, "answer": 500}), Server.fail),
    "answers 403": (lambda server: server.fail({"path": LOG_BATCH, "answer": 403}), Server.fail),
    "is full": (
        lambda server: server.fail(
            {"path": LOG_BATCH, "answer": 507}, {"path": "mlflow-artifacts", "answer": 507}
        ),
        Server.fail,
    ),
    "refuses artifacts": (
        lambda server: server.fail({"path": "mlflow-artifacts", "answer": 403}),
        Server.fail,
    ),
    "loses the run": (Server.forget, lambda server: None),
}


@pytest.mark.parametrize(
    "fault",
    [fault if fault == "hangs" else pytest.param(fault, marks=pytest.mark.slow) for fault in BREAK],
)
@pytest.mark.faults(
    "a tracking server dies, hangs, is stopped, is full, refuses or loses the run during a training",
    "training ends in its own time, one warning; `tracking sync` delivers the rest, once",
)
def test_a_training_outlives_its_server_and_sync_delivers_the_rest(
    tracked: Callable[..., TrainConfig],
    server: Server,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    undisturbed = content(run_of(server, train(tracked("run_name=undisturbed"))))
    assert not warnings_of(caplog)
    injure, mend = BREAK[fault]
    began = time.monotonic()
    result = train(tracked(), on_evaluation=at_evaluation(1, lambda: injure(server)))
    # The calls that fail at once are tried three times at the end, within the patience.
    assert time.monotonic() - began < PATIENCE + 20  # a call that hangs: 30 seconds
    (warning,) = warnings_of(caplog)
    assert f"psy-agents tracking sync {result.directory}" in warning
    assert json.loads((result.directory / "manifest.json").read_text())["status"] == "finished"

    mend(server)
    assert "delivered" in sync(result.directory)
    assert content(run_of(server, result)) == undisturbed
    before = server.runs()
    assert "nothing was missing" in sync(result.directory)
    assert server.runs() == before


@pytest.mark.faults("MLflow hangs during a training", "it takes no longer than without MLflow")
def test_updates_and_evaluations_do_not_wait_for_a_server_that_hangs(
    tracked: Callable[..., TrainConfig], server: Server
) -> None:
    def seconds(*more: str, action: Callable[[], object]) -> float:
        times: list[float] = []

        def observe(history: list[Any]) -> None:
            if len(history) == 1:
                action()
            times.append(time.monotonic())

        train(tracked("training.epochs=8", *more), on_evaluation=observe)
        return times[-1] - times[0]

    own = seconds("tracking=none", "run_name=untracked", action=lambda: None)
    hung = seconds(action=lambda: BREAK["hangs"][0](server))
    assert hung < 3 * own + 10  # a call that hangs: 30 seconds


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=pytest.mark.slow)
        for fault in ("hangs", "answers 500", "refuses artifacts", "loses the run")
    ],
)
@pytest.mark.faults(
    "MLflow fails during an evaluation", "figures and predictions are written, sync delivers"
)
def test_an_evaluation_outlives_its_server_and_sync_delivers_the_rest(
    tracked: Callable[..., TrainConfig],
    server: Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    result = train(tracked())
    evaluation = EvaluateConfig(checkpoint=str(result.directory), split="test")
    own = tracked().tracking.model_dump()

    def judge() -> dict[str, Any]:
        evaluate(evaluation, task_name="criteria", explicit={"tracking": own})
        line = (result.directory / "evaluations.jsonl").read_text().splitlines()[-1]
        return dict(json.loads(line))

    evaluation_id = judge()["mlflow_run_id"]
    undisturbed = content(server.runs()[evaluation_id])
    (result.directory / "predictions" / "test.jsonl").unlink()
    injure, mend = BREAK[fault]
    original = tracking.MlflowTracker.set_tags

    def injured(tracker: tracking.MlflowTracker, tags: dict[str, str]) -> None:
        injure(server)
        original(tracker, tags)

    with monkeypatch.context() as patch:
        patch.setattr(tracking.MlflowTracker, "set_tags", injured)
        began = time.monotonic()
        judge()
    assert time.monotonic() - began < PATIENCE + 20  # a call that hangs: 30 seconds
    assert (result.directory / "predictions" / "test.jsonl").is_file()
    assert len(warnings_of(caplog)) == 1

    mend(server)
    assert "evaluation of test" in sync(result.directory)
    line = json.loads((result.directory / "evaluations.jsonl").read_text().splitlines()[-1])
    found = content(server.runs()[line["mlflow_run_id"]])
    parent = found["tags"].pop("mlflow.parentRunId")
    assert parent in server.runs()
    undisturbed["tags"].pop("mlflow.parentRunId")
    assert found == undisturbed
    assert sync(result.directory).count("nothing was missing") == 2


@pytest.mark.slow
@pytest.mark.faults("SIGTERM while MLflow hangs", "obeyed within seconds, state saved")
def test_sigterm_is_obeyed_while_the_server_hangs(
    overrides: list[str],
    server: Server,
    tmp_path: Path,
    start_script: Callable[..., Any],
) -> None:
    server.fail({"path": LOG_BATCH, "answer": "hang", "after": 1})
    untracked = [item for item in overrides if item != "tracking=none"]
    own = ["tracking.system_metrics=false", f"tracking.uri={server.uri}", "run_name=one"]
    process = start_script("train_criteria.py", *untracked, *own, "training.epochs=5000")
    run = tmp_path / "outputs" / "criteria" / "one"
    last = run / "checkpoints" / "last_checkpoint.pt"
    for _ in range(300):
        if last.is_file():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    done = process.wait()

    assert time.monotonic() - began < 25  # a call that hangs: 30 seconds
    assert done.returncode == 143, done.stderr
    assert "the state is saved" in done.stderr
    assert done.stderr.count("WARNING MLflow") == 1
    assert load_checkpoint(last, task="criteria").step > 0
    server.fail()
    assert "its status" in sync(run)
    (found,) = [run for run in server.runs().values() if run["params"].get("run_name") == "one"][
        -1:
    ]
    rows = (run / "history.csv").read_text().splitlines()[1:]
    assert len(found["metrics"]["train/loss"]) == len(rows)
    assert found["status"] == "KILLED"


@pytest.mark.parametrize(("patience", "number"), [(1.0, None), (60.0, signal.SIGTERM)])
@pytest.mark.faults(
    "MLflow hangs at the end of a training", "the process ends after the patience, or at SIGTERM"
)
def test_the_end_of_a_process_does_not_wait_for_a_server_that_hangs(
    overrides: list[str],
    server: Server,
    tmp_path: Path,
    start_script: Callable[..., Any],
    patience: float,
    number: signal.Signals | None,
) -> None:
    server.fail({"path": LOG_BATCH, "answer": "hang", "after": 3})
    untracked = [item for item in overrides if item != "tracking=none"]
    own = [f"tracking.uri={server.uri}", f"tracking.patience_seconds={patience}", "run_name=one"]
    process = start_script("train_criteria.py", *untracked, *own)
    run = tmp_path / "outputs" / "criteria" / "one"
    for _ in range(300):
        manifest = run / "manifest.json"
        if manifest.is_file() and json.loads(manifest.read_text())["status"] == "finished":
            break
        time.sleep(0.1)
    time.sleep(0.3)
    began = time.monotonic()
    if number is not None:
        process.send_signal(number)
    done = process.wait()

    assert time.monotonic() - began < 25  # a call that hangs: 30 seconds
    assert done.returncode == (0 if number is None else 143), done.stderr
    reason = "no answer" if number is None else "the wait for it was interrupted"
    assert reason in done.stderr


@pytest.mark.faults(
    "a tracking server accepts, but never answers", "refused at the start within seconds"
)
def test_a_server_that_never_answers_is_refused_at_the_start(
    overrides: list[str],
    own_logging: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracking, "_SERVER_PATIENCE_SECONDS", 1.0)
    untracked = [item for item in overrides if item != "tracking=none"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        began = time.monotonic()
        assert main(["train", "task=criteria", *untracked, f"tracking.uri={uri}"]) == 2
    assert time.monotonic() - began < 25  # a request alone: 30 seconds
    assert "can be reached, but is http" in capfd.readouterr().err


@pytest.mark.faults("MLflow is away when a trial of a search starts", "the search goes on")
def test_a_trial_is_trained_although_the_server_is_away(
    tracked: Callable[..., TrainConfig], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    study = "0" * 32
    server.die()
    result = train(tracked(), parent_run_id=study)
    (warning,) = warnings_of(caplog)
    assert "This run is not recorded in MLflow" in warning
    server.start()
    assert "delivered" in sync(result.directory)
    run = run_of(server, result)
    assert run["tags"]["mlflow.parentRunId"] == study
    assert run["status"] == "FINISHED"


@pytest.mark.faults(
    "a run is killed between an evaluation and its checkpoint", "no metric is recorded twice"
)
@pytest.mark.slow
def test_a_resumed_run_has_one_value_of_a_metric_per_step(
    tracked: Callable[..., TrainConfig], server: Server
) -> None:
    undisturbed = content(run_of(server, train(tracked("run_name=undisturbed"))))

    def kill() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(tracked(), on_evaluation=at_evaluation(2, kill))
    resumed = content(run_of(server, train(tracked("resume=auto"))))
    assert resumed["tags"].pop("resumed.resume") == "auto"
    assert resumed == undisturbed


# ---------------------------------------------------------------------------------------- SQLite


@pytest.fixture(scope="module")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests of the module: making one takes two seconds."""
    return tmp_path_factory.mktemp("store")


def _statement(store: Path, statement: str) -> Callable[[], None]:
    def execute() -> None:
        with closing(sqlite3.connect(store / "mlflow.db", isolation_level=None)) as connection:
            connection.execute(statement)

    return execute


@pytest.fixture
def read_only() -> Iterator[list[bool]]:
    """A list: while it is not empty, SQLite files are read-only. (Permissions do not bind root.)"""
    chosen: list[bool] = []

    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA query_only={len(chosen)}")

    sqlalchemy.event.listen(sqlalchemy.Engine, "begin", begin)
    yield chosen
    sqlalchemy.event.remove(sqlalchemy.Engine, "begin", begin)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["table", "locked", "deleted", "full", "read-only"])
@pytest.mark.faults(
    "mlflow.db lost a table, is locked or read-only, its run is deleted, the disk is full of artifacts",
    "training ends, one warning; `tracking sync` delivers the rest",
)
def test_a_training_outlives_its_sqlite_store_and_sync_delivers_the_rest(
    tracked: Callable[..., TrainConfig],
    store_dir: Path,
    read_only: list[bool],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    own = (f"output_dir={store_dir}", "tracking.uri=null", f"run_name={fault}")
    uri = f"sqlite:///{store_dir}/mlflow.db"
    other = sqlite3.connect(store_dir / "mlflow.db", isolation_level=None, timeout=5)

    def injure() -> None:
        client = MlflowClient(uri)
        match fault:
            case "table":
                _statement(store_dir, "ALTER TABLE metrics RENAME TO metrics_lost")()
            case "locked":
                other.execute("BEGIN EXCLUSIVE")
            case "deleted":
                manifest = json.loads(
                    (store_dir / "criteria" / fault / "manifest.json").read_text()
                )
                client.delete_run(manifest["mlflow_run_id"])
            case "full":
                monkeypatch.setattr(LocalArtifactRepository, "log_artifact", _disk_full)
            case "read-only":
                read_only.append(True)

    result = train(tracked(*own), on_evaluation=at_evaluation(1, injure))
    (warning,) = warnings_of(caplog)
    assert "SELECT" not in warning
    assert "raised as a result" not in warning
    if fault == "read-only":
        assert "(attempt to write a readonly database)" in warning
        read_only.clear()
    if fault == "table":
        _statement(store_dir, "ALTER TABLE metrics_lost RENAME TO metrics")()
    if fault == "locked":
        other.execute("ROLLBACK")
        # A call that hung is made now; in another process it would have ended with it.
        for thread in threading.enumerate():
            if thread.name == "tracking":
                thread.join(20)
    other.close()
    monkeypatch.undo()
    sync(result.directory)
    manifest = json.loads((result.directory / "manifest.json").read_text())
    run = MlflowClient(uri).get_run(manifest["mlflow_run_id"])
    names = {file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id)}
    assert run.info.status == "FINISHED"
    assert names >= {"config.yaml", "metrics.json", "history.csv", "manifest.json", "val.jsonl"}
    assert run.data.metrics["val/f1_macro"] == result.metrics["val/f1_macro"]
    rows = (result.directory / "history.csv").read_text().splitlines()[1:]
    history = MlflowClient(uri).get_metric_history(run.info.run_id, "train/loss")
    assert len(history) == len(rows)
    assert "nothing was missing" in sync(result.directory)


def _disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.yaml", b"[1]"),
        ("config.yaml", b"a: ["),
        ("config.yaml", b"\xff"),
        ("manifest.json", b""),
        ("manifest.json", b"[]"),
        ("manifest.json", b"{}"),
        ("history.csv", b"step,val/loss\n1"),
        ("history.csv", b"\xff"),
        ("history.csv", None),
        ("metrics.json", b"{"),
        ("metrics.json", None),
        ("splits.json", None),
        ("predictions/val.jsonl", None),
    ],
)
@pytest.mark.faults(
    "`tracking sync` of a run with a damaged or absent record",
    "refused before anything is sent, with what to do",
)
def test_a_run_with_a_damaged_record_is_not_delivered(
    finished: Path, tmp_path: Path, name: str, damage: bytes | None
) -> None:
    run = tmp_path / "outputs" / "criteria" / "run"
    shutil.copytree(finished, run)
    if damage is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(damage)
    with pytest.raises(DataError, match=r"Put a copy of it in its place") as refused:
        sync(run, uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert str(refused.value).startswith(str(run / name))
    assert not (tmp_path / "mlflow.db").exists()
