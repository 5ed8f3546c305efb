"""One worker of a study: runs trials until the study's budget is spent, and retries lost trials.

The user attributes of a trial:

- `worker`: the host and process that runs it. A running trial without it was never begun.
- `cause`: why it failed. A failed trial without it lost its worker, or was `stopped` by an error that
  also stopped the study, and is retried.
- `original`, `retry_of`, `attempt`, `reports`: of a retry: the number of the first attempt, the number
  of the last one, how many attempts in a row lost their worker without getting further than those
  before, and how many evaluations those before have reported.
- `interrupted`: a signal stopped it, which does not count as a lost attempt.
- `withdrawn`: it was never begun and does not count, because another trial took its place: an outage of
  the storage repeated an operation, or released the lock too early.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import optuna
from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from psy_agents_noaug.errors import Interrupted, RunInUseError
from psy_agents_noaug.hpo.storage import StorageAwayError, StudyLock, StudyStorage

_POLL_SECONDS = 2.0
LOST = "its worker died too often, each time before the trial got any further"
_DECLARED_LOST = "Trial %d was declared lost while this worker ran it; its result is discarded."

logger = logging.getLogger(__name__)


class FailedTrialError(Exception):
    """A trial failed because of its own settings; other trials may succeed."""


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is. A trial and its retries count once, by the last attempt.

    Args:
        complete: trials with a value.
        pruned: trials that were stopped early by the pruner.
        failed: trials that failed and are not retried.
        open: trials that wait or run.
    """

    complete: Sequence[FrozenTrial]
    pruned: Sequence[FrozenTrial]
    failed: Sequence[FrozenTrial]
    open: Sequence[FrozenTrial]

    @property
    def n_begun(self) -> int:
        """How many trials count against the budget."""
        return len(self.complete) + len(self.pruned) + len(self.failed) + len(self.open)

    @classmethod
    def of(cls, study: optuna.Study) -> "StudyProgress":
        trials = counted(study.get_trials(deepcopy=False))
        return cls(
            complete=[t for t in trials if t.state == TrialState.COMPLETE],
            pruned=[t for t in trials if t.state == TrialState.PRUNED],
            failed=[t for t in trials if t.state == TrialState.FAIL],
            open=[t for t in trials if not t.state.is_finished()],
        )


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that were neither withdrawn nor retried, in order of their numbers."""
    valid = [trial for trial in trials if "withdrawn" not in trial.user_attrs]
    next_attempts: dict[int, int] = {}
    for trial in valid:
        if "retry_of" in trial.user_attrs:
            next_attempts.setdefault(trial.user_attrs["retry_of"], trial.number)
    return [
        trial
        for trial in valid
        if trial.number not in next_attempts
        and next_attempts.get(trial.user_attrs.get("retry_of", -1), trial.number) == trial.number
    ]


def _is_queued(trial: FrozenTrial) -> bool:
    """Return whether a trial is a retry or was enqueued; any other can be replaced by a new one."""
    return "retry_of" in trial.user_attrs or "fixed_params" in trial.system_attrs


def original_number(trial: Trial | FrozenTrial) -> int:
    """Return the number of the trial's first attempt, after which its run is named."""
    return int(trial.user_attrs.get("original", trial.number))


