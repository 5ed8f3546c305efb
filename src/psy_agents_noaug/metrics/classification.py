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
- A criterion whose labels are all positive has a recall, but no F1, precision, AUROC or average
  precision, and is left out of every macro average: whoever always says "met" would have 1.
- Micro averages follow the same rules, with all pairs pooled. Counts are always defined.

An undefined metric is `None`, with a reason in `Metrics.undefined`. It is never NaN.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from psy_agents_noaug.metrics.ratios import f1_score
from psy_agents_noaug.metrics.values import (
    NO_PAIRS,
    Floats,
    Ints,
    Metrics,
    ValueOrReason,
    metrics_of,
)

ECE_BINS = 15
FIXED_THRESHOLD = 0.5
_N_BOOTSTRAPS = 200
_MAX_CANDIDATES = 1000
_TIE = 1e-12  # sums of F1 that differ by no more than this are equal up to rounding
_NO_POSITIVES = "no positive labels"
_NO_DECISIONS = "no positive decisions"
_ONE_CLASS = "labels of one class only"


@dataclass(frozen=True, eq=False)
class PairPredictions:
    """Labels and predictions, one entry per (criterion, text) pair; all arrays have shape [pairs].

    Attributes:
        labels: 1 met, 0 not met; stored as int64.
        probabilities: p(met) in [0, 1]; stored as float64.
        criterion_ids: strings.
        group_ids: strings, the author (or post) of each pair; the units of the intervals.

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

    def take(self, rows: Any) -> "PairPredictions":
        """Return the pairs that an index or a mask chooses."""
        return PairPredictions(**{name: array[rows] for name, array in vars(self).items()})


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

    What is maximised is the mean F1 over bootstrap samples of the groups, so that a few posts do not
    decide (`benchmarks/RESULTS.md` has what it is worth). The samples are always the same.

    Candidates are the smallest probability (every pair is positive), the midpoints between
    neighbouring distinct probabilities, and 0.5; of very many probabilities, midpoints are taken that
    lie closer the higher they are. Of equally good candidates the nearest to 0.5 is taken, then the
    smaller. Without labels of both classes the threshold is 0.5.

    Args:
        predictions: the pairs to fit on.
        criteria: every criterion, including those without pairs.
        mode: `global` fits one threshold, which maximises macro-F1; `per_criterion` fits one for
            each criterion with enough pairs and gives the global one to the others.
        min_support: pairs of each class that a criterion needs for its own threshold. It always
            needs one.

    Raises:
        ValueError: `mode` is unknown, `min_support` is negative, or a pair's criterion is not in
            `criteria`.
    """
    if mode not in ("global", "per_criterion"):
        raise ValueError(f"`mode` must be 'global' or 'per_criterion', but is {mode!r} instead.")
    if min_support < 0:
        raise ValueError(f"`min_support` must not be negative, but is {min_support} instead.")
    index = criterion_index(predictions, criteria)
    labels = predictions.labels
    n_positive = np.bincount(index, weights=labels, minlength=len(criteria))
    n_negative = np.bincount(index, weights=1 - labels, minlength=len(criteria))
    in_macro = np.flatnonzero((n_positive > 0) & (n_negative > 0))
    common = _best_threshold(predictions, index, in_macro)
    thresholds = dict.fromkeys(criteria, common)
    if mode == "per_criterion":
        for position, criterion in enumerate(criteria):
            if min(n_positive[position], n_negative[position]) >= max(min_support, 1):
                thresholds[criterion] = _best_threshold(predictions, index, np.array([position]))
    return thresholds


def _best_threshold(predictions: PairPredictions, index: Ints, positions: Ints) -> float:
    """Return the candidate with the highest mean F1, over bootstrap samples and these criteria."""
    rows = np.isin(index, positions)
    if not rows.any():
        return FIXED_THRESHOLD
    candidates = _candidates(predictions.probabilities[rows])
    ids, groups = np.unique(predictions.group_ids, return_inverse=True)
    rng = np.random.default_rng(0)
    draws = (rng.integers(len(ids), size=len(ids)) for _ in range(_N_BOOTSTRAPS))
    times = np.stack([np.bincount(draw, minlength=len(ids)) for draw in draws], axis=1)
    sums, counts = np.zeros((2, len(candidates), _N_BOOTSTRAPS))
    for position in positions:
        own = index == position
        f1 = f1_at(
            predictions.labels[own], predictions.probabilities[own], times[groups[own]], candidates
        )
        defined = ~np.isnan(f1)
        sums[:, defined[0]] += f1[:, defined[0]]
        counts += defined
    # A sample without a positive of any criterion says nothing.
    informative = counts[0] > 0
    means = (sums[:, informative] / counts[:, informative]).mean(axis=1)
    best = candidates[means >= means.max() - _TIE]
    return float(best[np.lexsort((best, np.abs(best - FIXED_THRESHOLD)))[0]])


