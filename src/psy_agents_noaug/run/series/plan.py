"""Which trainings a series is made of, and where they are; the same command finds them again."""

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock

from psy_agents_noaug.config.loading import to_yaml
from psy_agents_noaug.config.schema import FoldsConfig, SeriesConfig, TrainConfig
from psy_agents_noaug.config.series import Kind
from psy_agents_noaug.data.corpus import Post
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.folds import (
    Folds,
    make_folds,
    read_folds,
    splits_of_fold,
    without_posts,
    write_folds,
)
from psy_agents_noaug.data.splits import write_splits
from psy_agents_noaug.errors import DataError, faults_message
from psy_agents_noaug.run.data import divide, load_whole_posts
from psy_agents_noaug.run.directory import (
    RunDirectory,
    check_same_settings,
    deciding_settings,
)
from psy_agents_noaug.run.series.recorded import FOLDS, PLAN
from psy_agents_noaug.utils.files import (
    make_folder,
    read_json,
    sha256_of_json,
    storing,
    sweep,
    without_tilde,
    write_json,
)
from psy_agents_noaug.utils.private_errors import without_texts

FORMAT = 1


@dataclass(frozen=True)
class PlannedRun:
    """A training of a series.

    Args:
        fold: the fold that it is tested on, from 1; None where there are no folds.
        seed: of the training.
        config: all settings.
    """

    fold: int | None
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """How messages call it."""
        return str(self.config.run_name).rpartition("/")[2]

    @cached_property
    def directory(self) -> RunDirectory:
        """Where it is, an ordinary run."""
        config = self.config
        return RunDirectory(Path(config.output_dir) / config.task.name / str(config.run_name))


@dataclass(frozen=True)
class Series:
    """The trainings of one configuration on every fold, or on one division, with every seed.

    Args:
        kind: `cv`, `train` on one division, or `refit`: a cross-validation of train and val.
        config: the settings that all trainings have.
        seeds: of the trainings.
        folds: of the posts; None: one division.
        fingerprints: of the data.
        unused: posts that are in no fold: of a refit those of test.
    """

    kind: Kind
    config: TrainConfig
    seeds: Sequence[int]
    folds: Folds | None
    fingerprints: dict[str, str]
    unused: tuple[str, ...] = ()

    @property
    def split(self) -> Literal["test", "val"]:
        """The split of each run that is pooled; test is not looked at by `train`."""
        return "test" if self.folds else "val"

    @property
    def folder(self) -> str:
        """The folder of the runs, in that of the task."""
        prefix = "seeds" if self.kind == "train" else self.kind
        return f"{prefix}-{self.config.run_name or self.config.data.name}"

    @cached_property
    def directory(self) -> RunDirectory:
        """Where the results of the series are; it holds the directories of the runs."""
        return RunDirectory(Path(self.config.output_dir) / self.config.task.name / self.folder)

    def splits_file(self, fold: int) -> Path:
        """Return the file that divides the posts for the runs of a fold."""
        return self.directory.path / "splits" / f"fold-{fold}.json"

    @cached_property
    def runs(self) -> tuple[PlannedRun, ...]:
        """All trainings. Those of a seed follow each other: after the first, every post is judged."""
        folds = range(1, len(self.folds.members) + 1) if self.folds else [None]
        return tuple(self._run(fold, seed) for seed in self.seeds for fold in folds)

    @property
    def has_begun(self) -> bool:
        """Whether a run of this plan, or of an earlier one, is there."""
        return any(self.directory.path.glob("*/config.yaml"))

    def _run(self, fold: int | None, seed: int) -> PlannedRun:
        config, data = self.config, self.config.data
        name = f"seed-{seed}"
        if fold is not None:
            name = f"fold-{fold}-{name}"
            # Settings of `data` are relative to the data's folder.
            splits = str(self.splits_file(fold).absolute())
            data = data.model_copy(update={"splits": splits})
        own = {"data": data, "seed": seed, "run_name": f"{self.folder}/{name}", "resume": "auto"}
        if self.kind == "refit":  # whose search had another division, which the final training has
            own["best_config"] = None
        return PlannedRun(fold, seed, config.model_copy(update=own))


