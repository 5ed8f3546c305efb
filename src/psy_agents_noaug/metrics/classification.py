"""Metrics of binary decisions on (criterion, text) pairs.

Label 1, "the criterion is met", is the positive class. A pair is predicted positive if its
probability is at or above its criterion's threshold.

When a metric is undefined, and why macro averages of two systems on one split are comparable:

- A criterion without a positive label has no recall, F1, AUROC or average precision, and is left
  out of every macro average. This depends on the labels alone, so every system is averaged over
  the same criteria; `n_criteria_in_macro` counts them.
- F1 is 2TP / (2TP + FP + FN). It is 0 if a criterion has positive labels and none is found.
  Macro-F1 is the mean of these, not the F1 of mean precision and mean recall (Opitz & Burst 2019,
  arXiv:1911.03347).
- Precision is undefined without a positive prediction. In `precision_macro` such a criterion counts
  as 0 (scikit-learn's `zero_division=0`), so that the mean is over the same criteria.
- AUROC needs both classes: a criterion whose labels are all positive is left out of `auroc_macro`.
- Micro averages follow the same rules, with all pairs pooled. Counts are always defined.

An undefined metric is `None`, with a reason in `Metrics.undefined`. It is never NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from psy_agents_noaug.metrics.ratios import f1_score
from psy_agents_noaug.metrics.tables import format_value, render_table

ECE_BINS = 15
FIXED_THRESHOLD = 0.5
NO_PAIRS = "no pairs"
_TIE = 1e-12  # sums of F1 that differ by no more than this are equal up to rounding
_NO_POSITIVES = "no positive labels"
_NO_DECISIONS = "no positive decisions"
_ONE_CLASS = "labels of one class only"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ValueOrReason = float | int | str  # a str is the reason why the metric is undefined


@dataclass(frozen=True, eq=False)
class PairPredictions:
    """Labels and predictions, one entry per (criterion, text) pair; all arrays have shape [pairs].

    Attributes:
        labels: 1 met, 0 not met; stored as int64.
        probabilities: p(met) in [0, 1]; stored as float64.
        criterion_ids: strings.
        group_ids: strings, the post of each pair; the bootstrap resamples these.

    Raises:
        ValueError: the arrays differ in length or hold invalid values.
    """

    labels: Ints
    probabilities: Floats
    criterion_ids: NDArray[Any]
    group_ids: NDArray[Any]

    def __post_init__(self) -> None:
        arrays = {name: np.asarray(values) for name, values in vars(self).items()}
        shapes = {name: array.shape for name, array in arrays.items()}
        if len(set(shapes.values())) > 1 or arrays["labels"].ndim != 1:
            raise ValueError(f"all arrays must have one shape [pairs], but have {shapes} instead.")
        labels = check_labels(arrays["labels"], name="labels")
        probabilities = arrays["probabilities"].astype(np.float64)
        if not ((probabilities >= 0) & (probabilities <= 1)).all():  # false for NaN too
            raise ValueError("`probabilities` must be finite and in [0, 1], but are not.")
        for name in ("criterion_ids", "group_ids"):
            if arrays[name].size and not all(isinstance(value, str) for value in arrays[name]):
                raise ValueError(f"`{name}` must be strings, but holds other values.")
            object.__setattr__(self, name, arrays[name])
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "probabilities", probabilities)


@dataclass(frozen=True)
class Metrics:
    """Metrics by key. `undefined` gives the reason for exactly the keys whose value is `None`."""

    values: dict[str, float | int | None]
    undefined: dict[str, str]


def check_labels(labels: ArrayLike, *, name: str) -> Ints:
    """Return `labels` as int64, in the same shape. Raises ValueError if one is neither 0 nor 1."""
    array = np.asarray(labels)
    if not np.isin(array, (0, 1)).all():
        raise ValueError(f"`{name}` must be 0 or 1, but holds other values.")
    return array.astype(np.int64)


def fit_thresholds(
    predictions: PairPredictions,
    *,
    criteria: Sequence[str],
    mode: Literal["global", "per_criterion"],
    min_support: int,
) -> dict[str, float]:
    """Return the decision threshold of each criterion that maximises F1 on `predictions`.

    Candidates are the smallest probability (every pair is positive), the midpoints between
    neighbouring distinct probabilities, and 0.5. Of equally good candidates the nearest to 0.5 is
    taken, then the smaller. Without a positive label the threshold is 0.5.

    Args:
        predictions: the pairs to fit on.
        criteria: every criterion, including those without pairs.
        mode: `global` fits one threshold, which maximises macro-F1; `per_criterion` fits one for
            each criterion with enough pairs and gives the global one to the others.
        min_support: pairs of each class that a criterion needs for its own threshold. It always
            needs one positive pair.

    Raises:
        ValueError: `mode` is unknown, `min_support` is negative, or a pair's criterion is not in
            `criteria`.
    """
    if mode not in ("global", "per_criterion"):
        raise ValueError(f"`mode` must be 'global' or 'per_criterion', but is {mode!r} instead.")
    if min_support < 0:
        raise ValueError(f"`min_support` must not be negative, but is {min_support} instead.")
    index = criterion_index(predictions, criteria)
    labels, probabilities = predictions.labels, predictions.probabilities
    common = _best_threshold(labels, probabilities, index)
    thresholds = dict.fromkeys(criteria, common)
    if mode == "per_criterion":
        for position, criterion in enumerate(criteria):
            own = index == position
            n_positive = int(labels[own].sum())
            n_negative = int(own.sum()) - n_positive
            if n_positive >= max(min_support, 1) and n_negative >= min_support:
                thresholds[criterion] = _best_threshold(labels[own], probabilities[own], index[own])
    return thresholds


def _best_threshold(labels: Ints, probabilities: Floats, index: Ints) -> float:
    """Return the candidate with the highest mean F1 over the criteria that have positives."""
    distinct, rank = np.unique(probabilities, return_inverse=True)
    middle = (distinct[:-1] + distinct[1:]) / 2
    # A midpoint that rounds down to its lower neighbour would make that one positive as well.
    middle = np.where(middle > distinct[:-1], middle, distinct[1:])
    candidates = np.concatenate([distinct[:1], middle, [FIXED_THRESHOLD]])
    lowest_positive = np.searchsorted(distinct, candidates, side="left")

    def count_positive(ranks: Ints) -> Ints:
        """Count the pairs with these ranks that each candidate makes positive, [candidates]."""
        counts = np.bincount(ranks, minlength=len(distinct) + 1)
        return counts[::-1].cumsum()[::-1][lowest_positive]

    f1_sum = np.zeros(len(candidates))
    for criterion in np.unique(index[labels == 1]):
        own = index == criterion
        met = rank[own & (labels == 1)]
        f1_sum += f1_score(count_positive(met), count_positive(rank[own]), len(met))
    best = candidates[f1_sum >= f1_sum.max() - _TIE]
    return float(best[np.lexsort((best, np.abs(best - FIXED_THRESHOLD)))[0]])


def classification_metrics(
    predictions: PairPredictions, *, criteria: Sequence[str], thresholds: Mapping[str, float]
) -> Metrics:
    """Return all metrics of one split, by the rules in this module's docstring.

    Keys: `n_pairs`, `n_positive`, `n_posts`, `n_criteria_in_macro`; `accuracy`;
    `{precision,recall,f1,auroc,average_precision}_{micro,macro}`; `brier` (Brier 1950); `ece`;
    `{true,false}_{positives,negatives}`; `per_criterion/<id>/...` with the same metrics and
    `threshold`; `at_0.5/...`, the metrics at threshold 0.5 instead of `thresholds`.

    Raises:
        ValueError: a pair's criterion is not in `criteria`, or a criterion is listed twice or has
            no finite threshold.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    index = criterion_index(predictions, criteria)
    cutoffs = criterion_cutoffs(criteria, thresholds)
    confusion = count_outcomes(
        index, pair_outcomes(labels, probabilities >= cutoffs[index]), len(criteria)
    )
    fixed = count_outcomes(
        index, pair_outcomes(labels, probabilities >= FIXED_THRESHOLD), len(criteria)
    )

    pooled = _ranking_metrics(labels, probabilities)
    ranking = [
        _ranking_metrics(labels[own], probabilities[own])
        for own in (index == position for position in range(len(criteria)))
    ]
    squared_errors = (probabilities - labels) ** 2
    metrics: dict[str, ValueOrReason] = {
        "n_pairs": len(labels),
        "n_positive": int(labels.sum()),
        "n_posts": len(np.unique(predictions.group_ids)),
        "n_criteria_in_macro": sum(tp + fn > 0 for tp, _, fn, _ in confusion.tolist()),
        **_decision_metrics(confusion),
        **_count_metrics(confusion.sum(axis=0)),
        **{f"{name}_micro": value for name, value in pooled.items()},
        **{f"{name}_macro": _mean([own[name] for own in ranking]) for name in pooled},
        # fmean gives the same sum in any order of rows.
        "brier": fmean(squared_errors) if len(labels) else NO_PAIRS,
        "ece": expected_calibration_error(labels, probabilities) if len(labels) else NO_PAIRS,
        **{f"at_0.5/{name}": value for name, value in _decision_metrics(fixed).items()},
    }
    for criterion, counts, own, cutoff in zip(criteria, confusion, ranking, cutoffs, strict=True):
        of_criterion: dict[str, ValueOrReason] = {
            "n_pairs": int(counts.sum()),
            "n_positive": int(counts[0] + counts[2]),
            "threshold": float(cutoff),
            **_precision_recall_f1(counts),
            **own,
            **_count_metrics(counts),
        }
        metrics |= {f"per_criterion/{criterion}/{name}": v for name, v in of_criterion.items()}
    return metrics_of(metrics)


