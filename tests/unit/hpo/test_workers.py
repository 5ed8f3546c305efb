"""A worker on a SQLite study, its objective a plain function."""

import logging

import optuna
import pytest
from optuna.exceptions import TrialPruned
from optuna.trial import TrialState

from psy_agents_noaug.errors import ConfigError, Interrupted, RunInUseError
from psy_agents_noaug.hpo import workers
from psy_agents_noaug.hpo.settings import SamplerConfig
from psy_agents_noaug.hpo.storage import StorageAwayError, StudyLock, open_storage
from psy_agents_noaug.hpo.strategies import build_sampler
from psy_agents_noaug.hpo.workers import FailedTrialError, StudyProgress, Worker, original_number

SAMPLER = SamplerConfig(name="tpe", seed=3, n_startup_trials=2)


@pytest.fixture
def storage(tmp_path):
    storage = open_storage(
        f"sqlite:///{tmp_path / 'study.db'}", heartbeat_seconds=1, patience_seconds=1.0
    )
    yield storage
    storage.close()


@pytest.fixture
def study(storage):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(storage=storage, study_name="study", direction="maximize")


@pytest.fixture
def work(study, storage):
    """Return a function that works with an objective until the budget is spent."""

    def run(objective, *, n_trials=4, max_retries=1):
        Worker(
            study,
            storage=storage,
            lock=StudyLock("sqlite://", "study"),
            n_trials=n_trials,
            max_retries=max_retries,
            sampler=lambda before: build_sampler(SAMPLER, n_trials_before=before),
            objective=objective,
            maximise=True,
        ).work()
        return StudyProgress.of(study)

    return run


def value_of(trial) -> float:
    return trial.suggest_float("x", 0.0, 1.0)


def test_the_budget_is_spent_and_no_more(work, study):
    assert len(work(value_of).complete) == 4
    assert len(work(value_of).complete) == 4
    assert len(work(value_of, n_trials=6).complete) == len(study.trials) == 6


def test_a_study_gone_on_with_proposes_what_it_would_have_in_one_go(tmp_path, work, study):
    work(value_of, n_trials=3)
    work(value_of, n_trials=8)
    other = optuna.create_study(direction="maximize")
    for number in range(8):
        other.sampler = build_sampler(SAMPLER, n_trials_before=number)
        trial = other.ask()
        other.tell(trial, value_of(trial))
    assert [t.params for t in study.trials] == [t.params for t in other.trials]


def test_failed_and_pruned_trials_are_recorded_and_the_study_goes_on(work, study):
    def objective(trial):
        value = value_of(trial)
        if trial.number == 0:
            raise FailedTrialError("memory ran out")
        if trial.number == 1:
            raise TrialPruned
        return value

    standing = work(objective)
    assert [t.number for t in standing.failed] == [0]
    assert standing.failed[0].user_attrs["cause"] == "memory ran out"
    assert [t.number for t in standing.pruned] == [1]
    assert [t.number for t in standing.complete] == [2, 3]
    assert len(study.trials) == 4


@pytest.mark.parametrize("error", [ConfigError("no such key"), RuntimeError("a bug")])
def test_what_is_not_the_trials_fault_stops_the_study_which_can_be_gone_on_with(work, study, error):
    def objective(trial):
        raise error

    with pytest.raises(type(error)):
        work(objective)
    assert study.trials[0].state == TrialState.FAIL
    assert str(error) in study.trials[0].user_attrs["stopped"]
    # Mended, the study goes on with the trial that showed it.
    standing = work(value_of)
    assert len(standing.complete) == standing.n_begun == 4


@pytest.mark.parametrize("stop", [Interrupted("stopped", exit_code=143), KeyboardInterrupt()])
def test_an_interrupted_trial_is_tried_again_with_its_own_values(work, study, stop):
    def interrupted(trial):
        value = value_of(trial)
        if trial.number % 2:
            raise stop
        return value

    for _ in range(3):  # more often than an attempt may be lost
        with pytest.raises(type(stop)):
            work(interrupted)
    standing = work(value_of)
    assert len(standing.complete) == standing.n_begun == 4
    again = [t for t in standing.complete if original_number(t) == 1]
    assert [t.params for t in again] == [study.trials[1].params]


def test_a_trial_whose_worker_died_is_tried_again_once(work, study):
    lost = study.ask()
    value = value_of(lost)
    lost.set_user_attr("worker", "elsewhere:1")
    standing = work(value_of)
    assert study.trials[0].state == TrialState.FAIL
    assert [t.value for t in standing.complete if original_number(t) == 0] == [value]
    assert standing.n_begun == len(standing.complete) == 4
    assert len(study.trials) == 5


def test_a_trial_that_is_lost_again_has_failed(work, study):
    study.ask().set_user_attr("worker", "elsewhere:1")
    standing = work(value_of, max_retries=0)
    assert [t.number for t in standing.failed] == [0]
    assert len(standing.complete) == 3


def test_enqueued_points_come_first_also_after_a_loss(work, study):
    study.enqueue_trial({"x": 0.25})
    study.ask()  # dies before it asks for a value
    standing = work(value_of)
    assert 0.25 in [t.value for t in standing.complete]


def test_every_trial_is_told_of_with_the_best_so_far(work, caplog):
    with caplog.at_level(logging.INFO):
        work(value_of, n_trials=2)
    assert "2 of 2 done, 0 pruned, 0 failed" in caplog.text
    assert "best" in caplog.text


def test_a_trial_that_was_never_begun_and_is_nobodys_next_attempt_takes_nothing_of_the_budget(
    work, study
):
    study.ask()  # its answer was lost, and another one given
    standing = work(value_of)
    assert standing.n_begun == len(standing.complete) == 4
    assert study.trials[0].user_attrs == {"withdrawn": True}


def test_a_next_attempt_that_was_queued_twice_is_made_once(work, study):
    lost = study.ask()
    value_of(lost)
    lost.set_user_attr("worker", "elsewhere:1")
    study.tell(lost, state=TrialState.FAIL)
    for _ in range(2):
        attributes = {"original": 0, "retry_of": 0, "attempt": 1}
        study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attributes))
    standing = work(value_of)
    assert standing.n_begun == len(standing.complete) == 4
    assert [original_number(t) for t in standing.complete].count(0) == 1


def test_a_run_that_another_worker_is_still_at_is_waited_for(work, monkeypatch):
    monkeypatch.setattr(workers, "_POLL_SECONDS", 0.01)
    in_use = [RunInUseError("Another process is training")] * 3

    def objective(trial):
        value = value_of(trial)
        if in_use:
            raise in_use.pop()
        return value

    standing = work(objective, n_trials=2)
    assert len(standing.complete) == standing.n_begun == 2


def test_a_worker_that_was_taken_for_dead_goes_on_with_other_trials(work, study, storage, caplog):
    def objective(trial):
        value = value_of(trial)
        if trial.number == 0:
            trial_id = storage.get_trial_id_from_study_id_trial_number(1, trial.number)
            storage.set_trial_state_values(trial_id, TrialState.FAIL)
            trial.report(value, step=1)
        return value

    standing = work(objective)
    assert "Trial 0 was declared lost" in caplog.text
    assert len(standing.complete) == standing.n_begun == 4
    assert 0 in [original_number(trial) for trial in standing.complete]


def test_an_unreachable_storage_ends_a_worker_and_not_its_trial(work, study):
    def objective(trial):
        value_of(trial)
        raise StorageAwayError("away")

    with pytest.raises(StorageAwayError):
        work(objective)
    assert study.trials[0].state == TrialState.RUNNING
    assert len(work(value_of).complete) == 4
