"""Figures of a criterion that was held out of training, beside TF-IDF similarity, which needs none."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from psy_agents_noaug.metrics.classification import PairPredictions, classification_metrics
from psy_agents_noaug.metrics.intervals import Samples, classification_samples
from psy_agents_noaug.metrics.jackknife import intervals
from psy_agents_noaug.metrics.spans import SpanPredictions, span_metrics, span_samples
from psy_agents_noaug.metrics.tables import beaten_line, render_table, with_interval
from psy_agents_noaug.metrics.values import (
    NO_TRAINING_PAIRS,
    Floats,
    Metrics,
    ValueOrReason,
    metrics_of,
)

BASELINE = "tfidf_similarity"
_SHOWN_BASELINE = "TF-IDF similarity"
_LABEL_COUNTS = ("n_pairs", "n_positive", "threshold")
_LABEL_FIGURES = ("auroc", "average_precision", "f1", "precision", "recall", "specificity")
_SPAN_COUNTS = ("evidence_n_pairs", "n_answerable")
_SPAN_FIGURES = ("evidence_iou_f1", "evidence_iou_precision", "evidence_iou_recall")
_SHOWN = {
    "AUROC": "auroc",
    "AP": "average_precision",
    "F1": "f1",
    "IOU F1": "evidence_iou_f1",
}
# The figures by which the model is compared with the baseline in a sentence.
_COMPARED = {"auroc": "AUROC", "evidence_iou_f1": "IOU F1"}

_Found = tuple[dict[str, ValueOrReason], Mapping[str, Floats]]


def held_out_labels(
    model: PairPredictions,
    baseline: PairPredictions | None,
    *,
    criteria: Sequence[str],
    threshold: float,
    baseline_threshold: float = 0.0,
) -> Metrics:
    """Return `<id>/<figure>` of the decisions, and the same of the baseline, with intervals.

    Args:
        model: the predictions of the pairs with held-out criteria.
        baseline: those of the baseline, of the same pairs in the same order; None where there is none.
        criteria: the held-out ones.
        threshold: of the model, fitted without them.
        baseline_threshold: likewise.

    Returns:
        Counts, AUROC, average precision, F1, precision, recall and specificity; those of the baseline
        under `<id>/baseline_tfidf_similarity/`, with `auroc_gain` and `average_precision_gain`, the
        model's minus the baseline's.
    """
    metrics: dict[str, ValueOrReason] = {}
    for criterion in criteria:
        own = model.criterion_ids == criterion
        metrics |= _beside_baseline(
            criterion,
            _label_figures(model.take(own), criterion, threshold),
            _label_figures(baseline.take(own), criterion, baseline_threshold) if baseline else None,
            compared=("auroc", "average_precision"),
        )
    return metrics_of(metrics)


def held_out_spans(
    model: SpanPredictions,
    baseline: SpanPredictions | None,
    *,
    criteria: Sequence[str],
    threshold: float,
    baseline_threshold: float,
) -> Metrics:
    """Return `<id>/<figure>` of the evidence, and the same of the baseline, as `held_out_labels` does.

    Args:
        model: the predictions of the pairs with held-out criteria.
        baseline: the sentences that are most similar to the criterion, of the same pairs; None where
            there is none.
        criteria: the held-out ones.
        threshold: of the model's spans, fitted without them.
        baseline_threshold: likewise.
    """
    metrics: dict[str, ValueOrReason] = {}
    for criterion in criteria:
        own = np.flatnonzero(model.criterion_ids == criterion)
        metrics |= _beside_baseline(
            criterion,
            _span_figures(model.take(own), criterion, threshold),
            _span_figures(baseline.take(own), criterion, baseline_threshold) if baseline else None,
            compared=("evidence_iou_f1",),
        )
    return metrics_of(metrics)


def held_out_table(metrics: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return a table of the model and the baseline, and by which figures the model is better.

    Args:
        metrics: of `held_out_labels`, `held_out_spans` or both, flat.
        names: the names of the held-out criteria, by id.
    """
    first = next(iter(names))
    shown = {title: key for title, key in _SHOWN.items() if f"{first}/{key}" in metrics}
    has_baseline = any(f"/baseline_{BASELINE}/" in key for key in metrics)
    counts = ("n_positive", "n_pairs"), ("n_answerable", "evidence_n_pairs")
    part, whole = counts[0] if f"{first}/n_pairs" in metrics else counts[1]
    rows = [["held out of training", "name", "system", "met", *shown]]
    lines = []
    for criterion, name in names.items():
        own = {
            key.removeprefix(f"{criterion}/"): value
            for key, value in metrics.items()
            if key.startswith(f"{criterion}/")
        }
        cells = [with_interval(own, key) for key in shown.values()]
        rows.append([criterion, name, "model", f"{own[part]}/{own[whole]}", *cells])
        if not has_baseline:
            continue
        cells = [with_interval(own, f"baseline_{BASELINE}/{key}") for key in shown.values()]
        rows.append(["", "", _SHOWN_BASELINE, "", *cells])
        lines += [
            f"{criterion}: {beaten_line(own, {BASELINE: _SHOWN_BASELINE}, key=key, name=title)}"
            for key, title in _COMPARED.items()
            if key in own
        ]
    if not has_baseline:
        lines.append(f"Left out, as {NO_TRAINING_PAIRS}: {_SHOWN_BASELINE}.")
    return "\n".join([render_table(rows, left=3, rules=(1,)), *lines])


