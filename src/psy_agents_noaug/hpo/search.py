"""A stage that searches its space, or a narrower one around the best trial of an earlier stage."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial

from psy_agents_noaug.config.loading import CONFIG_DIR, lay_over, load_train_config, to_overrides
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.hpo.best_config import BestConfig, write_best_config
from psy_agents_noaug.hpo.objective import without_output_settings
from psy_agents_noaug.hpo.plans import Plan, StageReport
from psy_agents_noaug.hpo.report import (
    publish_latest,
    refuse_empty,
    write_plots,
    write_trials,
)
from psy_agents_noaug.hpo.search_space import SearchSpace
from psy_agents_noaug.hpo.settings import StageConfig
from psy_agents_noaug.hpo.workers import StudyProgress, original_number, ranked
from psy_agents_noaug.metrics.tables import format_value, render_table
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.train import RunPreview

logger = logging.getLogger(__name__)

# Share of the trials, best first, whose choices stay in a narrowed space.
_TOP_SHARE = 0.25
# Trials in the table on the console, best first.
_N_SHOWN = 5


class Search(Plan):
    """Trials whose values a sampler proposes.

    Args:
        task: name of the task.
        stage: settings of the stage.
        base: overrides that all trials have in common, by dotted keys.
        config: configuration of a training with `base` only.
        best: the trial of an earlier stage to narrow around; None searches the whole space.
    """

    keep_checkpoints = False

    def __init__(
        self,
        task: str,
        stage: StageConfig,
        *,
        base: Mapping[str, Any],
        config: TrainConfig,
        best: BestConfig | None,
    ) -> None:
        self._task = task
        self._base = dict(base)
        self._config = config
        self._best = best
        self.starts_from = f"trial {best.trial} of {best.study}" if best else None
        if best and stage.narrow:
            whole = SearchSpace.read(best.space)
            space = whole.narrowed(best.params, best.top, width=stage.narrow.width)
        else:
            space = SearchSpace.read(stage.space, stage.task_spaces.get(task, {}))
        self.space = space.without(base)
        if fixed := sorted(set(space.parameters) - set(self.space.parameters)):
            logger.info(
                "Not searched, because the settings fix them or a parameter they depend on: %s.",
                ", ".join(fixed),
            )
        self._is_grid = stage.sampler.name == "grid"
        self.n_trials = stage.n_trials
        if self._is_grid:
            self.n_trials = min(self.n_trials, len(self.space.grid()))

    def check(self) -> None:
        if not self.space.parameters:
            raise ConfigError("`hpo.space` must name something to search.")
        resolved = self._config.model_dump()

        def accept(values: Mapping[str, Any]) -> None:
            if any((CONFIG_DIR / key).is_dir() for key in values):
                load_train_config(self._task, to_overrides(self.overrides(values)))
            else:
                lay_over(resolved, values)

        self.space.check(accept)

    def first_points(self) -> list[dict[str, Any]]:
        if self._is_grid:
            return self.space.grid()[: self.n_trials]
        return [self.space.labels(self._best.params)] if self._best else []

    def overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._base, **values}

    def finish(self, trial: Trial, result: RunResult) -> None:
        """Do nothing: a search never evaluates on test."""

    def report(self, study: optuna.Study, folder: Path, run_preview: RunPreview) -> StageReport:
        trials = write_trials(study, folder / "trials.csv")
        refuse_empty(study)
        progress = StudyProgress.of(study)
        by_value = ranked(progress.complete, maximise=run_preview.maximise)
        best, monitor = by_value[0], self._config.training.monitor
        path = folder / "best_config.yaml"
        write_best_config(
            path,
            {"seed": self._config.seed, **best.user_attrs["overrides"]},
            {
                "task": self._task,
                "study": study.study_name,
                "trial": original_number(best),
                "value": best.value,
                "monitor": monitor,
                "n_trials": progress.n_begun,
                "params": self._chosen(best),
                "top": [self._chosen(t) for t in by_value[: math.ceil(_TOP_SHARE * len(by_value))]],
                "base": without_output_settings(self._base),
                "space": self.space.to_json(),
                "starts_from": self.starts_from,
                "seed": self._config.seed,
                "data": run_preview.fingerprints,
                "packages": best.user_attrs["packages"],
                "torch_threads": best.user_attrs["torch_threads"],
            },
        )
        latest = publish_latest(path, folder)
        return StageReport(
            summary=f"{self._table(study, by_value)}\n\nbest configuration: {path}, also {latest}",
            files=[path, trials, *write_plots(study, folder)],
            metrics={
                f"best/{monitor}": best.value,
                "trials/complete": len(progress.complete),
                "trials/pruned": len(progress.pruned),
                "trials/failed": len(progress.failed),
            },
        )

    def _chosen(self, trial: FrozenTrial) -> dict[str, Any]:
        overrides = trial.user_attrs["overrides"]
        return {name: overrides[name] for name in self.space.parameters if name in overrides}

    def _table(self, study: optuna.Study, by_value: Sequence[FrozenTrial]) -> str:
        progress = StudyProgress.of(study)
        names = list(self.space.parameters)
        rows = [
            ["trial", self._config.training.monitor, *(_short_name(name, names) for name in names)]
        ]
        for trial in by_value[:_N_SHOWN]:
            chosen = self._chosen(trial)
            values = [format_value(chosen[name], ".3g") if name in chosen else "" for name in names]
            rows.append([str(original_number(trial)), f"{trial.value:.4f}", *values])
        return (
            f"{study.study_name}: {len(progress.complete)} trials complete, {len(progress.pruned)} "
            f"pruned, {len(progress.failed)} failed; the best:\n\n{render_table(rows, left=1)}"
        )


def _short_name(name: str, names: Sequence[str]) -> str:
    """Return the last part of a key, or the whole key if another of `names` has the same last part."""
    last = name.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in names) == 1 else name
