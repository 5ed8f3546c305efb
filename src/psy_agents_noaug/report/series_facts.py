"""What a cross-validation, or several seeds, have left behind, read for their report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.metrics.lines import Line
from psy_agents_noaug.report.facts import (
    RunFacts,
    SplitFacts,
    criteria_names,
    facts_of_lines,
    figures_of_split,
    read_figures,
    read_object,
    read_or_say,
)
from psy_agents_noaug.run.series.recorded import RecordedRun, RecordedSeries


@dataclass(frozen=True, eq=False)
class SeriesRun:
    """A run of a series.

    Args:
        recorded: its name, fold and seed.
        figures: of the split that is pooled, without its name in their keys.
        manifest: empty where it is damaged.
    """

    recorded: RecordedRun
    figures: Mapping[str, Any]
    manifest: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class SeriesFacts:
    """What is known of a series.

    Args:
        pooled: as of a run; its only split has the pooled figures, and the lines of all runs.
        series: its runs and settings.
        runs: with their figures.
        lines: the prediction lines of all runs; none if they cannot be read.
        data: of each run with the first seed, what was found in the data, by its name.
    """

    pooled: RunFacts
    series: RecordedSeries
    runs: Sequence[SeriesRun]
    lines: Sequence[Line]
    data: Mapping[str, Mapping[str, Any]]

    @property
    def split(self) -> SplitFacts:
        """The pooled figures."""
        return self.pooled.splits[0]

    def lines_of(self, run: RecordedRun) -> list[Line]:
        """Return the lines of a run."""
        own = (run.fold, run.seed)
        return [line for line in self.lines if (line.get("fold"), line["seed"]) == own]


def series_facts(series: RecordedSeries) -> SeriesFacts:
    """Read the folder of a series.

    Raises:
        ConfigError: nothing is pooled yet.
        DataError: metrics.json is damaged.
    """
    directory, name = series.directory, series.figures_of
    figures = figures_of_split(read_figures(directory), name)
    if not figures:
        raise ConfigError(f"{directory.metrics} has no figures of {name}.")
    faults: list[str] = []
    read = partial(read_or_say, faults)
    manifest = read(directory.manifest, partial(read_object, directory.manifest))
    lines, predicted = _predicted(series, figures, read)
    runs = [
        SeriesRun(run, own.get("figures", {}), _manifest(run, read))
        for run in series.runs
        for own in [read(run.directory.metrics, partial(_figures_of, run, series.split))]
    ]
    data = {
        run.name: read(run.directory.alignment, partial(read_object, run.directory.alignment))
        for run in series.runs
        if run.seed == series.seeds[0]
    }
    splits = series.runs[0].directory.splits
    origin = manifest.get("folds") or read(splits, partial(read_object, splits)).get("origin", "")
    task = (series.config.get("task") or {}).get("name") or directory.path.parent.name
    pooled = RunFacts(
        folder=directory.path.resolve(),
        run=directory.path.resolve(),
        task=str(manifest.get("task") or task),
        config=series.config,
        own_config=series.config,
        manifest=manifest,
        splits=[SplitFacts(name, figures, **predicted)],
        history=[],
        data={},
        origin=str(origin),
        evaluations=[],
        n_test=sum(run.directory.n_evaluations("test") for run in series.runs),
        criteria=criteria_names(figures, manifest, series.config),
        faults=faults,
    )
    return SeriesFacts(pooled, series, runs, lines, data)


def _predicted(
    series: RecordedSeries, figures: Mapping[str, Any], read: Any
) -> tuple[list[Line], dict[str, Any]]:
    """Return the lines of trained criteria, and the fields of `SplitFacts`; both empty at a fault."""

    def of_lines() -> dict[str, Any]:
        lines = [line for line in series.lines() if not line.get("held_out")]
        n_trainings = len(series.seeds)
        path = series.directory.path
        found = facts_of_lines(lines, figures, path, n_trainings=n_trainings)
        return {"lines": lines, **found}

    found = dict(read(series.directory.metrics, of_lines))
    return found.pop("lines", []), found


def _figures_of(run: RecordedRun, split: str) -> dict[str, Any]:
    return {"figures": figures_of_split(read_figures(run.directory), split)}


def _manifest(run: RecordedRun, read: Any) -> Mapping[str, Any]:
    path: Path = run.directory.manifest
    found: Mapping[str, Any] = read(path, partial(read_object, path))
    return found
