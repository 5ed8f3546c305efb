"""One worker of a study: takes trials until the study's budget is spent, and buries the dead.

What a study knows of a trial stands in its user attributes:

- `worker`: who took it, host and process. A running trial without one was never begun.
- `cause`: why it failed. A failed trial without one lost its worker, or was `stopped` by an error that
  stopped the study too, and is tried again.
- `original`, `retry_of`, `attempt`: of a trial that is another's next attempt: the first one's number,
  the last one's, and how many attempts were lost before it.
- `interrupted`: a signal stopped it; that costs no attempt.
- `withdrawn`: it was never begun, and another stands for it: an outage made the storage do twice what
  was asked once, or took the lock away in between.
"""

import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, TrialPruned, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from psy_agents_noaug.errors import Interrupted, RunInUseError
from psy_agents_noaug.hpo.storage import (
    STALE_AFTER,
    StorageAwayError,
    StudyLock,
    StudyStorage,
    heartbeat_of,
)

_POLL_SECONDS = 2.0
LOST = "its worker died"
_TAKEN_FOR_LOST = (
    "Trial %d was taken for lost while this worker was at it: its result here is left out."
)

logger = logging.getLogger(__name__)


class FailedTrialError(Exception):
    """A trial came to nothing for a cause of its own; others may do better."""


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is. All counts are of trials that stand for themselves, retries for the first."""

    complete: Sequence[FrozenTrial]
    pruned: Sequence[FrozenTrial]
    failed: Sequence[FrozenTrial]
    open: Sequence[FrozenTrial]

    @property
    def n_begun(self) -> int:
        """Trials that count against the budget."""
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
    """Return the trials without those that were withdrawn or tried again, in order of their numbers."""
    standing = [trial for trial in trials if "withdrawn" not in trial.user_attrs]
    next_attempts: dict[int, int] = {}
    for trial in standing:
        if "retry_of" in trial.user_attrs:
            next_attempts.setdefault(trial.user_attrs["retry_of"], trial.number)
    return [
        trial
        for trial in standing
        if trial.number not in next_attempts
        and next_attempts.get(trial.user_attrs.get("retry_of", -1), trial.number) == trial.number
    ]


def _is_awaited(trial: FrozenTrial) -> bool:
    """Whether a trial is another's next attempt, or was enqueued; else any new one is as good."""
    return "retry_of" in trial.user_attrs or "fixed_params" in trial.system_attrs


def original_number(trial: Trial | FrozenTrial) -> int:
    """Return the number of the trial's first attempt, by which its run is called."""
    return int(trial.user_attrs.get("original", trial.number))