def expected_calibration_error(
    labels: Ints, probabilities: Floats, *, n_bins: int = ECE_BINS
) -> float:
    """Return the expected calibration error of the positive-class probability (Guo et al. 2017).

    It is the sum over bins of (pairs in bin / pairs) * |share of positives - mean probability|. Bins
    have equal width and are closed on the right, as in the paper.

    Args:
        labels: 0 or 1, shape [pairs], pairs > 0.
        probabilities: shape [pairs].
        n_bins: number of bins over [0, 1].
    """
    order = np.lexsort((labels, probabilities))
    edges = np.linspace(0, 1, n_bins + 1)[1:-1]
    bins = np.searchsorted(edges, probabilities[order], side="left")
    gaps = np.bincount(bins, weights=(labels - probabilities)[order])
    return float(np.abs(gaps).sum() / len(labels))


def classification_report(
    metrics: Mapping[str, float | int | None],
    *,
    criteria: Sequence[str],
    names: Mapping[str, str],
) -> str:
    """Return a fixed-width table: one row per criterion, then the macro and the micro average.

    Support is positives / pairs; an undefined metric is shown as `n/a`.

    Args:
        metrics: the values of `classification_metrics`.
        criteria: ids in the order of rows.
        names: name of each criterion.

    Raises:
        KeyError: a criterion has no name, or a metric of a row is missing.
    """
    columns = ("precision", "recall", "f1", "auroc", "average_precision")

    def cells(prefix: str, suffix: str = "") -> list[str]:
        return [format_value(metrics[f"{prefix}{column}{suffix}"]) for column in columns]

    rows = [["criterion", "name", "support", "precision", "recall", "F1", "AUROC", "AP"]]
    for criterion in criteria:
        key = f"per_criterion/{criterion}/"
        support = f"{metrics[key + 'n_positive']}/{metrics[key + 'n_pairs']}"
        rows.append([criterion, names[criterion], support, *cells(key)])
    averaged = f"mean of {metrics['n_criteria_in_macro']}/{len(criteria)} criteria"
    rows.append(["macro", averaged, "", *cells("", "_macro")])
    support = f"{metrics['n_positive']}/{metrics['n_pairs']}"
    rows.append(["micro", "all pairs", support, *cells("", "_micro")])
    return render_table(rows, left=2, rules=(1, len(rows) - 2))


