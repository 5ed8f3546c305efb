"""What a series says together: pooled predictions and figures, their spread, a table, a manifest."""

import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from psy_agents_noaug.data.splits import CROSS_VALIDATION, OUT_OF_FOLD
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.metrics.false_alarms import false_alarms_per_post
from psy_agents_noaug.metrics.lines import post_thresholds_of
from psy_agents_noaug.metrics.pooled import (
    Samples,
    counts,
    pooled_gains,
    pooled_metrics,
    training_samples,
)
from psy_agents_noaug.metrics.pooled_posts import (
    PostThresholds,
    judged_posts,
    post_figures,
    post_gains,
)
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.records import send_report
from psy_agents_noaug.run.series.plan import PlannedRun, Series
from psy_agents_noaug.run.series.recorded import FOLDS, lines_of
from psy_agents_noaug.run.series.table import series_table
from psy_agents_noaug.tasks.base import BASELINE, MetricValues, flat_metrics
from psy_agents_noaug.tasks.registry import task_class
from psy_agents_noaug.tracking.base import Tracker
from psy_agents_noaug.tracking.manifest import write_manifest

_BASELINE = f"baseline_{BASELINE}"
# Besides the headline metrics and the monitor, where a run has them.
_ALSO = (
    "cross_fitted/f1_macro",
    "per_post/f1_macro",
    "calibrated/brier",
    "calibrated/ece",
    "annotators/f1_macro",
    "annotators/model/f1_macro",
    "annotators/evidence_iou_f1",
    "annotators/model/evidence_iou_f1",
)

# Met pairs of a criterion in a fold, on average, from which an interval of average precision holds.
_MET_FOR_RANKING = 20
_FEW_MET = f"too few: a fold has fewer than {_MET_FOR_RANKING} met pairs, and ranks them too well"

Lines = list[dict[str, Any]]


def report_series(series: Series, *, mlflow_run_id: str | None = None) -> RunResult:
    """Pool the runs of a series, which are all done, and write what they say together.

    `metrics.json` has it under `cv/...`, or `val/...` of trainings on one division.

    Args:
        series: the runs.
        mlflow_run_id: the MLflow run of the series, for the manifest.

    Raises:
        DataError: a file of a run is damaged, or is not of this series.
    """
    name = CROSS_VALIDATION if series.folds else series.split
    trainings = [_lines(series, seed) for seed in series.seeds]
    figures = _figures(series, trainings)
    directory = series.directory
    metrics = {f"{name}/{key}": value for key, value in figures.items()}
    directory.add_metrics(metrics)
    if series.folds:
        directory.write_predictions(OUT_OF_FOLD, (line for lines in trainings for line in lines))
    _write_manifest(series, mlflow_run_id)
    summary = series_table(series, figures, headline=series.config.task.headline_metrics)
    return RunResult(directory.path, metrics, summary)


def send_series(series: Series, tracker: Tracker, metrics: Mapping[str, Any]) -> None:
    """Send the settings, the pooled figures and predictions, and the folds to the tracker.

    Args:
        series: whose files are written.
        tracker: of the series.
        metrics: those of `report_series`.
    """
    directory = series.directory
    own = {"seeds": list(series.seeds), "folds": series.folds and len(series.folds.members)}
    # Settings of one run that the others have not.
    tracker.log_params({**own, **series.config.model_dump(exclude={"seed", "run_name", "resume"})})
    tracker.set_tags({f"data.{name}": value for name, value in series.fingerprints.items()})
    send_report(tracker, directory, OUT_OF_FOLD, metrics, step=0)
    for path in (directory.manifest, directory.path / FOLDS):
        if path.is_file():
            tracker.log_artifact(path)


