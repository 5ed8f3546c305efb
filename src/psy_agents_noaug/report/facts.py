"""What a run has left behind, read for its report. What is missing or damaged is left out, and said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.metrics.classification import PairPredictions
from psy_agents_noaug.metrics.curves import Ranking
from psy_agents_noaug.run.directory import RunDirectory, readable_lines
from psy_agents_noaug.run.records import read_history
from psy_agents_noaug.run.refits import LEARNED_VAL, refit_of
from psy_agents_noaug.utils.files import read_json

SPLITS = (
    "test",
    "all",
    "val",
    "train",
)  # the one that a report is about is the first that there is


@dataclass(frozen=True, eq=False)
class LabelPairs:
    """The prediction lines of a split with a label and a probability.

    Args:
        pairs: with the probabilities of the model.
        calibrated: with the calibrated ones; None: the model has no calibration.
        decisions: 0 or 1, `[pairs]`.
        post_ids: `[pairs]`.
    """

    pairs: PairPredictions
    calibrated: PairPredictions | None
    decisions: NDArray[np.int64]
    post_ids: NDArray[Any]


@dataclass(frozen=True, eq=False)
class SplitFacts:
    """What is known of a split.

    Args:
        name: test, all, val or train.
        figures: as in metrics.json, without the split in their keys.
        labels: None where the task has none.
        detection: of each criterion, whether a pair has evidence and the score of its best span; of
            pairs with known evidence.
    """

    name: str
    figures: Mapping[str, Any]
    labels: LabelPairs | None = None
    detection: Mapping[str, Ranking] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RunFacts:
    """What is known of a run, or of an evaluation apart from it.

    Args:
        folder: its files.
        run: the folder of the training, which for an evaluation apart is another one.
        task: its name.
        config: the settings of the training; empty where they are not known.
        own_config: those of the evaluation, if it is apart from the run; else the same.
        manifest: empty where there is none.
        splits: those with figures, the one that the report is about first.
        history: a row per evaluation of the training.
        data: alignment.json.
        origin: of the splits.
        evaluations: the lines of evaluations.jsonl.
        n_test: how often the run's models were evaluated on test.
        criteria: the names, by id.
        faults: what could not be read.
    """

    folder: Path
    run: Path
    task: str
    config: Mapping[str, Any]
    own_config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    splits: Sequence[SplitFacts]
    history: Sequence[Mapping[str, Any]]
    data: Mapping[str, Any]
    origin: str
    evaluations: Sequence[Mapping[str, Any]]
    n_test: int
    criteria: Mapping[str, str]
    faults: Sequence[str]

    @property
    def is_apart(self) -> bool:
        """Whether it is an evaluation of other weights, data or settings than the training's."""
        return self.folder != self.run


def facts_of(folder: Path) -> RunFacts:
    """Read the directory of a run, or a folder in its `evaluations/`.

    Raises:
        ConfigError: there is nothing to report: no metrics.json with figures of a split.
        DataError: metrics.json is damaged.
    """
    own = RunDirectory(folder.resolve())
    above = RunDirectory(own.path.parent.parent)
    run = above if own.path.parent == above.other_evaluations else own
    faults: list[str] = []
    read = partial(read_or_say, faults)
    if not own.metrics.is_file() and refit_of(own.read_manifest()):
        raise ConfigError(
            f"{folder} has no figures yet: {LEARNED_VAL}. `psy-agents eval checkpoint={folder}` "
            "evaluates test, and writes the report."
        )
    figures = read_figures(own)
    names = [name for name in SPLITS if any(key.startswith(f"{name}/") for key in figures)]
    if not names:
        raise ConfigError(f"{own.metrics} has no figures of {', '.join(SPLITS)}.")
    splits = []
    for name in names:
        of_split, path = figures_of_split(figures, name), own.predictions_of(name)
        predicted = read(path, partial(_predictions, path, of_split))
        splits.append(SplitFacts(name, of_split, **predicted))
    config = read(run.config, run.read_config)
    manifest = read(run.manifest, partial(read_object, run.manifest))
    history = read(own.history, lambda: {"rows": read_history(own.history)})
    return RunFacts(
        folder=own.path,
        run=run.path,
        task=str(
            manifest.get("task") or (config.get("task") or {}).get("name") or run.path.parent.name
        ),
        config=config,
        own_config=config if run is own else read(own.config, own.read_config),
        manifest=manifest,
        splits=splits,
        history=history.get("rows", []),
        data=read(own.alignment, partial(read_object, own.alignment)),
        origin=str(read(own.splits, partial(read_object, own.splits)).get("origin", "")),
        evaluations=own.read_evaluations(),
        n_test=own.n_evaluations("test"),
        criteria=criteria_names(splits[0].figures, manifest, config),
        faults=faults,
    )