def _candidates(probabilities: Floats) -> Floats:
    """Return the thresholds to try, ascending but for 0.5, which is the last."""
    distinct = np.unique(probabilities)
    middle = (distinct[:-1] + distinct[1:]) / 2
    # A midpoint that rounds down to its lower neighbour would make that one positive as well.
    middle = np.where(middle > distinct[:-1], middle, distinct[1:])
    if len(middle) > _MAX_CANDIDATES:
        ranks = np.unique(np.geomspace(1, len(middle), _MAX_CANDIDATES).astype(np.int64))
        middle = middle[len(middle) - ranks[::-1]]
    return np.concatenate([distinct[:1], middle, [FIXED_THRESHOLD]])


def f1_at(labels: Ints, probabilities: Floats, times: Ints, thresholds: Floats) -> Floats:
    """Return the F1 of each threshold in each sample, `[thresholds, samples]`.

    Args:
        labels: of a criterion's pairs, `[pairs]`.
        probabilities: likewise.
        times: how often each pair is in each sample, `[pairs, samples]`.
        thresholds: `[thresholds]`.
    """
    order = np.argsort(-probabilities, kind="stable")
    times = times[order]
    none = np.zeros((1, times.shape[1]))
    found = np.concatenate([none, (times * labels[order, None]).cumsum(axis=0)])
    decided = np.concatenate([none, times.cumsum(axis=0)])
    n_decided = np.searchsorted(-probabilities[order], -thresholds, side="right")
    return f1_score(
        found[n_decided],
        decided[n_decided],
        np.broadcast_to(found[-1], (len(thresholds), times.shape[1])),
    )