def _figures(series: Series, trainings: Sequence[Lines]) -> MetricValues:
    figures: MetricValues = {"n_runs": len(series.runs), "n_seeds": len(series.seeds)}
    if series.folds:
        figures["n_folds"] = len(series.folds.members)
    figures |= _spread(series)
    # The figures of lines are those of binary labels, and of evidence.
    if task_class(series.config.task.name).labels.kind != "binary":
        return figures
    judged = [[line for line in lines if not line.get("held_out")] for lines in trainings]
    samples = training_samples(judged)
    figures |= counts(judged[0]) | flat_metrics(pooled_metrics(samples))
    for key in series.config.task.headline_metrics:
        if key in samples:
            figures |= {
                f"per_seed/{seed}/{key}": None if value != value else float(value)  # NaN
                for seed, value in zip(series.seeds, samples[key][:, 0], strict=True)
            }
    baseline = _baseline_lines(series)
    figures |= _baseline(baseline, samples)
    figures |= _whole_posts(series, judged, baseline) if "decision" in judged[0][0] else {}
    if series.folds:
        figures |= without_doubtful_intervals(figures, n_folds=len(series.folds.members))
    return figures


def without_doubtful_intervals(figures: MetricValues, *, n_folds: int) -> MetricValues:
    """Return the intervals of average precision that do not hold: none, with the reason.

    The average precision of a few met pairs comes out too high, in each fold, and the jackknife corrects
    a part of it alone (`benchmarks/cv_coverage.py`).
    """
    n_met_of = {unit: _met_by_criterion(figures, unit) for unit in ("", "per_post/")}
    found: MetricValues = {}
    for key in figures:
        if "average_precision" not in key or not key.endswith(("_ci_low", "_ci_high")):
            continue
        # A post has one pair of a criterion, its sentences may have several met ones.
        n_met = n_met_of["per_post/" if "per_post/" in key else ""]
        criterion = key.partition("per_criterion/")[2].partition("/")[0]
        own = [n_met.get(criterion, 0)] if criterion else [n for n in n_met.values() if n]
        if min(own, default=0) < _MET_FOR_RANKING * n_folds:
            found |= {key: None, f"{key}_undefined": _FEW_MET}
    return found


def _met_by_criterion(figures: MetricValues, prefix: str) -> dict[str, int]:
    start, end = f"{prefix}per_criterion/", "/n_positive"
    return {
        key.removeprefix(start).removesuffix(end): value
        for key, value in figures.items()
        if key.startswith(start) and key.endswith(end) and isinstance(value, int)
    }


def _baseline_lines(series: Series) -> Lines:
    """Return the lines of TF-IDF, which depends on no seed; none where a run has none."""
    runs = _runs(series, series.seeds[0])
    files = [run.directory.predictions_of(series.split, system=_BASELINE) for run in runs]
    if not all(file.is_file() for file in files):
        return []
    return [line for run in runs for line in _lines_of(series, run, _BASELINE)]


def _baseline(lines: Lines, samples: Samples) -> MetricValues:
    """Return the figures of TF-IDF, pooled likewise, and the model's gain."""
    if not lines:
        return {}
    of_baseline = training_samples([lines])
    overall = {key: values for key, values in of_baseline.items() if "/" not in key}
    figures = flat_metrics(pooled_metrics(overall)) | flat_metrics(pooled_gains(samples, overall))
    return _named(_BASELINE, figures)


def _whole_posts(series: Series, trainings: Sequence[Lines], baseline: Lines) -> MetricValues:
    """Return the figures of whole posts, and where sentences are judged those of TF-IDF."""
    thresholds = [_post_thresholds(series, seed) for seed in series.seeds]
    posts = [
        judged_posts(lines, own or None) for lines, own in zip(trainings, thresholds, strict=True)
    ]
    figures = _named("per_post", flat_metrics(post_figures(posts, of_sentences=all(thresholds))))
    if not all(thresholds):
        return figures
    figures["false_alarms_per_post"] = statistics.fmean(map(_false_alarms, trainings))
    if baseline and (own := _post_thresholds(series, series.seeds[0], f"{_BASELINE}/")):
        gains = post_gains(posts, judged_posts(baseline, own))
        figures |= _named(f"{_BASELINE}/per_post", flat_metrics(gains))
    return figures