class Worker:
    """Runs trials of `study`, as any number of others may do at the same time.

    Args:
        storage: where the study is; lock: what one worker does at a time.
        n_trials: of all workers together.
        max_retries: how many attempts at a trial may lose their worker.
        sampler: the sampler for the next of so many trials.
        objective: trains; raises TrialPruned, FailedTrialError, or what should stop the study.
        maximise: whether more is better; for what is told of the progress.
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
        self._lock = lock
        self._n_trials = n_trials
        self._max_retries = max_retries
        self._sampler = sampler
        self._objective = objective
        self._maximise = maximise
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def work(self) -> None:
        """Run trials until the budget is spent and none is under way anywhere.

        Raises:
            whatever the objective raises but TrialPruned and FailedTrialError.
        """
        waits = False
        while True:
            with self._lock.held(self._storage):
                self._bury_the_dead()
                trial = self._next()
                standing = StudyProgress.of(self._study)
            if trial is not None:
                self._run(trial)
                waits = False
                continue
            if not standing.open and standing.n_begun >= self._n_trials:
                return
            if not waits:
                logger.info("Waiting for the %d trials of other workers.", len(standing.open))
            waits = True
            time.sleep(_POLL_SECONDS)

    def _bury_the_dead(self) -> None:
        """Fail running trials without a living worker, and queue the next attempt at lost ones."""
        interval = self._storage.get_heartbeat_interval()
        if interval is not None and self._storage.has_been_back_for(STALE_AFTER * interval):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                optuna.storages.fail_stale_trials(self._study)
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            # A trial is taken under the lock, all at once: who holds it knows that nobody is at it.
            # Without heartbeats there is one worker, which is here and not training.
            unbegun = "worker" not in trial.user_attrs
            if trial.state == TrialState.RUNNING and (unbegun or interval is None):
                self._fail(trial, withdraw=unbegun and not _is_awaited(trial))
        trials = self._study.get_trials(deepcopy=False)
        own = {trial.number for trial in counted(trials)}
        for trial in trials:
            if trial.state == TrialState.WAITING and trial.number not in own:
                self._fail(trial, withdraw=True)
        for trial in counted(self._study.get_trials(deepcopy=False)):
            if trial.state == TrialState.FAIL and "cause" not in trial.user_attrs:
                self._try_again(trial)

    def _fail(self, trial: FrozenTrial, *, withdraw: bool) -> None:
        with suppress(UpdateFinishedTrialError):
            if withdraw:
                self._storage.set_trial_user_attr(trial._trial_id, "withdrawn", True)
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _try_again(self, trial: FrozenTrial) -> None:
        was_interrupted = "interrupted" in trial.user_attrs
        was_begun = "worker" in trial.user_attrs
        attempt = trial.user_attrs.get("attempt", 0) + (was_begun and not was_interrupted)
        if attempt > self._max_retries:
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
                user_attrs={"original": number, "retry_of": trial.number, "attempt": attempt},
                system_attrs={} if fixed is None else {"fixed_params": fixed},
            )
        )

    def _next(self) -> Trial | None:
        """Take a waiting trial, or begin a new one if the budget allows; under the lock."""
        trials = self._study.get_trials(deepcopy=False)
        is_waiting = any(trial.state == TrialState.WAITING for trial in trials)
        may_begin = StudyProgress.of(self._study).n_begun < self._n_trials
        if not is_waiting and not may_begin:
            return None
        self._study.sampler = self._sampler(len(trials))
        with warnings.catch_warnings():
            # The heartbeats, which `optimize` would send, are sent by `_run`.
            warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
            trial = self._study.ask()
        try:
            taken = self._storage.get_trial(trial._trial_id)
            # An outage may have given a new trial instead of the waiting one.
            is_unwanted = not _is_awaited(taken) and (is_waiting or not may_begin)
            if is_unwanted or not self._lock.is_still_held():
                self._fail(taken, withdraw=not _is_awaited(taken))
                return None
            if self._storage.get_heartbeat_interval() is not None:
                self._storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr("worker", self._name)
        except UpdateFinishedTrialError:
            return None  # taken for dead by who got the lock meanwhile
        return trial

    def _run(self, trial: Trial) -> None:
        began = time.monotonic()

        def tell(state: TrialState, value: float | None = None, **attributes: Any) -> None:
            attributes["seconds"] = round(time.monotonic() - began, 3)
            if self._tell(trial, state, value, attributes):
                self._log(trial, state, value, attributes)

        with heartbeat_of(self._storage, trial._trial_id):
            try:
                tell(TrialState.COMPLETE, self._objective(trial))
            except TrialPruned:
                tell(TrialState.PRUNED)
            except FailedTrialError as error:
                tell(TrialState.FAIL, cause=str(error))
            except UpdateFinishedTrialError:
                logger.warning(_TAKEN_FOR_LOST, trial.number)
            except RunInUseError:
                # The worker that was taken for dead is still at it: wait, and go on from what it leaves.
                tell(TrialState.FAIL, interrupted=True)
                time.sleep(_POLL_SECONDS)
            except StorageAwayError:
                # Nothing can be told; without a heartbeat the trial is found, and tried again.
                raise
            except (Interrupted, KeyboardInterrupt):
                tell(TrialState.FAIL, interrupted=True)
                raise
            except BaseException as error:
                # Not the trial's fault: once it is mended, the study goes on with the trial.
                tell(TrialState.FAIL, stopped=f"{type(error).__name__}: {error}")
                raise

    def _tell(
        self, trial: Trial, state: TrialState, value: float | None, attributes: dict[str, Any]
    ) -> bool:
        """Record how a trial ended; False if it was taken for lost meanwhile."""
        try:
            for name, attribute in attributes.items():
                trial.set_user_attr(name, attribute)
            told = self._study.tell(trial, value, state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            told = self._study.trials[trial.number]
        if told.state != state:
            logger.warning(_TAKEN_FOR_LOST, trial.number)
        return told.state == state

    def _log(
        self, trial: Trial, state: TrialState, value: float | None, attributes: dict[str, Any]
    ) -> None:
        standing = StudyProgress.of(self._study)
        best = next(iter(ranked(standing.complete, maximise=self._maximise)), None)
        said = {
            TrialState.COMPLETE: f"{value:.4f}" if value is not None else "",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: f"failed ({attributes['cause']})"
            if "cause" in attributes
            else "stopped",
        }[state]
        finished = [*standing.complete, *standing.pruned, *standing.failed]
        seconds = [t.user_attrs["seconds"] for t in finished if "seconds" in t.user_attrs]
        left = max(self._n_trials - len(finished), 0)
        eta = left * sum(seconds) / max(len(seconds), 1) / max(len(standing.open), 1)
        logger.info(
            "trial %d: %s, in %.0f s; best %s; %d of %d done, %d pruned, %d failed; about %s left",
            original_number(trial),
            said,
            attributes["seconds"],
            f"{best.value:.4f} (trial {original_number(best)})" if best else "none yet",
            len(finished),
            self._n_trials,
            len(standing.pruned),
            len(standing.failed),
            timedelta(seconds=round(eta)),
        )


def ranked(complete: Sequence[FrozenTrial], *, maximise: bool) -> list[FrozenTrial]:
    """Return trials with a value from the best to the worst, equals by number."""
    sign = -1.0 if maximise else 1.0
    return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
