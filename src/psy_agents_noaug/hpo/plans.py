"""What differs between a stage that searches and one that trains the best configuration again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import Trial

from psy_agents_noaug.hpo.search_space import SearchSpace
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.train import RunPreview


@dataclass(frozen=True)
class StageReport:
    """The results of a stage.

    Args:
        summary: a table for the console.
        files: the written files.
        metrics: for the tracker, by name.
    """

    summary: str
    files: Sequence[Path]
    metrics: Mapping[str, float | None]


class Plan(Protocol):
    """The trials of a stage.

    Attributes:
        space: the searched parameters.
        n_trials: number of trials, over all workers.
        keep_checkpoints: whether each run keeps its best checkpoint.
        starts_from: the trial of an earlier stage that this one starts from, in words.
    """

    space: SearchSpace
    n_trials: int
    keep_checkpoints: bool
    starts_from: str | None

    def first_points(self) -> list[dict[str, Any]]:
        """Return the points that are tried first, as Optuna's parameters."""

    def overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings, by dotted keys, of a training with the searched `values`."""

    def finish(self, trial: Trial, result: RunResult) -> None:
        """Use the checkpoint of a finished training, before it may be deleted."""

    def check(self) -> None:
        """Check that every trial can be trained.

        Raises:
            ConfigError: with all faults.
        """

    def report(self, study: optuna.Study, folder: Path, run_preview: RunPreview) -> StageReport:
        """Write the results to `folder`.

        Raises:
            ConfigError: no trial is complete.
        """