def _false_alarms(lines: Lines) -> float:
    columns = {key: np.array([line[key] for line in lines]) for key in ("post_id", "label")}
    decisions = np.array([line["decision"] for line in lines])
    found = false_alarms_per_post(columns["post_id"], columns["label"], decisions)
    assert found is not None  # there are lines
    return found


def _post_thresholds(series: Series, seed: int, system: str = "") -> PostThresholds:
    """Return the thresholds of whole posts in each fold; none where posts are judged themselves."""
    found = {
        run.fold or 0: post_thresholds_of(
            run.directory.figures(series.split), prefix=f"{series.split}/{system}"
        )
        for run in _runs(series, seed)
    }
    return found if all(found.values()) else {}


def _named(prefix: str, figures: Mapping[str, Any]) -> MetricValues:
    return {f"{prefix}/{key}": value for key, value in figures.items()}


def _runs(series: Series, seed: int) -> list[PlannedRun]:
    return [run for run in series.runs if run.seed == seed]


def _lines(series: Series, seed: int) -> Lines:
    """Return the prediction lines of a seed, of every fold in turn."""
    lines = [line for run in _runs(series, seed) for line in _lines_of(series, run)]
    if series.folds:
        pairs = [(line["example_id"], line["criterion_id"]) for line in lines]
        if len(set(pairs)) < len(pairs):
            raise DataError(
                f"{series.directory.path}: a pair is in the predictions of two folds, so they are not "
                "of this cross-validation. Remove the runs that were copied here."
            )
    return lines


def _lines_of(series: Series, run: PlannedRun, system: str | None = None) -> Lines:
    read = lines_of(run.directory, series.split, fold=run.fold, seed=run.seed, system=system)
    return list(read)


def _spread(series: Series) -> MetricValues:
    """Return the mean over runs of each run's own figures, and their spread over folds and seeds."""
    config = series.config
    monitor = config.training.monitor.removeprefix("val/")
    names = dict.fromkeys([*config.task.headline_metrics, monitor, *_ALSO])
    own = {(run.fold, run.seed): run.directory.figures(series.split) for run in series.runs}
    folds = list(dict.fromkeys(fold for fold, _ in own))
    found: MetricValues = {}
    for name in names:
        key = f"{series.split}/{name}"
        if not any(key in figures for figures in own.values()):
            continue
        values = {at: figures[key] for at, figures in own.items() if figures.get(key) is not None}
        if len(values) < len(own):
            reason = f"undefined in {len(own) - len(values)} of {len(own)} runs"
            found |= {f"mean_of_runs/{name}": None, f"mean_of_runs/{name}_undefined": reason}
            continue
        found[f"mean_of_runs/{name}"] = statistics.fmean(values.values())
        of_folds = [statistics.fmean(values[fold, s] for s in series.seeds) for fold in folds]
        of_seeds = [statistics.fmean(values[fold, s] for fold in folds) for s in series.seeds]
        for unit, means in (("folds", of_folds), ("seeds", of_seeds)):
            if len(means) > 1:
                found[f"sd_over_{unit}/{name}"] = statistics.stdev(means)
    return found


def _write_manifest(series: Series, mlflow_run_id: str | None) -> None:
    directory, config = series.directory, series.config
    manifests = {run.name: run.directory.read_manifest() for run in series.runs}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_manifest(
        directory.manifest,
        task=config.task.name,
        run_name=series.folder,
        created_at=directory.read_manifest().get("created_at", now),
        data={"name": config.data.name, **series.fingerprints},
        weights_sha256=None,
        command=sys.argv,
        extra={
            "status": "finished",
            "updated_at": now,
            "kind": series.kind,
            "folds": None if series.folds is None else series.folds.origin,
            "seeds": list(series.seeds),
            "mlflow_run_id": mlflow_run_id,
            "criteria": manifests[series.runs[0].name].get("criteria", {}),
            "runs": {name: found.get("weights_sha256") for name, found in manifests.items()},
            "pretrained_model": config.model.pretrained_model,
        },
    )