@without_texts()
def open_series(kind: Kind, settings: SeriesConfig, config: TrainConfig) -> Series:
    """Plan the trainings and write the division, or find that they are those of the same command.

    Raises:
        ConfigError: the directory holds a series with other settings, which are all named.
        DataError: the files of the data, of the folds or of the plan are at fault.
    """
    assert settings.seeds is not None
    corpus, examples = load_whole_posts(config)
    posts: Sequence[Post] = corpus.posts
    folds: Folds | None = None
    unused: set[str] = set()
    fingerprints = {"corpus": corpus.fingerprint}
    if kind != "cv":
        division = divide(config.data, corpus)
        fingerprints["splits"] = division.fingerprint
        if kind == "refit":
            unused = {post.post_id for post in posts}.difference(division.train, division.val)
            posts, examples = without_posts(unused, posts, examples)
    if kind != "train":
        assert isinstance(settings, FoldsConfig)
        folds = _folds(settings.folds, config, posts, examples, unused=unused)
        fingerprints["folds"] = folds.fingerprint
    own = tuple(sorted(unused))
    series = Series(kind, config, settings.seeds, folds, fingerprints, own)
    path = series.directory.path
    make_folder(path)
    for folder in (path, path / "predictions", path / "splits"):
        sweep(folder)
    with plan_lock(series):
        _check_same(series)
        if folds:
            write_folds(path / FOLDS, folds)
            _write_splits(series, folds, posts, examples)
        write_plan(series, mlflow_run_of(series))
    return series


def mlflow_run_of(series: Series) -> str | None:
    """Return the MLflow run that shows all runs of a series below it; None where there is none yet."""
    try:
        recorded = read_json(_plan_file(series))
    except DataError:  # there is none, or one that is replaced
        return None
    if not isinstance(recorded, dict):
        return None
    found = recorded.pop("mlflow_run_id", None)
    return found if series.has_begun or recorded == _content(series) else None


def write_plan(series: Series, mlflow_run_id: str | None) -> None:
    """Write plan.json. The caller holds the lock."""
    write_json(_plan_file(series), {**_content(series), "mlflow_run_id": mlflow_run_id})


@contextmanager
def plan_lock(series: Series) -> Iterator[None]:
    """Keep other commands on the same series from its plan."""
    path = series.directory.path
    with storing(path), FileLock(path / ".plan.lock"):
        yield


def _folds(
    wanted: int | str,
    config: TrainConfig,
    posts: Sequence[Post],
    examples: Sequence[Example],
    *,
    unused: Set[str],
) -> Folds:
    if isinstance(wanted, int):
        return make_folds(examples, posts=posts, n_folds=wanted, seed=config.data.split_seed)
    return read_folds(without_tilde(wanted), posts=posts, unused=unused)


def _write_splits(
    series: Series, folds: Folds, posts: Sequence[Post], examples: Sequence[Example]
) -> None:
    data = series.config.data
    train, val, _ = data.split_fractions
    met = {e.post_id for e in examples if e.label and e.criterion_id not in data.held_out_criteria}
    faults = []
    for number in range(1, len(folds.members) + 1):
        splits = splits_of_fold(
            folds,
            number,
            examples,
            posts=posts,
            unused=series.unused,
            val_share=val / (train + val),
            seed=data.split_seed,
        )
        faults += [
            f"fold {number}: no post of {name} meets a criterion"
            for name, post_ids in splits.by_name().items()
            if met.isdisjoint(post_ids)
        ]
        file = series.splits_file(number)
        make_folder(file.parent)
        write_splits(file, splits)
    if faults:
        headline = "Each part of each fold needs posts that meet a criterion:"
        remedy = "Use fewer folds, or a larger share of val (`data.split_fractions`)."
        raise DataError(f"{faults_message(headline, faults)}\n{remedy}")


def plan_sha256(series: Series) -> str:
    """Return the hash of all that decides the results of a series, wherever it is."""
    content = _content(series)
    settings = deciding_settings(series.config)
    content["config"] = {
        key: value for key, value in settings.items() if key not in ("data.dir", "data.splits")
    }
    return sha256_of_json(content)


def _plan_file(series: Series) -> Path:
    return series.directory.path / PLAN


def _content(series: Series) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "seeds": list(series.seeds),
        "data": series.fingerprints,
        "runs": [{"name": r.name, "fold": r.fold, "seed": r.seed} for r in series.runs],
        "config": yaml.safe_load(to_yaml(series.config)),
    }


def _check_same(series: Series) -> None:
    """Refuse to mix runs of other settings or data with those that are there.

    A plan of which no run has begun is replaced: its settings may have been at fault.

    Raises:
        ConfigError: naming every difference.
    """
    path = _plan_file(series)
    if not path.is_file() or not series.has_begun:
        return
    recorded, now = read_json(path), _content(series)
    if not (isinstance(recorded, dict) and isinstance(recorded.get("config"), dict)):
        raise DataError(
            f"{path} is damaged, so it is not known what the runs beside it are of. Choose another "
            "`run_name`, or put the file back."
        )
    check_same_settings(
        recorded,
        {key: now[key] for key in ("format", "seeds", "data")},
        config=series.config,
        headline=f"The runs in {series.directory.path} have other settings; use those, or choose "
        "another `run_name`:",
    )
