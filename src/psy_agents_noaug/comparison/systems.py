"""The systems of a comparison: their runs, and whether they have judged the same.

Everything is read from what runs left behind; no model is loaded, and nothing is evaluated again.
"""

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from psy_agents_noaug.config.loading import as_of_today, validate_train_config
from psy_agents_noaug.errors import (
    ConfigError,
    DataError,
    PsyAgentsError,
    faults_message,
    first_of,
    not_one_of,
)
from psy_agents_noaug.metrics.comparison import MIN_TRAININGS
from psy_agents_noaug.metrics.lines import (
    Line,
    line_samples,
    pair_key,
    post_thresholds_of,
    trained_criteria_lines,
)
from psy_agents_noaug.metrics.values import Floats
from psy_agents_noaug.run.directory import RunDirectory, changed_settings
from psy_agents_noaug.run.refits import LEARNED_VAL, describe, refit_of

BASELINES = {"tfidf_lr": "TF-IDF + LR"}
_BASELINE = "baseline:"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Training:
    """The predictions of one training on a split, or those of a baseline.

    Args:
        path: of the run's directory, or of a folder in its `evaluations`.
        split: that was judged.
        baseline: key of `BASELINES`; None: the model.
    """

    path: Path
    split: str
    baseline: str | None = None

    @property
    def name(self) -> str:
        """Name it in messages."""
        return f"{_BASELINE}{self.baseline} of {self.path}" if self.baseline else str(self.path)

    @property
    def command(self) -> str:
        """Return the command that makes the predictions."""
        return f"`psy-agents eval checkpoint={self._run.path} split={self.split}`"

    @property
    def is_there(self) -> bool:
        """Whether there are predictions."""
        return self._files.predictions_of(self.split, system=self._system).is_file()

    @cached_property
    def lines(self) -> list[Line]:
        """Return the lines of trained criteria, sorted by pair. Raises DataError if they are damaged."""
        lines = self._files.read_predictions(self.split, system=self._system)
        return sorted(trained_criteria_lines([lines])[0], key=pair_key)

    @cached_property
    def samples(self) -> dict[str, Floats]:
        """Return the figures of `line_samples`, of whole posts too if their sentences are judged."""
        prefix = f"{self.split}/{self._figure_prefix}"
        thresholds = post_thresholds_of(self.figures, prefix=prefix)
        return line_samples(self.lines, post_thresholds=thresholds or None)

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Return the figures of the split in metrics.json."""
        return self._files.figures(self.split)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Return the manifest of the run."""
        return self._run.read_manifest()

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Return `data`, the fingerprints, and `weights_sha256`, of what was judged last."""
        records = [r for r in self._files.read_evaluations() if r.get("split") == self.split]
        return records[-1] if records else self.manifest

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Return the settings of the run. Raises ConfigError if they are damaged."""
        return self._run.read_config()

    def changes(self, other: "Training") -> list[str]:
        """Return the settings but the seed in which the run of another training differs."""
        now = validate_train_config(as_of_today(self.settings))
        return sorted(changed_settings(other.settings, now).keys() - {"seed"})

    def wrong_figures(self) -> list[str]:
        """Return the figures that are not those in metrics.json."""
        prefix = f"{self.split}/{self._figure_prefix}"
        reported = {key: self.figures.get(prefix + key) for key in self.samples}
        return [
            key
            for key, value in reported.items()
            if value is not None and not abs(self.samples[key][0] - value) <= _ROUNDING
        ]

    @property
    def _files(self) -> RunDirectory:
        return RunDirectory(self.path)

    @property
    def _run(self) -> RunDirectory:
        return self._files.of_training

    @property
    def _system(self) -> str | None:
        return None if self.baseline is None else f"baseline_{self.baseline}"

    @property
    def _figure_prefix(self) -> str:
        return "" if self._system is None else f"{self._system}/"


@dataclass(frozen=True)
class System:
    """What is compared: the trainings of one configuration with several seeds, or a baseline.

    Args:
        name: that tables show.
        trainings: at least one.
        is_baseline: its fit has no chance in it, so that one is all there are.
    """

    name: str
    trainings: Sequence[Training]
    is_baseline: bool = False