def classification_metrics(
    predictions: PairPredictions, *, criteria: Sequence[str], thresholds: Mapping[str, float]
) -> Metrics:
    """Return all metrics of one split, by the rules in this module's docstring.

    Keys: `n_pairs`, `n_positive`, `n_groups`, `n_criteria_in_macro`; `accuracy`;
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
    metrics: dict[str, ValueOrReason] = {
        "n_pairs": len(labels),
        "n_positive": int(labels.sum()),
        "n_groups": len(np.unique(predictions.group_ids)),
        "n_criteria_in_macro": sum(_both_classes(counts) for counts in confusion),
        **_decision_metrics(confusion),
        **_count_metrics(confusion.sum(axis=0)),
        **{f"{name}_micro": value for name, value in pooled.items()},
        **{f"{name}_macro": _mean([own[name] for own in ranking]) for name in pooled},
        "brier": brier_score(labels, probabilities) if len(labels) else NO_PAIRS,
        "ece": expected_calibration_error(labels, probabilities) if len(labels) else NO_PAIRS,
        **{f"at_0.5/{name}": value for name, value in _decision_metrics(fixed).items()},
    }
    for criterion, counts, own, cutoff in zip(criteria, confusion, ranking, cutoffs, strict=True):
        of_criterion: dict[str, ValueOrReason] = {
            "n_pairs": int(counts.sum()),
            "n_positive": int(counts[0] + counts[2]),
            "threshold": float(cutoff),
            **_precision_recall_f1(counts),
            **_negative_metrics(counts),
            **own,
            **_count_metrics(counts),
        }
        metrics |= {f"per_criterion/{criterion}/{name}": v for name, v in of_criterion.items()}
    return metrics_of(metrics)


def brier_score(labels: Ints, probabilities: Floats) -> float:
    """Return the mean squared error of the probabilities; `[pairs]` each, pairs > 0."""
    # fmean gives the same sum in any order of rows.
    return fmean((probabilities - labels) ** 2)


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


def cutoffs_at_specificity(
    predictions: PairPredictions, *, criteria: Sequence[str], specificity: float
) -> dict[str, float]:
    """Return the lowest cut-off of each criterion at which this share of its unmet pairs is below.

    Criteria without an unmet pair are left out.

    Args:
        predictions: of val.
        criteria: every criterion.
        specificity: the share, in (0, 1).
    """
    index = criterion_index(predictions, criteria)
    cutoffs = {}
    for position, criterion in enumerate(criteria):
        unmet = np.sort(predictions.probabilities[(index == position) & (predictions.labels == 0)])
        if len(unmet):
            highest_below = unmet[int(np.ceil(specificity * len(unmet))) - 1]
            cutoffs[criterion] = float(np.nextafter(highest_below, np.inf))
    return cutoffs


def recall_at_cutoffs(
    predictions: PairPredictions, *, criteria: Sequence[str], cutoffs: Mapping[str, float]
) -> Metrics:
    """Return `per_criterion/<id>/recall_at_specificity`, at the `cutoffs` that val has chosen.

    Args:
        predictions: of the judged split.
        criteria: every criterion.
        cutoffs: from `cutoffs_at_specificity`.
    """
    index = criterion_index(predictions, criteria)
    metrics: dict[str, ValueOrReason] = {}
    for position, criterion in enumerate(criteria):
        met = predictions.probabilities[(index == position) & (predictions.labels == 1)]
        value: ValueOrReason = _NO_POSITIVES
        if criterion not in cutoffs:
            value = "no unmet pair in val"
        elif len(met):
            value = float((met >= cutoffs[criterion]).mean())
        metrics[f"per_criterion/{criterion}/recall_at_specificity"] = value
    return metrics_of(metrics)


def values_at_prevalence(
    metrics: Mapping[str, Any], *, prevalence: float
) -> dict[str, float | str | None]:
    """Return the predictive values that each criterion would have at another prevalence (Bayes' rule).

    Args:
        metrics: with `per_criterion/<id>/recall` and `.../specificity`; None is undefined.
        prevalence: share of posts that meet a criterion, in (0, 1).
    """
    found: dict[str, float | str | None] = {"prevalence": prevalence}
    for key in [k for k in metrics if re.fullmatch(r"per_criterion/.*/specificity", k)]:
        prefix = key.removesuffix("specificity")
        recall, specificity = metrics[f"{prefix}recall"], metrics[key]
        names = ("precision_at_prevalence", "npv_at_prevalence")
        values: tuple[float | None, float | None] = (None, None)
        if recall is None or specificity is None:
            reason = "sensitivity or specificity is undefined"
            found |= {f"{prefix}{name}_undefined": reason for name in names}
        if recall is not None and specificity is not None:
            met, unmet = prevalence, 1 - prevalence
            positive = recall * met + (1 - specificity) * unmet
            negative = specificity * unmet + (1 - recall) * met
            values = (
                recall * met / positive if positive else None,
                specificity * unmet / negative if negative else None,
            )
        found |= {f"{prefix}{name}": value for name, value in zip(names, values, strict=True)}
    return found


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
        **({} if fp + tn else {"precision": _ONE_CLASS, "f1": _ONE_CLASS}),
    }


def _negative_metrics(counts: Ints) -> dict[str, ValueOrReason]:
    tp, fp, fn, tn = counts.tolist()
    if tp + fp + fn + tn == 0:
        return dict.fromkeys(("specificity", "npv"), NO_PAIRS)
    return {
        "specificity": tn / (tn + fp) if tn + fp else "no negative labels",
        "npv": tn / (tn + fn) if tn + fn else "no negative decisions",
    }


def _both_classes(counts: Ints) -> bool:
    tp, fp, fn, tn = counts.tolist()
    return bool(tp + fn and fp + tn)


def _accuracy(counts: Ints) -> ValueOrReason:
    if not counts.sum():
        return NO_PAIRS
    return float(counts[[0, 3]].sum() / counts.sum()) if _both_classes(counts) else _ONE_CLASS


def _decision_metrics(confusion: Ints) -> dict[str, ValueOrReason]:
    """Return accuracy, and micro and macro precision, recall and F1, from [criteria, 4]."""
    pooled = confusion.sum(axis=0)
    averaged = [_precision_recall_f1(counts) for counts in confusion if _both_classes(counts)]
    for own in averaged:
        if isinstance(own["precision"], str):
            own["precision"] = 0.0
    return {
        "accuracy": _accuracy(pooled),
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
    if n_positive == len(labels):
        return {"auroc": _ONE_CLASS, "average_precision": _ONE_CLASS}
    if probabilities.min() == probabilities.max():
        # All pairs tie. Each start computes metrics of such pairs to list their names, and must not
        # wait for the import below.
        return {"auroc": 0.5, "average_precision": n_positive / len(labels)}
    # Imported here because the import takes most of a second and training does not need it.
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "auroc": float(roc_auc_score(labels, probabilities)),
        "average_precision": float(average_precision_score(labels, probabilities)),
    }


def _mean(values: Sequence[ValueOrReason]) -> ValueOrReason:
    """Return the mean of the defined values, or a reason if there are none."""
    defined = [value for value in values if not isinstance(value, str)]
    return fmean(defined) if defined else "undefined for every criterion"
