"""The objective of a study: one ordinary training per trial."""

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
    ConfigError,
    NonFiniteError,
    OutOfMemoryError,
    StoppedError,
)
from psy_agents_noaug.hpo.workers import FailedTrialError, original_number
from psy_agents_noaug.run.directory import RunDirectory, drop_lost_link
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tracking.manifest import package_versions
from psy_agents_noaug.utils.out_of_memory import give_memory_back

# Errors that end one trial; another trial may succeed.
_TRIAL_ERRORS = (NonFiniteError, OutOfMemoryError)


class OutputSettings(NamedTuple):
    """Where trials write their results. No result depends on it.

    Args:
        runs_folder: folder of the run directories.
        tracking: settings of the tracker, by dotted keys.
        parent_run_id: the tracker's run of the study.
    """

    runs_folder: Path
    tracking: Mapping[str, Any]
    parent_run_id: str | None


class Objective:
    """Trains with the settings of a trial, reports every evaluation and returns the best value.

    Args:
        task: name of the task.
        propose: returns the overrides of a trial, by dotted keys.
        monitor: `training.monitor`; its value for the best checkpoint is the value of the trial.
        output: where trials write their results.
        keep_checkpoints: keep the best checkpoint of each run; otherwise a run keeps none, because its
            configuration trains it again.
        finish: called with the trial and the result of its training, before checkpoints are deleted.
    """

    def __init__(
        self,
        task: str,
        *,
        propose: Callable[[Trial], dict[str, Any]],
        monitor: str,
        output: OutputSettings,
        keep_checkpoints: bool = False,
        finish: Callable[[Trial, RunResult], None] = lambda trial, result: None,
    ) -> None:
        self._task = task
        self._propose = propose
        self._monitor = monitor
        self._output = output
        self._keep_checkpoints = keep_checkpoints
        self._finish = finish

    def __call__(self, trial: Trial) -> float:
        """Train a trial and return its value.

        Raises:
            TrialPruned: the pruner ended the trial.
            FailedTrialError: this trial failed; others may succeed.
        """
        overrides = self._propose(trial)
        trial.set_user_attr("overrides", without_output_settings(overrides))
        try:
            config = self.configure(trial, overrides)
        except ConfigError as error:  # parameters that exclude each other
            raise FailedTrialError(" ".join(str(error).split())) from None
        directory = RunDirectory(self._output.runs_folder / self._task / str(config.run_name))
        trial.set_user_attr("run", str(config.run_name))
        trial.set_user_attr("packages", package_versions())
        try:
            return self._train(trial, config)
        except _TRIAL_ERRORS as error:
            self._clear(directory)
            raise FailedTrialError(str(error).splitlines()[0]) from None
        except StoppedError:
            self._clear(directory)
            raise TrialPruned from None
        finally:
            gc.collect()
            give_memory_back()

    def configure(self, trial: Trial, overrides: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration of a trial, which is that of a user with the same overrides."""
        per_trial = {
            "output_dir": str(self._output.runs_folder),
            "run_name": f"trial-{original_number(trial):04d}",
            # A second attempt resumes from the last checkpoint of the first.
            "resume": "auto",
            **self._output.tracking,
        }
        return load_train_config(self._task, to_overrides({**overrides, **per_trial}))

    def _train(self, trial: Trial, config: TrainConfig) -> float:
        result = train(
            config,
            on_evaluation=Reporter(trial, self._monitor),
            parent_run_id=self._output.parent_run_id,
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
        # First, so that a process that is killed here leaves none to go on from without the best one.
        directory.last_checkpoint.unlink(missing_ok=True)
        if not self._keep_checkpoints:
            shutil.rmtree(directory.checkpoints, ignore_errors=True)
            directory.seen_posts_key.unlink(missing_ok=True)
            drop_lost_link(self._output.runs_folder)


def without_output_settings(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides without output folder, tracker and token cache: no result depends on them."""
    return {
        key: value
        for key, value in overrides.items()
        if key.split(".")[0] not in ("output_dir", "tracking") and key != "data.token_cache"
    }


class Reporter:
    """Reports the evaluations of a trial to its study, and ends the training if the pruner decides so.

    Steps are numbers of evaluations, not of updates: with smaller batches a trial has more updates.

    Args:
        trial: the trial.
        monitor: the reported metric.
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