def criterion_index(predictions: PairPredictions, criteria: Sequence[str]) -> Ints:
    """Return the index in `criteria` of each pair's criterion, [pairs]."""
    positions = {criterion: position for position, criterion in enumerate(criteria)}
    if len(positions) < len(criteria):
        raise ValueError(f"`criteria` must be distinct, but are {list(criteria)} instead.")
    present, inverse = np.unique(predictions.criterion_ids, return_inverse=True)
    unknown = [str(criterion) for criterion in present if criterion not in positions]
    if unknown:
        raise ValueError(f"every pair's criterion must be in `criteria`, but {unknown} are not.")
    return np.array([positions[criterion] for criterion in present], dtype=np.int64)[inverse]


def criterion_cutoffs(criteria: Sequence[str], thresholds: Mapping[str, float]) -> Floats:
    """Return the thresholds in the order of `criteria`. Raises ValueError if one is not finite."""
    missing = [criterion for criterion in criteria if criterion not in thresholds]
    if missing:
        raise ValueError(f"`thresholds` must hold every criterion, but lacks {missing}.")
    cutoffs = np.array([thresholds[criterion] for criterion in criteria], dtype=np.float64)
    if not np.isfinite(cutoffs).all():
        raise ValueError("`thresholds` must be finite, but are not.")
    return cutoffs


