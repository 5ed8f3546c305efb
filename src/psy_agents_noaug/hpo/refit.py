"""A stage that trains the best configuration and the default one anew, and looks at test.

The best of many trials is the best partly by luck of its seed (the winner's curse). So both are trained
with several seeds that the search has not seen, and compared on test, looked at once each.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, Trial
from scipy import stats

from psy_agents_noaug.config.loading import load_train_config, to_overrides
from psy_agents_noaug.config.schema import EvaluateConfig, TrainConfig
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.hpo.best_config import BestConfig, write_best_config
from psy_agents_noaug.hpo.objective import of_a_configuration
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
from psy_agents_noaug.metrics.comparison import Comparison, comparable_metrics, compare
from psy_agents_noaug.metrics.tables import format_value, render_table
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.evaluate import RunResult, evaluate
from psy_agents_noaug.run.train import RunPreview
from psy_agents_noaug.utils.files import write_json

Configuration = Literal["best", "default"]
CONFIGURATIONS: tuple[Configuration, ...] = ("best", "default")


class Refit(Plan):
    """Trials of the best and the default configuration, one a seed.

    Args:
        given: overrides of the command line, which win over those of both configurations.
        config: a training of the default configuration. runs: the folder of the run directories.
    """

    keep_checkpoints = True

    def __init__(
        self,
        task: str,
        stage: StageConfig,
        *,
        best: BestConfig,
        given: Mapping[str, Any],
        config: TrainConfig,
        runs: Path,
    ) -> None:
        assert stage.refit is not None
        self._task = task
        self._settings = stage.refit
        self._best = best
        self._given = dict(given)
        self._config = config
        self._runs = runs
        self.starts_from = f"trial {best.trial} of {best.study}"
        self.space = SearchSpace.read(
            {
                "configuration": {"type": "categorical", "choices": list(CONFIGURATIONS)},
                "seed": {"type": "categorical", "choices": list(stage.refit.seeds)},
            }
        )
        self.n_trials = len(self.space.grid())

    def check(self) -> None:
        monitor = self._config.training.monitor
        if monitor != self._best.monitor:
            raise ConfigError(
                f"`training.monitor` must be {self._best.monitor}, by which the best was found, but is "
                f"{monitor} instead."
            )
        seen = self._best.overrides.get("seed")
        if seen in self._settings.seeds:
            raise ConfigError(
                f"`hpo.refit.seeds` must not hold {seen}, the seed by which the search chose."
            )
        for point in self.space.grid():
            load_train_config(self._task, to_overrides(self.overrides(point)))

    def first_points(self) -> list[dict[str, Any]]:
        # A seed's two trainings are neighbours, so that half a study compares too.
        return sorted(
            self.space.grid(), key=lambda point: self._settings.seeds.index(point["seed"])
        )

    def overrides(self, values: Mapping[str, Any]) -> dict[str, Any]:
        is_best = values["configuration"] == "best"
        chosen = self._best.overrides if is_best else self._best.base
        return {**chosen, **self._given, "seed": values["seed"]}

    def finish(self, trial: Trial, result: RunResult) -> None:
        """Look at test, once for each training."""
        directory = RunDirectory(result.directory)
        test = evaluate(
            EvaluateConfig(checkpoint=str(directory.best_checkpoint), split="test"),
            task_name=self._task,
            explicit={},
        )
        figures = {key: test.metrics[key] for key in self._test_figures()}
        trial.set_user_attr("test", figures)

    def report(self, study: optuna.Study, folder: Path, run_preview: RunPreview) -> StageReport:
        csv_of_trials = write_trials(study, folder / "trials.csv")
        refuse_empty(study)
        trials = self._by_configuration(study)
        lines = {name: [self._predictions(trial) for trial in own] for name, own in trials.items()}
        compared = {
            figure: compare(
                figure,
                lines["best"],
                lines["default"],
                n_samples=self._settings.n_randomisations,
                seed=self._config.seed,
                confidence=self._settings.confidence,
            )
            for figure in comparable_metrics(lines["best"][0][0])
        }
        comparisons = {figure: found for figure, found in compared.items() if found is not None}
        monitor = self._config.training.monitor
        summaries = {
            name: {
                monitor: self._summary([trial.value for trial in own]),
                **{
                    key: self._summary([trial.user_attrs["test"].get(key) for trial in own])
                    for key in self._test_figures()
                },
            }
            for name, own in trials.items()
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
                "comparisons": {name: asdict(found) for name, found in comparisons.items()},
            },
        )
        path = folder / "best_config.yaml"
        mean = summaries["best"][monitor]["mean"]
        write_best_config(
            path,
            self._best.overrides,
            {
                **{name: getattr(self._best, name) for name in ("params", "base", "space", "top")},
                "task": self._task,
                "study": self._best.study,
                "trial": self._best.trial,
                "value": self._best.value,
                "monitor": monitor,
                # The mean is of trainings with what this stage's command line gave, too.
                "refit": {
                    "study": study.study_name,
                    "mean": mean,
                    "given": of_a_configuration(self._given),
                },
                "data": run_preview.fingerprints,
                "packages": trials["best"][0].user_attrs["packages"],
                "torch_threads": trials["best"][0].user_attrs["torch_threads"],
            },
        )
        latest = publish_latest(path, folder)
        files = [report, path, csv_of_trials]
        files += [*write_plots(study, folder), self._plot(trials, folder)]
        text = self._text(study, summaries, comparisons)
        return StageReport(
            summary=f"{text}\n\nreport: {report}; best configuration: {path}, also {latest}",
            files=files,
            figures={
                f"{name}/{key}_mean": own["mean"]
                for name, figures in summaries.items()
                for key, own in figures.items()
            },
        )

    def _test_figures(self) -> list[str]:
        """The figures on test that the table has: the monitor's, and what belongs beside it."""
        monitor = self._config.training.monitor.removeprefix("val/")
        names = [monitor, *self._config.task.headline_metrics]
        return [f"test/{name}" for name in dict.fromkeys(names)]

    def _by_configuration(self, study: optuna.Study) -> dict[Configuration, list[FrozenTrial]]:
        """Return each configuration's trials by seed, of the seeds that both were trained with."""
        found: dict[Configuration, dict[int, FrozenTrial]] = {name: {} for name in CONFIGURATIONS}
        for trial in StudyProgress.of(study).complete:
            found[trial.params["configuration"]][trial.params["seed"]] = trial
        seeds = [
            seed for seed in self._settings.seeds if all(seed in own for own in found.values())
        ]
        if len(seeds) < 2:
            raise ConfigError(
                f"{study.study_name} has both configurations trained with {len(seeds)} seeds, but two "
                "are needed to compare them. Its causes stand in trials.csv."
            )
        return {name: [own[seed] for seed in seeds] for name, own in found.items()}

    def _predictions(self, trial: FrozenTrial) -> list[dict[str, Any]]:
        directory = self._runs / self._task / trial.user_attrs["run"]
        path = directory / "predictions" / "test.jsonl"
        if not path.is_file():
            raise ConfigError(
                f"{path} is not there: {trial.user_attrs['worker']} trained trial {trial.number}. All "
                "workers must share `output_dir`; copy the run here and start the stage again."
            )
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def _summary(self, values: Sequence[float | None]) -> dict[str, float | None]:
        """Mean, standard deviation and Student's interval of the mean over seeds."""
        defined = [value for value in values if value is not None]
        # Of other seeds than the other configuration's, a mean would compare nothing.
        if len(defined) < len(values):
            return {"mean": None, "sd": None, "ci_low": None, "ci_high": None}
        mean, sd = statistics.mean(defined), statistics.stdev(defined)
        quantile = float(stats.t.ppf((1 + self._settings.confidence) / 2, len(defined) - 1))
        half = quantile * sd / len(defined) ** 0.5
        return {"mean": mean, "sd": sd, "ci_low": mean - half, "ci_high": mean + half}

    def _text(
        self,
        study: optuna.Study,
        summaries: Mapping[Configuration, Mapping[str, Mapping[str, float | None]]],
        comparisons: Mapping[str, Comparison],
    ) -> str:
        percent = f"{100 * self._settings.confidence:.0f} %"
        monitor = self._config.training.monitor
        rows = [["figure", "best: mean (sd) [interval]", "default: mean (sd) [interval]"]]
        rows += [
            [key, *(_format_summary(summaries[name][key]) for name in CONFIGURATIONS)]
            for key in summaries["best"]
        ]
        mean, searched = summaries["best"][monitor]["mean"], self._best.value
        assert mean is not None
        lines = [
            f"{study.study_name}: {len(self._by_configuration(study)['best'])} seeds; {percent} "
            "intervals of the mean over seeds (Student's t)",
            "",
            render_table(rows, left=1),
            "",
            f"The search's best value was {searched:.4f} ({monitor}, one seed); with other seeds the "
            f"same configuration has {mean:.4f} on average ({mean - searched:+.4f}).",
            "",
            "Best against default on test, paired over posts:",
        ]
        for figure, found in comparisons.items():
            interval = (
                f"[{found.ci_low:+.4f}, {found.ci_high:+.4f}]"
                if found.ci_low is not None
                else "[undefined]"
            )
            lines.append(
                f"  {figure}: {found.difference:+.4f} {interval}, p = {found.p_value:.4f} "
                f"(randomization, {self._settings.n_randomisations} swaps of {found.n_posts} posts)"
            )
        if not comparisons:
            lines.append("  undefined: no positive label or gold evidence on test")
        return "\n".join(lines)

    def _plot(self, trials: Mapping[Configuration, Sequence[FrozenTrial]], folder: Path) -> Path:
        """Draw what each seed came to, on val and on test, beside the search's value."""
        from matplotlib.figure import Figure

        monitor = self._config.training.monitor
        on_test = self._test_figures()[0]
        figure = Figure()
        axes = figure.subplots()
        for place, own in enumerate(trials.values()):
            found = {
                monitor: [trial.value for trial in own],
                on_test: [trial.user_attrs["test"].get(on_test) for trial in own],
            }
            for shift, (key, values) in zip((-0.12, 0.12), found.items(), strict=True):
                defined = [value for value in values if value is not None]
                axes.plot(
                    [place + shift] * len(defined),
                    defined,
                    "o" if shift < 0 else "s",
                    color="tab:blue" if shift < 0 else "tab:orange",
                    alpha=0.7,
                    label=key if place == 0 else None,
                )
        axes.axhline(self._best.value, linestyle="--", color="gray", label="search's best value")
        axes.set_xticks(range(len(trials)), list(trials))
        axes.set_ylabel(monitor.removeprefix("val/"))
        axes.legend()
        return save_figure(figure, folder / "seeds.png")


def _format_summary(summary: Mapping[str, float | None]) -> str:
    if summary["mean"] is None:
        return "undefined"
    mean, sd, low, high = (
        format_value(summary[name]) for name in ("mean", "sd", "ci_low", "ci_high")
    )
    return f"{mean} ({sd}) [{low}, {high}]"