def _label_figures(pairs: PairPredictions, criterion: str, threshold: float) -> _Found:
    criteria, thresholds = [criterion], {criterion: threshold}
    point = classification_metrics(pairs, criteria=criteria, thresholds=thresholds)
    samples = classification_samples(pairs, criteria=criteria, thresholds=thresholds)
    prefix = f"per_criterion/{criterion}/"
    found = _values(point, prefix, (*_LABEL_COUNTS, *_LABEL_FIGURES))
    found["n_groups"] = len(np.unique(pairs.group_ids))
    return _with_intervals(found, samples, prefix, _LABEL_FIGURES)


def _span_figures(spans: SpanPredictions, criterion: str, threshold: float) -> _Found:
    point = span_metrics(spans, criteria=[criterion], threshold=threshold)
    samples = span_samples(spans, criteria=[criterion], threshold=threshold)
    found = _values(point, f"per_criterion/{criterion}/", (*_SPAN_COUNTS, *_SPAN_FIGURES))
    # A macro average over one criterion is its figure.
    return _with_intervals(found, samples, "", ("evidence_iou_f1",))


def _values(metrics: Metrics, prefix: str, names: Sequence[str]) -> dict[str, ValueOrReason]:
    """Return the figures without the prefix, and the reason for each that is undefined."""
    values = {name: metrics.values[prefix + name] for name in names}
    return {
        name: metrics.undefined[prefix + name] if value is None else value
        for name, value in values.items()
    }


def _with_intervals(
    found: dict[str, ValueOrReason], samples: Samples, prefix: str, names: Sequence[str]
) -> _Found:
    """Return figures with their intervals, and the samples that the intervals are made of."""
    ends = samples.only([prefix + name for name in names]).intervals()
    keys = [f"{name}_ci_{end}" for name in names for end in ("low", "high")]
    own = {name: samples.values[prefix + name] for name in names}
    return found | _values(ends, prefix, keys), own


def _beside_baseline(
    criterion: str, model: _Found, baseline: _Found | None, *, compared: Sequence[str]
) -> dict[str, ValueOrReason]:
    """Return the figures of both, and the paired differences of the compared ones."""
    figures, samples = model
    own = {f"{criterion}/{name}": value for name, value in figures.items()}
    if baseline is None:
        return own
    others, other_samples = baseline
    gains = {f"{name}_gain": samples[name] - other_samples[name] for name in compared}
    of_gains = intervals(gains, bounded=False)
    found: dict[str, ValueOrReason] = {
        **others,
        **{
            name: "the figure is undefined" if np.isnan(gain[0]) else float(gain[0])
            for name, gain in gains.items()
        },
        **_values(of_gains, "", list(of_gains.values)),
    }
    return {
        **own,
        **{f"{criterion}/baseline_{BASELINE}/{name}": value for name, value in found.items()},
    }