def pair_outcomes(labels: Ints, decisions: NDArray[np.bool_]) -> Ints:
    """Return 0 for a true positive, 1 false positive, 2 false negative, 3 true negative; [pairs]."""
    return 3 - 2 * decisions.astype(np.int64) - labels


def count_outcomes(cells: Ints, outcomes: Ints, n_cells: int) -> Ints:
    """Return the counts of TP, FP, FN, TN in each cell, [cells, 4]; `cells` and `outcomes` [pairs]."""
    return np.bincount(cells * 4 + outcomes, minlength=n_cells * 4).reshape(n_cells, 4)


def _count_metrics(counts: Ints) -> dict[str, ValueOrReason]:
    names = ("true_positives", "false_positives", "false_negatives", "true_negatives")
    return dict(zip(names, counts.tolist(), strict=True))


def _precision_recall_f1(counts: Ints) -> dict[str, ValueOrReason]:
    tp, fp, fn, tn = counts.tolist()
    if tp + fp + fn + tn == 0:
        return dict.fromkeys(("precision", "recall", "f1"), NO_PAIRS)
    return {
        "precision": tp / (tp + fp) if tp + fp else _NO_DECISIONS,
        "recall": tp / (tp + fn) if tp + fn else _NO_POSITIVES,
        "f1": float(f1_score(tp, tp + fp, tp + fn)) if tp + fn else _NO_POSITIVES,
    }


def _decision_metrics(confusion: Ints) -> dict[str, ValueOrReason]:
    """Return accuracy, and micro and macro precision, recall and F1, from [criteria, 4]."""
    pooled = confusion.sum(axis=0)
    n_pairs = int(pooled.sum())
    averaged = [_precision_recall_f1(counts) for counts in confusion if counts[0] + counts[2]]
    for own in averaged:
        if isinstance(own["precision"], str):
            own["precision"] = 0.0
    return {
        "accuracy": int(pooled[0] + pooled[3]) / n_pairs if n_pairs else NO_PAIRS,
        **{f"{name}_micro": value for name, value in _precision_recall_f1(pooled).items()},
        **{
            f"{name}_macro": _mean([own[name] for own in averaged])
            for name in ("precision", "recall", "f1")
        },
    }


def _ranking_metrics(labels: Ints, probabilities: Floats) -> dict[str, ValueOrReason]:
    n_positive = int(labels.sum())
    reason = _NO_POSITIVES if len(labels) else NO_PAIRS
    if n_positive == 0:
        return {"auroc": reason, "average_precision": reason}
    both = n_positive < len(labels)
    if probabilities.min() == probabilities.max():
        # All pairs tie. Each start computes metrics of such pairs to list their names, and must not
        # wait for the import below.
        return {"auroc": 0.5 if both else _ONE_CLASS, "average_precision": n_positive / len(labels)}
    # Imported here because the import takes most of a second and training does not need it.
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "auroc": float(roc_auc_score(labels, probabilities)) if both else _ONE_CLASS,
        "average_precision": float(average_precision_score(labels, probabilities)),
    }


def _mean(values: Sequence[ValueOrReason]) -> ValueOrReason:
    """Return the mean of the defined values, or a reason if there are none."""
    defined = [value for value in values if not isinstance(value, str)]
    return fmean(defined) if defined else "undefined for every criterion"


def metrics_of(metrics: Mapping[str, ValueOrReason]) -> Metrics:
    """Return `metrics` with the reasons separated from the values."""
    undefined = {key: value for key, value in metrics.items() if isinstance(value, str)}
    values = {key: None if isinstance(value, str) else value for key, value in metrics.items()}
    return Metrics(values=values, undefined=undefined)
