"""Searches whose workers are killed, whose study is damaged, and that several commands work on."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import Trial

from psy_agents_noaug.cli import main
from psy_agents_noaug.errors import StorageError
from psy_agents_noaug.hpo.settings import SamplerConfig
from psy_agents_noaug.hpo.storage import (
    StorageDamagedError,
    StudyLock,
    StudyStorage,
    open_storage,
)
from psy_agents_noaug.hpo.strategies import build_sampler
from psy_agents_noaug.hpo.workers import StudyProgress, Worker
from psy_agents_noaug.run.local_workers import gpus_of_workers, other_workers

SAMPLER = SamplerConfig(name="tpe", seed=3, n_startup_trials=2)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[StudyStorage]:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    storage = open_storage(url, heartbeat_seconds=1, patience_seconds=1.0)
    yield storage
    storage.close()


@pytest.fixture
def study(storage: StudyStorage) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(storage=storage, study_name="study", direction="maximize")


@pytest.fixture
def worker(study: optuna.Study, storage: StudyStorage) -> Callable[..., Worker]:
    return lambda objective, n_trials=1: Worker(
        study,
        storage=storage,
        lock=StudyLock("sqlite://", "study"),
        n_trials=n_trials,
        max_retries=2,
        sampler=lambda before: build_sampler(SAMPLER, n_trials_before=before),
        objective=objective,
        maximise=True,
    )


def be_killed(study: optuna.Study, *, evaluations: int) -> None:
    """Leave a trial as a worker leaves it that is killed after so many evaluations."""
    trial = study.ask()
    trial.set_user_attr("worker", "one that was killed")
    trial.suggest_float("x", 0.0, 1.0)
    for step in range(1, evaluations + 1):
        trial.report(0.5, step=step)


def value_of(trial: Trial) -> float:
    return trial.suggest_float("x", 0.0, 1.0)


def declare_lost(worker: Worker) -> None:
    """Do what every worker does before it chooses a trial."""
    worker._fail_lost_trials()
    worker._enqueue_retries()


@pytest.mark.faults(
    "the worker of a trial is killed again and again", "it goes on as long as it gets any further"
)
def test_a_trial_that_gets_further_each_time_is_never_lost(
    study: optuna.Study, worker: Callable[..., Worker]
) -> None:
    for kills in range(1, 8):
        be_killed(study, evaluations=kills)
        declare_lost(worker(value_of))
    worker(value_of).work()
    progress = StudyProgress.of(study)
    assert (len(progress.complete), len(progress.failed)) == (1, 0)


@pytest.mark.faults(
    "the worker of a trial is killed at the same point each time", "reported as failed, with why"
)
def test_a_trial_that_gets_no_further_fails_after_its_retries(
    study: optuna.Study, worker: Callable[..., Worker]
) -> None:
    for _ in range(3):
        be_killed(study, evaluations=1)
        declare_lost(worker(value_of))
        assert len(StudyProgress.of(study).failed) == 0
    be_killed(study, evaluations=1)
    declare_lost(worker(value_of))
    assert len(StudyProgress.of(study).failed) == 1


@pytest.mark.faults(
    "a command with another budget joins a study", "its budget holds for all workers"
)
def test_all_workers_see_the_budget_of_the_study(
    study: optuna.Study, worker: Callable[..., Worker]
) -> None:
    study.set_user_attr("budget", {"n_trials": 3, "max_retries": 0})
    worker(value_of, n_trials=1).work()
    assert len(StudyProgress.of(study).complete) == 3
    be_killed(study, evaluations=0)
    study.set_user_attr("budget", {"n_trials": 4, "max_retries": 0})
    worker(value_of, n_trials=9).work()
    assert len(StudyProgress.of(study).failed) == 1


def damage(path: Path) -> None:
    """Overwrite all pages but the first, as a failing disk may."""
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


@pytest.mark.parametrize("content", [b"no database, but long enough\n" * 99, None])
@pytest.mark.faults("study.db is damaged", "one message with a remedy, exit 2")
def test_a_damaged_study_says_so(
    overrides: list[str],
    tmp_path: Path,
    storage: StudyStorage,
    study: optuna.Study,
    own_logging: None,
    capfd: pytest.CaptureFixture[str],
    content: bytes | None,
) -> None:
    storage.close()
    file = tmp_path / "study.db"
    if content is None:
        damage(file)
    else:
        file.write_bytes(content)
    command = ["tune", "hpo=stage0_sanity", "task=criteria", *overrides]
    assert main([*command, f"hpo.storage=sqlite:///{file}"]) == 2
    told = capfd.readouterr().err
    assert told.count("Error") == 1
    assert "study.db is damaged" in told
    assert ". Put a copy" in told
    assert "start the search again" in told


@pytest.mark.faults("study.db is damaged during a search", "one message with a remedy, no waiting")
def test_a_study_that_is_damaged_meanwhile_is_not_waited_for(
    tmp_path: Path, storage: StudyStorage, study: optuna.Study, worker: Callable[..., Worker]
) -> None:
    def objective(trial: Trial) -> float:
        storage.rdb.engine.dispose()
        damage(tmp_path / "study.db")
        return 1.0

    with pytest.raises(StorageDamagedError, match=r"study.db is damaged: .*malformed"):
        worker(objective).work()


# ----------------------------------------------------------------------------------------- GPUs


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        (None, "auto", ["0", "1"]),
        ("5,3", "cuda", ["5", "3"]),
        ("GPU-a,GPU-b", "auto", ["GPU-a", "GPU-b"]),
        (None, "cpu", []),
        (None, "cuda:1", []),
    ],
)
def test_local_workers_share_the_visible_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, device: str, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus_of_workers(2, device=device) == expected


@pytest.mark.faults("more local workers than GPUs", "they share them in turn, with a warning")
def test_each_local_worker_is_started_with_one_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    started: list[str] = []
    popen = subprocess.Popen

    def start(command: list[str], *, env: dict[str, str], **rest: object) -> object:
        started.append(env["CUDA_VISIBLE_DEVICES"])
        return popen([sys.executable, "-c", ""])

    monkeypatch.setattr(subprocess, "Popen", start)
    with (
        caplog.at_level(logging.WARNING),
        other_workers([], tmp_path, count=4, num_threads=1, device="auto"),
    ):
        pass
    assert started == ["3", "5", "3"]
    assert "4 workers share 2 GPUs" in caplog.text
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,3"


@pytest.mark.faults("a local worker cannot be started", "one message; the others are stopped")
def test_workers_that_were_started_end_with_the_one_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker-2.log").mkdir()
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*_: object, **__: object) -> object:
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    with (
        pytest.raises(StorageError, match=r"worker-2\.log cannot be written"),
        other_workers([], tmp_path, count=3, num_threads=1, device="cpu"),
    ):
        pytest.fail("not all workers were started")
    assert started[0].returncode is not None
