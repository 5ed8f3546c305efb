"""A stage that trains the best and the default configuration again, and compares them on test.

The value of the best of many trials is partly due to the luck of its seed (the winner's curse). So both
configurations are trained with several seeds that the search has not used. Each run is evaluated on test
once.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, Trial

from psy_agents_noaug.config.loading import load_train_config, to_overrides
from psy_agents_noaug.config.schema import EvaluateConfig, TrainConfig
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.hpo.best_config import BestConfig, write_best_config
from psy_agents_noaug.hpo.objective import without_output_settings
from psy_agents_noaug.hpo.plans import Plan, StageReport
from psy_agents_noaug.hpo.report import (
    publish_latest,
    refuse_empty,
    save_figure,
    write_plots,
    write_trials,
)
from psy_agents_noaug.hpo.search_space import SearchSpace
from psy_agents_noaug.hpo.settings import StageConfig
from psy_agents_noaug.hpo.workers import StudyProgress
from psy_agents_noaug.metrics.comparison import (
    MIN_TRAININGS,
    Comparison,
    compare,
    mean_interval,
)
from psy_agents_noaug.metrics.lines import Line, comparable_metrics
from psy_agents_noaug.metrics.tables import format_value, render_table
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.evaluate import RunResult, evaluate
from psy_agents_noaug.run.train import RunPreview
from psy_agents_noaug.tasks.registry import task_class
from psy_agents_noaug.utils.files import write_json

Configuration = Literal["best", "default"]
Summary = dict[str, Any]  # of a metric: values, mean, sd, ci_low, ci_high
CONFIGURATIONS: tuple[Configuration, ...] = ("best", "default")


class Refit(Plan):
    """Trials of the best and the default configuration, one per seed.

    Args:
        task: name of the task.
        stage: settings of the stage.
        best: the best trial of a search.
        explicit: overrides of the stage and the command line, which win over both configurations.
        config: the default configuration.
        runs_folder: folder of the run directories.
    """

    keep_checkpoints = True

    def __init__(
        self,
        task: str,
        stage: StageConfig,
        *,
        best: BestConfig,
        explicit: Mapping[str, Any],
        config: TrainConfig,
        runs_folder: Path,
    ) -> None:
        assert stage.refit is not None
        self._task = task
        self._settings = stage.refit
        self._best = best
        self._explicit = dict(explicit)
        self._config = config
        self._monitor = config.training.monitor
        self._runs_folder = runs_folder
        self.starts_from = f"trial {best.trial} of {best.study}"
        self.space = SearchSpace.read(
            {
                "configuration": {"type": "categorical", "choices": list(CONFIGURATIONS)},
                "seed": {"type": "categorical", "choices": list(stage.refit.seeds)},
            }
        )
        self.n_trials = len(self.space.grid())

    def check(self) -> None:
        if self._monitor != self._best.monitor:
            raise ConfigError(
                f"`training.monitor` must be {self._best.monitor}, as in the search, but is "
                f"{self._monitor} instead."
            )
        searched = self._best.overrides.get("seed")
        if searched in self._settings.seeds:
            raise ConfigError(
                f"`hpo.refit.seeds` must not hold {searched}, the seed of the search."
            )
        for point in self.space.grid():
            load_train_config(self._task, to_overrides(self.overrides(point)))

    def first_points(self) -> list[dict[str, Any]]:
        # Both runs of a seed are neighbours, so that an unfinished study has complete pairs to compare.
        return sorted(
            self.space.grid(), key=lambda point: self._settings.seeds.index(point["seed"])
        )

    def overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        is_best = values["configuration"] == "best"
        configuration = self._best.overrides if is_best else self._best.base
        return {**configuration, **self._explicit, "seed": values["seed"]}

    def finish(self, trial: Trial, result: RunResult) -> None:
        """Evaluate the training on test and record the metrics."""
        directory = RunDirectory(result.directory)
        test = evaluate(
            EvaluateConfig(checkpoint=str(directory.best_checkpoint), split="test"),
            task_name=self._task,
            explicit={
                "tracking": self._config.tracking.model_dump(),
                "output_dir": self._config.output_dir,
            },
            tracking_is_required=False,
        )
        trial.set_user_attr("test", {key: test.metrics[key] for key in self._test_metrics()})

    def report(self, study: optuna.Study, folder: Path, run_preview: RunPreview) -> StageReport:
        csv_of_trials = write_trials(study, folder / "trials.csv")
        refuse_empty(study)
        trials = self._by_configuration(study)
        lines = self._lines(trials)
        comparisons = self._compare(lines)
        summaries = {
            name: {
                key: self._summary(
                    key, [self._value(trial, key) for trial in group], lines.get(name)
                )
                for key in (self._monitor, *self._test_metrics())
            }
            for name, group in trials.items()
        }
        report = folder / "report.json"
        write_json(
            report,
            {
                "study": study.study_name,
                "starts_from": self.starts_from,
                "searched_value": self._best.value,
                "seeds": [trial.params["seed"] for trial in trials["best"]],
                "confidence": self._settings.confidence,
                "configurations": summaries,
                "comparisons": {
                    metric: asdict(comparison) for metric, comparison in comparisons.items()
                },
            },
        )
        path = folder / "best_config.yaml"
        write_best_config(
            path,
            self._best.overrides,
            {
                **{name: getattr(self._best, name) for name in ("params", "base", "space", "top")},
                "task": self._task,
                "study": self._best.study,
                "trial": self._best.trial,
                "value": self._best.value,
                "monitor": self._monitor,
                "refit": {
                    "study": study.study_name,
                    "mean": summaries["best"][self._monitor]["mean"],
                    # The runs behind the mean had these overrides, too.
                    "given": without_output_settings(self._explicit),
                },
                "data": run_preview.fingerprints,
                "packages": trials["best"][0].user_attrs["packages"],
                "torch_threads": trials["best"][0].user_attrs["torch_threads"],
            },
        )
        latest = publish_latest(path, folder)
        files = [report, path, csv_of_trials]
        files += [*write_plots(study, folder), self._plot(trials, folder)]
        text = self._text(study.study_name, len(trials["best"]), summaries, comparisons)
        return StageReport(
            summary=f"{text}\n\nreport: {report}; best configuration: {path}, also {latest}",
            files=files,
            metrics={
                f"{name}/{key}_mean": summary["mean"]
                for name, by_metric in summaries.items()
                for key, summary in by_metric.items()
            },
        )

    def _test_metrics(self) -> list[str]:
        """Return the reported metrics on test: that of the monitor first, then the headline metrics."""
        names = [self._monitor.removeprefix("val/"), *self._config.task.headline_metrics]
        return [f"test/{name}" for name in dict.fromkeys(names)]

    def _value(self, trial: FrozenTrial, key: str) -> float | None:
        """Return the trial's value of the monitor, or of a metric on test."""
        if key == self._monitor:
            return trial.value
        value: float | None = trial.user_attrs["test"].get(key)
        return value

    def _by_configuration(self, study: optuna.Study) -> dict[Configuration, list[FrozenTrial]]:
        """Return the trials of each configuration, by the seeds that have a complete trial of both."""
        by_seed: dict[Configuration, dict[int, FrozenTrial]] = {name: {} for name in CONFIGURATIONS}
        for trial in StudyProgress.of(study).complete:
            by_seed[trial.params["configuration"]][trial.params["seed"]] = trial
        seeds = [
            seed
            for seed in self._settings.seeds
            if all(seed in group for group in by_seed.values())
        ]
        if len(seeds) < 2:
            raise ConfigError(
                f"At least two seeds of {study.study_name} must have a complete trial of both "
                f"configurations, but {len(seeds)} have. See the causes of failed trials in trials.csv."
            )
        return {name: [group[seed] for seed in seeds] for name, group in by_seed.items()}

    def _lines(
        self, trials: Mapping[Configuration, Sequence[FrozenTrial]]
    ) -> dict[Configuration, list[list[dict[str, Any]]]]:
        """Return the prediction lines on test, `[trainings][pairs]`; nothing without binary labels.

        The metrics of `METRICS` are those of binary labels.
        """
        if task_class(self._task).labels.kind != "binary":
            return {}
        return {
            name: [self._predictions(trial) for trial in group] for name, group in trials.items()
        }

    def _compare(
        self, lines: Mapping[Configuration, Sequence[Sequence[Line]]]
    ) -> dict[str, Comparison]:
        """Compare both configurations on test, by metric; leave out undefined metrics."""
        if not lines:
            return {}
        best, default = (lines[name] for name in CONFIGURATIONS)
        comparisons = {
            metric: compare(
                metric,
                best,
                default,
                n_samples=self._settings.n_randomisations,
                seed=self._config.seed,
                confidence=self._settings.confidence,
            )
            for metric in comparable_metrics(best[0][0])
        }
        return {metric: found for metric, found in comparisons.items() if found is not None}

    def _predictions(self, trial: FrozenTrial) -> list[dict[str, Any]]:
        """Return the prediction lines of a trial on test."""
        directory = RunDirectory(self._runs_folder / self._task / trial.user_attrs["run"])
        path = directory.predictions_of("test")
        if not path.is_file():
            raise ConfigError(
                f"{path} does not exist: {trial.user_attrs['worker']} trained trial {trial.number}. All "
                "workers must share `output_dir`; copy the run here and start the stage again."
            )
        return directory.read_predictions("test")

    def _summary(
        self,
        key: str,
        values: Sequence[float | None],
        lines: Sequence[Sequence[Line]] | None,
    ) -> Summary:
        """Return the mean and standard deviation over seeds, and the interval of the mean.

        The interval is over other posts and other seeds. It needs three seeds and a metric that the
        prediction lines give.
        """
        defined = [value for value in values if value is not None]
        # Means over different seeds are not comparable between configurations.
        if len(defined) < len(values):
            return {"values": list(values), **dict.fromkeys(("mean", "sd", "ci_low", "ci_high"))}
        name = key.removeprefix("test/")
        interval = None
        if lines and key != name and name in comparable_metrics(lines[0][0]):
            interval = mean_interval(name, lines, confidence=self._settings.confidence)
        low, high = interval or (None, None)
        return {
            "values": defined,
            "mean": statistics.mean(defined),
            "sd": statistics.stdev(defined),
            "ci_low": low,
            "ci_high": high,
        }

    def _text(
        self,
        study_name: str,
        n_seeds: int,
        summaries: Mapping[Configuration, Mapping[str, Summary]],
        comparisons: Mapping[str, Comparison],
    ) -> str:
        """Return the tables for the console."""
        shown = "mean (sd) [interval]" if n_seeds >= MIN_TRAININGS else "values"
        rows = [["metric", f"best: {shown}", f"default: {shown}"]]
        rows += [
            [key, *(_format_summary(summaries[name][key]) for name in CONFIGURATIONS)]
            for key in summaries["best"]
        ]
        mean, searched = summaries["best"][self._monitor]["mean"], self._best.value
        assert mean is not None
        headline = f"{study_name}: {n_seeds} seeds"
        if n_seeds >= MIN_TRAININGS:
            headline += (
                f"; {100 * self._settings.confidence:.0f} % intervals of the mean, for other test posts "
                "and other seeds"
            )
        lines = [
            headline,
            "",
            render_table(rows, left=1),
            "",
            f"The best value of the search was {searched:.4f} ({self._monitor}, one seed). With other "
            f"seeds the same configuration has {mean:.4f} on average ({mean - searched:+.4f}).",
            "",
            "Best against default on test:",
        ]
        for metric, found in comparisons.items():
            if found.p_value is None:
                lines.append(f"  {metric}: {found.difference:+.4f}; too few posts for a test")
                continue
            lines.append(
                f"  {metric}: {found.difference:+.4f} [{found.ci_low:+.4f}, {found.ci_high:+.4f}], "
                f"p = {found.p_value:.4f} (other posts and other seeds; {found.n_groups} authors or "
                f"posts, {n_seeds} seeds)"
            )
        if not comparisons:
            lines.append("  undefined: no positive label or gold evidence on test")
        return "\n".join(lines)

    def _plot(self, trials: Mapping[Configuration, Sequence[FrozenTrial]], folder: Path) -> Path:
        """Plot the monitor of each run on val and on test, and the best value of the search."""
        from matplotlib.figure import Figure

        figure = Figure()
        axes = figure.subplots()
        on_val = (self._monitor, -0.12, "o", "tab:blue")
        on_test = (self._test_metrics()[0], 0.12, "s", "tab:orange")
        for key, shift, marker, color in (on_val, on_test):
            points = [
                (column + shift, value)
                for column, group in enumerate(trials.values())
                for trial in group
                if (value := self._value(trial, key)) is not None
            ]
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.plot(x, y, marker, color=color, alpha=0.7, label=key)
        axes.axhline(
            self._best.value, linestyle="--", color="gray", label="best value of the search"
        )
        axes.set_xticks(range(len(trials)), list(trials))
        axes.set_ylabel(self._monitor.removeprefix("val/"))
        axes.legend()
        return save_figure(figure, folder / "seeds.png")


def _format_summary(summary: Summary) -> str:
    if summary["mean"] is None:
        return "undefined"
    mean, sd, low, high = (
        format_value(summary[name]) for name in ("mean", "sd", "ci_low", "ci_high")
    )
    if len(summary["values"]) < MIN_TRAININGS:
        return ", ".join(format_value(value) for value in summary["values"])
    return f"{mean} ({sd})" if summary["ci_low"] is None else f"{mean} ({sd}) [{low}, {high}]"