def read_figures(directory: RunDirectory) -> dict[str, Any]:
    """Return metrics.json.

    Raises:
        ConfigError: there is none.
        DataError: it is damaged.
    """
    if not directory.metrics.is_file():
        raise ConfigError(
            f"{directory.path} must be the directory of a run or of a cross-validation, or a folder in "
            "a run's evaluations/, with a metrics.json, but has none. A training writes it when it ends."
        )
    return read_object(directory.metrics)


def read_or_say(
    faults: list[str], path: Path, what: Callable[[], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return what is read of a file; nothing where it is absent or, as `faults` then says, damaged."""
    try:
        return what() if path.is_file() else {}
    except (ConfigError, DataError) as error:
        faults.append(str(error))
        return {}


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: the file is absent, damaged, or holds anything else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold a JSON object.")
    return content


def criteria_names(
    figures: Mapping[str, Any], manifest: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, str]:
    """Return the names of the criteria that have figures; empty ones where they are not known."""
    ids = list(
        dict.fromkeys(key.split("/")[1] for key in figures if key.startswith("per_criterion/"))
    )
    names = dict(manifest.get("criteria") or {})
    # Runs of 0.2.0 and earlier do not record the names.
    if not names and config and not (config.get("data") or {}).get("criteria"):
        names = {criterion.criterion_id: criterion.name for criterion in MAJOR_DEPRESSIVE_EPISODE}
    return {criterion_id: str(names.get(criterion_id, "")) for criterion_id in ids}


def figures_of_split(figures: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the figures of a split, without its name in their keys."""
    return {
        key.removeprefix(f"{name}/"): value
        for key, value in figures.items()
        if key.startswith(f"{name}/")
    }


def _predictions(path: Path, figures: Mapping[str, Any]) -> dict[str, Any]:
    return facts_of_lines(list(readable_lines(path)), figures, path)


def facts_of_lines(
    lines: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Any],
    path: Path,
    *,
    n_trainings: int = 1,
) -> dict[str, Any]:
    """Return the fields of `SplitFacts` that come from the prediction lines.

    Args:
        lines: of the split; those of held-out criteria do not count.
        figures: of the split.
        path: where the lines are from.
        n_trainings: whose lines they are, each about all pairs.

    Raises:
        DataError: the lines are damaged, or are not those that the figures are about.
    """
    lines = [line for line in lines if not line.get("held_out")]
    n_pairs = figures.get("n_pairs", figures.get("evidence_n_pairs"))
    wanted = len(lines) if n_pairs is None else n_pairs * n_trainings
    remedy = "What is drawn from it is left out. Another evaluation writes it anew."
    if wanted != len(lines):
        raise DataError(
            f"{path} has {len(lines)} whole lines, but the figures are of {wanted} pairs. {remedy}"
        )
    try:
        return {"labels": _label_pairs(lines), "detection": _detection(lines)}
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}). {remedy}") from error


def _label_pairs(lines: Sequence[Mapping[str, Any]]) -> LabelPairs | None:
    needed = {"post_id", "group_id", "criterion_id", "label", "probability", "decision"}
    if not lines or not all(needed <= line.keys() and line["label"] in (0, 1) for line in lines):
        return None
    columns = {name: np.array([line[name] for line in lines]) for name in needed}

    def pairs(probabilities: Sequence[Any]) -> PairPredictions:
        ids = columns["criterion_id"], columns["group_id"]
        return PairPredictions(columns["label"], np.asarray(probabilities), *ids)

    calibrated = [line.get("calibrated_probability") for line in lines]
    return LabelPairs(
        pairs(columns["probability"].tolist()),
        None if None in calibrated else pairs(calibrated),
        columns["decision"].astype(np.int64),
        columns["post_id"],
    )


def _detection(lines: Sequence[Mapping[str, Any]]) -> dict[str, Ranking]:
    known = [line for line in lines if line.get("gold_evidence") is not None]
    by_criterion: dict[str, list[Mapping[str, Any]]] = {}
    for line in known:
        by_criterion.setdefault(line["criterion_id"], []).append(line)
    return {
        criterion: Ranking(
            np.array([bool(line["gold_evidence"]) for line in own], dtype=np.int64),
            np.array(
                [-np.inf if (d := line["null_score_diff"]) is None else -d for line in own],
                dtype=np.float64,
            ),
            np.array([line["group_id"] for line in own]),
        )
        for criterion, own in by_criterion.items()
    }
