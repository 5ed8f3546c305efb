"""What differs between a stage that searches and one that trains the best again."""

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
    """What a stage came to: a table, the files that hold more, figures for the tracker."""

    summary: str
    files: Sequence[Path]
    figures: Mapping[str, float | None]


class Plan(Protocol):
    """The trials of a stage.

    space: of what trials choose; n_trials: how many there are to be; first_points: those that are tried
    first, as Optuna's parameters. starts_from: whose best the stage goes on with.
    """

    space: SearchSpace
    n_trials: int
    keep_checkpoints: bool
    starts_from: str | None

    def first_points(self) -> list[dict[str, Any]]:
        """Return the trials that are enqueued when the study begins."""

    def overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a training, by dotted keys, that chose `values`."""

    def finish(self, trial: Trial, result: RunResult) -> None:
        """Do what is to be done with a finished training while its checkpoint is there."""

    def check(self) -> None:
        """Raise ConfigError, with all faults, where a trial could not be trained."""

    def report(self, study: optuna.Study, folder: Path, run_preview: RunPreview) -> StageReport:
        """Write the results to `folder`.

        Raises:
            ConfigError: no trial came to anything.
        """