class Worker:
    """Runs trials of a study. Any number of workers may do so at the same time.

    Args:
        study: the study.
        storage: where the study is stored.
        lock: held while a trial is chosen, by one worker at a time.
        n_trials: the budget of all workers together, unless the study has a `budget`.
        max_retries: how many times in a row a trial is retried that lost its worker and got no further;
            unless the study has a `budget`.
        sampler: returns the sampler of the next trial, given how many trials exist.
        objective: trains; raises TrialPruned, FailedTrialError, or an error that stops the study.
        maximise: whether a higher value is better, for log messages.
    """

    def __init__(
        self,
        study: optuna.Study,
        *,
        storage: StudyStorage,
        lock: StudyLock,
        n_trials: int,
        max_retries: int,
        sampler: Callable[[int], BaseSampler],
        objective: Callable[[Trial], float],
        maximise: bool,
    ) -> None:
        self._study = study
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._lock = lock
        self._own_budget = {"n_trials": n_trials, "max_retries": max_retries}
        self._sampler = sampler
        self._objective = objective
        self._maximise = maximise
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def _budget(self, name: str) -> int:
        """Return a limit. The last command that was started has set it, for all workers."""
        return int(self._study.user_attrs.get("budget", self._own_budget)[name])

    def work(self) -> None:
        """Run trials until the budget is spent and no worker runs a trial.

        Raises:
            Exception: any error of the objective except TrialPruned and FailedTrialError.
        """
        is_waiting = False
        while True:
            with self._lock.held(self._storage):
                self._fail_lost_trials()
                self._enqueue_retries()
                trial = self._next_trial()
                progress = StudyProgress.of(self._study)
            if trial is not None:
                self._run(trial)
                is_waiting = False
                continue
            if not progress.open and progress.n_begun >= self._budget("n_trials"):
                return
            if not is_waiting:
                logger.info("Waiting for the %d trials of other workers.", len(progress.open))
            is_waiting = True
            time.sleep(_POLL_SECONDS)

    def _fail_lost_trials(self) -> None:
        """Fail running trials that no worker runs, and withdraw retries that were enqueued twice."""
        self._storage.fail_stale_trials(self._study.study_name)
        for trial in self._study.get_trials(deepcopy=False):
            # A worker chooses a trial and marks it as begun while it holds the lock, as this worker does
            # now. Without heartbeats this is the only worker, and it runs no trial now.
            is_begun = "worker" in trial.user_attrs
            is_lost = not is_begun or self._storage.heartbeat_seconds is None
            if trial.state == TrialState.RUNNING and is_lost:
                self._fail(trial, withdraw=not is_begun and not _is_queued(trial))
        trials = self._study.get_trials(deepcopy=False)
        own = {trial.number for trial in counted(trials)}
        for trial in trials:
            if trial.state == TrialState.WAITING and trial.number not in own:
                self._fail(trial, withdraw=True)

    def _fail(self, trial: FrozenTrial, *, withdraw: bool) -> None:
        trial_id = self._id_of(trial)
        with suppress(UpdateFinishedTrialError):
            if withdraw:
                self._storage.set_trial_user_attr(trial_id, "withdrawn", True)
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _id_of(self, trial: Trial | FrozenTrial) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)

    def _enqueue_retries(self) -> None:
        for trial in counted(self._study.get_trials(deepcopy=False)):
            if trial.state == TrialState.FAIL and "cause" not in trial.user_attrs:
                self._enqueue_retry(trial)

    def _enqueue_retry(self, trial: FrozenTrial) -> None:
        was_interrupted = "interrupted" in trial.user_attrs
        was_begun = "worker" in trial.user_attrs
        attempt = trial.user_attrs.get("attempt", 0)
        reports = trial.user_attrs.get("reports", 0)
        if len(trial.intermediate_values) > reports:
            # It goes on from its last checkpoint, and will end however often its machine is taken away.
            attempt, reports = 0, len(trial.intermediate_values)
        elif was_begun and not was_interrupted:
            attempt += 1
        if attempt > self._budget("max_retries"):
            return
        number = original_number(trial)
        logger.info(
            "Trial %d %s: it is tried again.",
            number,
            "was stopped"
            if {"interrupted", "stopped"} & set(trial.user_attrs)
            else "lost its worker",
        )
        fixed = trial.system_attrs.get("fixed_params")
        self._study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={
                    "original": number,
                    "retry_of": trial.number,
                    "attempt": attempt,
                    "reports": reports,
                },
                system_attrs={} if fixed is None else {"fixed_params": fixed},
            )
        )

    def _next_trial(self) -> Trial | None:
        """Begin a waiting trial, or a new one if the budget allows. The caller holds the lock."""
        trials = self._study.get_trials(deepcopy=False)
        has_waiting = any(trial.state == TrialState.WAITING for trial in trials)
        has_budget = StudyProgress.of(self._study).n_begun < self._budget("n_trials")
        if not has_waiting and not has_budget:
            return None
        self._study.sampler = self._sampler(len(trials))
        trial = self._study.ask()
        trial_id = self._id_of(trial)
        try:
            frozen = self._storage.get_trial(trial_id)
            # After an outage Optuna may have created a trial although one was waiting.
            is_superfluous = not _is_queued(frozen) and (has_waiting or not has_budget)
            if is_superfluous or not self._lock.is_still_held():
                self._fail(frozen, withdraw=not _is_queued(frozen))
                return None
            if self._storage.heartbeat_seconds is not None:
                self._storage.record_heartbeat(trial_id)
            trial.set_user_attr("worker", self._name)
        except UpdateFinishedTrialError:
            return None  # The lock was lost, and the next worker to hold it failed the trial.
        return trial

    def _run(self, trial: Trial) -> None:
        began = time.monotonic()

        def finish(state: TrialState, value: float | None = None, **attributes: Any) -> None:
            attributes["seconds"] = round(time.monotonic() - began, 3)
            if self._finish(trial, state, value, attributes):
                self._log(trial, state, value, attributes)

        with self._storage.heartbeats(self._id_of(trial)):
            try:
                finish(TrialState.COMPLETE, self._objective(trial))
            except TrialPruned:
                finish(TrialState.PRUNED)
            except FailedTrialError as error:
                finish(TrialState.FAIL, cause=str(error))
            except UpdateFinishedTrialError:
                logger.warning(_DECLARED_LOST, trial.number)
            except RunInUseError:
                # A worker that was declared lost still trains in the run's directory. The retry goes on
                # from its last checkpoint.
                finish(TrialState.FAIL, interrupted=True)
                time.sleep(_POLL_SECONDS)
            except StorageAwayError:
                # Nothing can be recorded. The heartbeats of the trial stop, and it is retried.
                raise
            except (Interrupted, KeyboardInterrupt):
                finish(TrialState.FAIL, interrupted=True)
                raise
            except BaseException as error:
                # The trial is not the cause: it is retried when the error is mended.
                finish(TrialState.FAIL, stopped=f"{type(error).__name__}: {error}")
                raise

    def _finish(
        self, trial: Trial, state: TrialState, value: float | None, attributes: dict[str, Any]
    ) -> bool:
        """Record how a trial ended; return False if it was declared lost before."""
        try:
            for name, attribute in attributes.items():
                trial.set_user_attr(name, attribute)
            frozen = self._study.tell(trial, value, state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            frozen = self._storage.get_trial(self._id_of(trial))
        if frozen.state != state:
            logger.warning(_DECLARED_LOST, trial.number)
        return frozen.state == state

    def _log(
        self, trial: Trial, state: TrialState, value: float | None, attributes: dict[str, Any]
    ) -> None:
        progress = StudyProgress.of(self._study)
        best = next(iter(ranked(progress.complete, maximise=self._maximise)), None)
        outcome = {
            TrialState.COMPLETE: f"{value:.4f}" if value is not None else "",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: f"failed ({attributes['cause']})"
            if "cause" in attributes
            else "stopped",
        }[state]
        finished = [*progress.complete, *progress.pruned, *progress.failed]
        seconds = [t.user_attrs["seconds"] for t in finished if "seconds" in t.user_attrs]
        n_trials = self._budget("n_trials")
        left = max(n_trials - len(finished), 0)
        eta = left * sum(seconds) / max(len(seconds), 1) / max(len(progress.open), 1)
        logger.info(
            "trial %d: %s, in %.0f s; best %s; %d of %d done, %d pruned, %d failed; about %s left",
            original_number(trial),
            outcome,
            attributes["seconds"],
            f"{best.value:.4f} (trial {original_number(best)})" if best else "none yet",
            len(finished),
            n_trials,
            len(progress.pruned),
            len(progress.failed),
            timedelta(seconds=round(eta)),
        )


def ranked(complete: Sequence[FrozenTrial], *, maximise: bool) -> list[FrozenTrial]:
    """Return trials with a value from the best to the worst; equal ones by number."""
    sign = -1.0 if maximise else 1.0
    return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
