"""A series as its folder describes it: for what is made of it later, such as its report."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from psy_agents_noaug.data.splits import CROSS_VALIDATION
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.utils.files import read_json

PLAN = "plan.json"
FOLDS = "folds.json"

Line = dict[str, Any]


@dataclass(frozen=True)
class RecordedRun:
    """A training of a series.

    Args:
        name: of its folder.
        fold: that it is tested on, from 1; None where there are no folds.
        seed: of the training.
        directory: its files.
    """

    name: str
    fold: int | None
    seed: int
    directory: RunDirectory


@dataclass(frozen=True)
class RecordedSeries:
    """A series whose runs are done.

    Args:
        directory: of the series.
        runs: those of a seed follow each other.
        config: the settings that all trainings have.
    """

    directory: RunDirectory
    runs: Sequence[RecordedRun]
    config: Mapping[str, Any]

    @property
    def has_folds(self) -> bool:
        """Whether it is a cross-validation."""
        return self.runs[0].fold is not None

    @property
    def split(self) -> Literal["test", "val"]:
        """The split of each run that is pooled."""
        return "test" if self.has_folds else "val"

    @property
    def figures_of(self) -> str:
        """What the pooled figures have in place of a split."""
        return CROSS_VALIDATION if self.has_folds else self.split

    @property
    def seeds(self) -> list[int]:
        """The seeds, each once."""
        return list(dict.fromkeys(run.seed for run in self.runs))

    def lines(self) -> list[Line]:
        """Return the prediction lines of all runs, with `seed` and, where there are folds, `fold`.

        Raises:
            DataError: a file is absent or damaged.
        """
        return [
            line
            for run in self.runs
            for line in lines_of(run.directory, self.split, fold=run.fold, seed=run.seed)
        ]


def read_series(folder: Path) -> RecordedSeries | None:
    """Return the series in a folder; None where there is none.

    Raises:
        DataError: its plan is damaged.
    """
    path = folder / PLAN
    if not path.is_file():
        return None
    content = read_json(path)
    if isinstance(content, dict) and "runs" not in content:
        return None  # the plan of something else
    try:
        runs = [
            RecordedRun(run["name"], run["fold"], run["seed"], RunDirectory(folder / run["name"]))
            for run in content["runs"]
        ]
        return RecordedSeries(RunDirectory(folder), [runs[0], *runs[1:]], dict(content["config"]))
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}): put it back.") from error


def lines_of(
    directory: RunDirectory, split: str, *, fold: int | None, seed: int, system: str | None = None
) -> Iterator[Line]:
    """Yield the prediction lines of a run, with its seed and fold.

    Raises:
        DataError: the file is absent or damaged.
    """
    path = directory.predictions_of(split, system=system)
    own = {"fold": fold} if fold is not None else {}
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield {**json.loads(line), **own, "seed": seed}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}): remove it, and the same command writes it "
            "again."
        ) from error
