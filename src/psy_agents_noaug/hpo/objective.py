"""What a trial does: one `runs.train` with the trial's settings over the study's."""

import gc
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from optuna.exceptions import TrialPruned
from optuna.trial import Trial

from psy_agents_noaug.config.loading import load_train_config, to_overrides
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import (
    NonFiniteError,
    OutOfMemoryError,
    StoppedError,
)
from psy_agents_noaug.hpo.workers import FailedTrialError, original_number
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tracking.manifest import package_versions
from psy_agents_noaug.utils.out_of_memory import (
    MEMORY_ERRORS,
    give_memory_back,
    is_out_of_memory,
)

# Of the trial, not of the configuration: another trial may do better.
_OF_THE_TRIAL = (NonFiniteError, OutOfMemoryError)


class Place(NamedTuple):
    """Where trials put what they leave: settings of any training that no result depends on.

    runs: the folder of the run directories; parent_run_id: of the study in the tracker.
    """

    runs: Path
    tracking: Mapping[str, Any]
    parent_run_id: str | None


class Objective:
    """Trains with what a trial proposes, reports every evaluation, and returns the monitor's value.

    Args:
        task: criteria, evidence or joint. propose: the overrides of a trial's training.
        monitor: of the configuration; its value for the checkpoint that was kept is the trial's.
        keep_checkpoints: best ones; else a run keeps none, and is trained again by its configuration.
        finish: called with the trial and its training before its checkpoint goes.
    """

    def __init__(
        self,
        task: str,
        *,
        propose: Callable[[Trial], dict[str, Any]],
        monitor: str,
        place: Place,
        keep_checkpoints: bool = False,
        finish: Callable[[Trial, RunResult], None] = lambda trial, result: None,
    ) -> None:
        self._task = task
        self._propose = propose
        self._monitor = monitor
        self._place = place
        self._keep_checkpoints = keep_checkpoints
        self._finish = finish

    def __call__(self, trial: Trial) -> float:
        """Raises TrialPruned, FailedTrialError, or what the study should stop for."""
        overrides = self._propose(trial)
        trial.set_user_attr("overrides", of_a_configuration(overrides))
        config = self.configure(trial, overrides)
        directory = RunDirectory(self._place.runs / self._task / str(config.run_name))
        trial.set_user_attr("run", str(config.run_name))
        trial.set_user_attr("packages", package_versions())
        try:
            return self._train(trial, config)
        except _OF_THE_TRIAL as error:
            self._clear(directory)
            raise FailedTrialError(str(error).splitlines()[0]) from None
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            # In the optimizer, or where the model is moved: no smaller micro-batch would help.
            self._clear(directory)
            cause = str(error).partition("\n")[0]
            raise FailedTrialError(f"Memory ran out: {cause or type(error).__name__}") from None
        except StoppedError:
            self._clear(directory)
            raise TrialPruned from None
        finally:
            gc.collect()
            give_memory_back()

    def configure(self, trial: Trial, overrides: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration of a trial: what a user would train by the same overrides."""
        own = {
            "output_dir": str(self._place.runs),
            "run_name": f"trial-{original_number(trial):04d}",
            # Another attempt goes on where the last one saved.
            "resume": "auto",
            **self._place.tracking,
        }
        return load_train_config(self._task, to_overrides({**overrides, **own}))

    def _train(self, trial: Trial, config: TrainConfig) -> float:
        result = train(
            config,
            on_evaluation=Reporter(trial, self._monitor),
            parent_run_id=self._place.parent_run_id,
        )
        value = result.metrics[self._monitor]
        if value is None:
            reason = result.metrics.get(f"{self._monitor}_undefined")
            raise FailedTrialError(f"{self._monitor} is undefined: {reason}")
        trial.set_user_attr("torch_threads", torch.get_num_threads())
        self._finish(trial, result)
        self._clear(RunDirectory(result.directory))
        return float(value)

    def _clear(self, directory: RunDirectory) -> None:
        if self._keep_checkpoints:
            directory.last_checkpoint.unlink(missing_ok=True)
        else:
            shutil.rmtree(directory.checkpoints, ignore_errors=True)


def of_a_configuration(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out where results go and how they are looked at, a tracker's address among it."""
    return {
        key: value
        for key, value in overrides.items()
        if key.split(".")[0] not in ("output_dir", "tracking") and key != "data.token_cache"
    }


class Reporter:
    """Tells a trial's evaluations to its study, and ends the training when its pruner says so.

    What is counted are evaluations, not updates: of those a trial with small batches has more.
    """

    def __init__(self, trial: Trial, monitor: str) -> None:
        self._trial = trial
        self._monitor = monitor
        self._n_reported = 0

    def __call__(self, history: list[dict[str, Any]]) -> None:
        for number, row in enumerate(history[self._n_reported :], start=self._n_reported + 1):
            if row[self._monitor] is not None:
                self._trial.report(float(row[self._monitor]), step=number)
        self._n_reported = len(history)
        if self._trial.should_prune():
            raise StoppedError