@dataclass(frozen=True)
class Systems:
    """Systems that have judged the same pairs.

    Args:
        task: of all of them.
        systems: in the order of the command line.
        notes: what a reader must know of them.
    """

    task: str
    systems: Sequence[System]
    notes: list[str] = field(default_factory=list)


def read_systems(words: Sequence[str], *, split: str) -> Systems:
    """Read what the words of a command line name, and check that it can be compared.

    Args:
        words: each RUN, NAME=RUN,RUN,... or baseline:NAME. A RUN may be a glob.
        split: val, test or all.

    Raises:
        ConfigError: with all faults.
    """
    faults: list[str] = []
    models, named = [], [word for word in words if word.startswith(_BASELINE)]
    for word in (word for word in words if word not in named):
        name, paths = _paths(word)
        models.append(System(name, [Training(path, split) for path in paths]))
        faults += [] if paths else [f"{word} leads to no folder"]
    runs = {training.path.resolve(): training for own in models for training in own.trainings}
    for training in runs.values():
        faults += _absence(training)
    notes: list[str] = []
    baselines = {word: _baseline(word, list(runs.values()), faults, notes) for word in named}
    ordered = [baselines[word] if word in baselines else models.pop(0) for word in words]
    if len(ordered) < 2:
        faults.append("at least two systems must be given: psy-agents compare SYSTEM SYSTEM...")
    faults += _repeated(ordered)
    _raise(faults)
    for system in ordered:
        faults += _faults_of(system)
    _raise(faults)
    first, *others = [training for system in ordered for training in system.trainings]
    for training in others:
        faults += [f"{training.name} {fault}" for fault in _mismatches(first, training)]
    _raise(faults)
    notes += _same_weights(ordered)
    notes += _refits(runs.values())
    return Systems(str(first.manifest.get("task")), ordered, notes)


def _paths(word: str) -> tuple[str, list[Path]]:
    """Return the name of a system, and the folders of its runs."""
    name, separator, value = word.partition("=")
    if not separator or "/" in name:
        name, value = "", word
    paths = [
        Path(path)
        for part in value.split(",")
        # `Path.glob` takes no absolute patterns.
        for path in (sorted(glob.glob(part)) if glob.has_magic(part) else [part])  # noqa: PTH207
    ]
    return name or Path(value).name, paths


def _absence(training: Training) -> list[str]:
    """Return why there are no predictions."""
    if not training.path.is_dir() or not training.manifest:
        return [f"{training.path} must be the directory of a run, but holds no manifest.json"]
    if not training.is_there and training.split == "val" and refit_of(training.manifest):
        return [f"{training.path} cannot be compared on val: {LEARNED_VAL}"]
    if not training.is_there:
        return [f"{training.path} has no predictions of {training.split}: {training.command}"]
    return []


def _baseline(word: str, runs: Sequence[Training], faults: list[str], notes: list[str]) -> System:
    """Return a baseline, whose predictions are those beside the first run that has them."""
    name = word.removeprefix(_BASELINE)
    found = [Training(run.path, run.split, name) for run in runs]
    there = [training for training in found if training.is_there]
    if name not in BASELINES:
        faults.append(not_one_of("baseline", list(BASELINES), name))
    elif not runs:
        faults.append(f"{word} must stand beside a run, which has its predictions")
    elif not there:
        faults.append(f"no run has the predictions of {word}: {found[0].command}")
    else:
        others = [own.path.name for own in there[1:] if _decisions(own) != _decisions(there[0])]
        if others:
            notes.append(
                f"{BASELINES[name]} is that of {there[0].path.name}; with the settings of "
                f"{first_of(others)} it decides otherwise."
            )
    return System(BASELINES.get(name, name), there[:1], is_baseline=True)


def _decisions(training: Training) -> list[Any]:
    return [(pair_key(line), line.get("decision"), line.get("evidence")) for line in training.lines]


def _repeated(systems: Sequence[System]) -> Iterator[str]:
    """Yield the names and the runs that are given twice."""
    names = [system.name for system in systems]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two systems have the name {name}: name them, as in NAME=RUN"
    paths = [t.path.resolve() for own in systems if not own.is_baseline for t in own.trainings]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield f"{path} is given twice: a run cannot be compared with itself"


def _faults_of(system: System) -> Iterator[str]:
    """Yield what is wrong with a system by itself."""
    if 1 < len(system.trainings) < MIN_TRAININGS:
        yield (
            f"{system.name} has two seeds, which say next to nothing of their spread: give "
            f"{MIN_TRAININGS} or more, or one"
        )
    for training in system.trainings:
        try:
            if not training.lines or not {line.get("label", 0) for line in training.lines} <= {
                0,
                1,
            }:
                yield f"{training.name} must have binary labels, the only ones that are compared"
            elif wrong := training.wrong_figures():
                yield (
                    f"{training.name}: its predictions do not give its figures in metrics.json "
                    f"({first_of(wrong)}): {training.command}"
                )
        except DataError as error:
            yield str(error)
        except (KeyError, TypeError, ValueError) as error:
            yield (
                f"{training.name}: its predictions are damaged, or of an earlier version "
                f"({type(error).__name__}): {training.command}"
            )
    for one, other in combinations(system.trainings, 2):
        names = f"{one.path} and {other.path}, seeds of {system.name},"
        try:
            if changes := other.changes(one):
                yield f"{names} must differ in nothing but `seed`, but differ in {first_of(changes)}"
            if one.settings.get("seed") == other.settings.get("seed") or _weights(one) == _weights(
                other
            ):
                yield f"{names} must have different seeds, but are one training twice"
        except PsyAgentsError as error:
            yield f"{names} cannot be compared: {error}"


def _weights(training: Training) -> str:
    return str(training.evaluation.get("weights_sha256"))


def _same_weights(systems: Sequence[System]) -> Iterator[str]:
    """Yield a note on each two systems that are the same weights, evaluated with other settings."""
    for one, other in combinations([own for own in systems if not own.is_baseline], 2):
        if {_weights(t) for t in one.trainings} & {_weights(t) for t in other.trainings}:
            yield f"{one.name} and {other.name} share weights, which are judged in two ways."


def _refits(runs: Iterable[Training]) -> Iterator[str]:
    """Yield a note on each training that has learned val too."""
    for training in runs:
        if origin := refit_of(training.manifest):
            yield f"{training.path}: {describe(origin)}"


def _mismatches(first: Training, other: Training) -> Iterator[str]:
    """Yield in what a training has judged something else than the first."""
    tasks = [training.manifest.get("task") for training in (first, other)]
    if tasks[0] != tasks[1]:
        yield f"is of the task {tasks[1]}, but {first.name} of {tasks[0]}"
        return
    data = [training.evaluation.get("data") or {} for training in (first, other)]
    for name, shown in (("corpus", "another corpus"), ("splits", "another division of the posts")):
        if data[0].get(name) != data[1].get(name):
            yield f"has judged {shown} than {first.name}"
    parts: dict[str, Callable[[Line], object]] = {
        "posts": lambda line: line["post_id"],
        "pairs": pair_key,
        "labels": lambda line: (pair_key(line), line.get("label")),
        "evidence": lambda line: (pair_key(line), str(_gold(line))),
        "authors": lambda line: (line["post_id"], line.get("group_id")),
    }
    for name, key in parts.items():
        own, others = ({key(line): line["post_id"] for line in t.lines} for t in (first, other))
        if differing := sorted({{**own, **others}[part] for part in own.keys() ^ others.keys()}):
            yield f"has other {name} than {first.name}, as of {first_of(differing)}"
            return


def _gold(line: Line) -> object:
    gold = line.get("gold_evidence")
    return gold and [(span["start_char"], span["end_char"]) for span in gold]


def _raise(faults: Sequence[str]) -> None:
    if faults:
        raise ConfigError(faults_message("These systems cannot be compared:", faults))
