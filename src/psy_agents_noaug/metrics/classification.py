"""Metrics of binary decisions on (criterion, text) pairs.

Label 1, "the criterion is met", is the positive class. A pair is decided positive when its
probability is at or above its criterion's threshold.

What is undefined, and why macro figures of two systems on one split are comparable:

- A criterion without a positive label has no recall, F1, AUROC or average precision, and enters
  no macro figure. That depends on the labels alone, so every system is averaged over the same
  criteria; `n_criteria_in_macro` counts them.
- F1 is 2TP / (2TP + FP + FN): 0 for a criterion with positive labels of which none is found.
  Macro-F1 is the mean of these, not the F1 of mean precision and mean recall (Opitz & Burst 2019,
  arXiv:1911.03347).
- Precision without a positive decision is undefined. In `precision_macro` alone such a criterion
  counts 0, as with scikit-learn's `zero_division=0`, so that the mean is over the same criteria.
- AUROC needs both classes: a criterion whose labels are all positive is left out of `auroc_macro`.
- The same holds for micro figures, with all pairs pooled. Counts are always defined, 0 included.

An undefined figure is `None` with a reason in `Metrics.undefined`; it is never NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

ECE_BINS = 15
FIXED_THRESHOLD = 0.5
BOOTSTRAPPED = (
    "f1_macro",
    "f1_micro",
    "accuracy",
    "auroc_macro",
    "auroc_micro",
    "average_precision_macro",
    "average_precision_micro",
)
_TIE = 1e-12  # sums of F1 closer than this are equal but for rounding
_CHUNK_CELLS = 2**22  # pairs times resamples held at once: 32 MiB an array
_NO_PAIRS = "no pairs"
_NO_POSITIVES = "no positive labels"
_NO_DECISIONS = "no positive decisions"
_ONE_CLASS = "labels of one class only"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_Figure = float | int | str  # a str is the reason why the figure is undefined


@dataclass(frozen=True, eq=False)
class PairPredictions:
    """Labels and predictions, one entry a (criterion, text) pair; all arrays have shape [pairs].

    Attributes:
        labels: 1 met, 0 not met; kept as int64.
        probabilities: p(met) in [0, 1]; kept as float64.
        criterion_ids: strings.
        group_ids: strings, the post of each pair; what the bootstrap resamples.

    Raises:
        ValueError: the arrays differ in length or hold values that they must not.
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
    """Flat figures. `undefined` gives the reason for exactly the keys whose value is `None`."""

    values: dict[str, float | int | None]
    undefined: dict[str, str]


def check_labels(labels: ArrayLike, *, name: str) -> Ints:
    """`labels` as int64 of the same shape. Raises ValueError if one is neither 0 nor 1."""
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
    """The decision threshold of each criterion that maximises F1 on `predictions`.

    Candidates are the midpoints between neighbouring distinct probabilities, and 0.5; of equally
    good ones the nearest to 0.5 wins, then the smaller. Without any positive label it is 0.5.

    Args:
        mode: `global`: one value, which maximises macro-F1. `per_criterion`: each criterion's own
            where it has at least `min_support` positive and as many negative pairs (and never
            without a positive), else the global one.

    Raises:
        ValueError: an unknown mode, a negative `min_support`, or a pair of an unlisted criterion.
    """
    if mode not in ("global", "per_criterion"):
        raise ValueError(f"`mode` must be 'global' or 'per_criterion', but is {mode!r} instead.")
    if min_support < 0:
        raise ValueError(f"`min_support` must not be negative, but is {min_support} instead.")
    index = _criterion_index(predictions, criteria)
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
    """The candidate with the highest F1 averaged over the criteria that have positives."""
    distinct, rank = np.unique(probabilities, return_inverse=True)
    middle = (distinct[:-1] + distinct[1:]) / 2
    # A midpoint that rounds down to its lower neighbour would decide that one positive as well.
    middle = np.where(middle > distinct[:-1], middle, distinct[1:])
    candidates = np.append(middle, FIXED_THRESHOLD)
    lowest_decided = np.searchsorted(distinct, candidates, side="left")

    def decided(ranks: Ints) -> Ints:
        counts = np.bincount(ranks, minlength=len(distinct) + 1)
        return counts[::-1].cumsum()[::-1][lowest_decided]

    f1_sum = np.zeros(len(candidates))
    for criterion in np.unique(index[labels == 1]):
        own = index == criterion
        positive = rank[own & (labels == 1)]
        f1_sum += 2 * decided(positive) / (decided(rank[own]) + len(positive))
    best = candidates[f1_sum >= f1_sum.max() - _TIE]
    return float(best[np.lexsort((best, np.abs(best - FIXED_THRESHOLD)))[0]])


def classification_metrics(
    predictions: PairPredictions, *, criteria: Sequence[str], thresholds: Mapping[str, float]
) -> Metrics:
    """All figures of one split, by the rules in this module's docstring.

    Keys: `n_pairs`, `n_positive`, `n_posts`, `n_criteria_in_macro`; `accuracy`;
    `{precision,recall,f1,auroc,average_precision}_{micro,macro}`; `brier` (Brier 1950); `ece`;
    `{true,false}_{positives,negatives}`; `per_criterion/<id>/...` with the same figures and
    `threshold`; `at_0.5/...`, the figures of decisions with 0.5 in place of the thresholds.

    Raises:
        ValueError: a pair's criterion is not in `criteria`, one of these is listed twice, or has
            no finite threshold.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    index = _criterion_index(predictions, criteria)
    cutoffs = _cutoffs(criteria, thresholds)
    confusion = _confusion(index, _outcomes(labels, probabilities >= cutoffs[index]), len(criteria))
    fixed = _confusion(index, _outcomes(labels, probabilities >= FIXED_THRESHOLD), len(criteria))

    pooled = _ranking_figures(labels, probabilities)
    ranking = [
        _ranking_figures(labels[own], probabilities[own])
        for own in (index == position for position in range(len(criteria)))
    ]
    squared_errors = (probabilities - labels) ** 2
    figures: dict[str, _Figure] = {
        "n_pairs": len(labels),
        "n_positive": int(labels.sum()),
        "n_posts": len(np.unique(predictions.group_ids)),
        "n_criteria_in_macro": sum(tp + fn > 0 for tp, _, fn, _ in confusion.tolist()),
        **_decision_figures(confusion),
        **_count_figures(confusion.sum(axis=0)),
        **{f"{name}_micro": figure for name, figure in pooled.items()},
        **{f"{name}_macro": _mean([own[name] for own in ranking]) for name in pooled},
        "brier": fmean(squared_errors) if len(labels) else _NO_PAIRS,  # exact in any row order
        "ece": expected_calibration_error(labels, probabilities) if len(labels) else _NO_PAIRS,
        **{f"at_0.5/{name}": figure for name, figure in _decision_figures(fixed).items()},
    }
    for criterion, counts, own, cutoff in zip(criteria, confusion, ranking, cutoffs, strict=True):
        of_criterion: dict[str, _Figure] = {
            "n_pairs": int(counts.sum()),
            "n_positive": int(counts[0] + counts[2]),
            "threshold": float(cutoff),
            **_precision_recall_f1(counts),
            **own,
            **_count_figures(counts),
        }
        figures |= {f"per_criterion/{criterion}/{name}": f for name, f in of_criterion.items()}
    return _metrics(figures)


def expected_calibration_error(
    labels: Ints, probabilities: Floats, *, n_bins: int = ECE_BINS
) -> float:
    """Expected calibration error of the positive-class probability (Guo et al. 2017).

    Equal-width bins, closed on the right as in the paper: the sum over bins of (pairs in bin /
    pairs) * |share of positives - mean probability|. Both arrays have shape [pairs], pairs > 0.
    """
    order = np.lexsort((labels, probabilities))
    edges = np.linspace(0, 1, n_bins + 1)[1:-1]
    bins = np.searchsorted(edges, probabilities[order], side="left")
    gaps = np.bincount(bins, weights=(labels - probabilities)[order])
    return float(np.abs(gaps).sum() / len(labels))


def bootstrap_intervals(
    predictions: PairPredictions,
    *,
    criteria: Sequence[str],
    thresholds: Mapping[str, float],
    n_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Metrics:
    """Percentile bootstrap intervals that resample whole posts (Efron & Tibshirani 1993).

    Pairs of a post are not independent, so posts are drawn with replacement, each with all its
    pairs. Each resample is scored by this module's rules, thresholds held fixed. Resamples in which
    a figure is undefined are left out of its interval; if they are more than half, so is the
    interval. The result depends on `seed`, not on the order of rows.

    Returns:
        `<key>_ci_low` and `<key>_ci_high` for the keys in `BOOTSTRAPPED` and for
        `per_criterion/<id>/f1`.

    Raises:
        ValueError: as `classification_metrics`; `n_resamples` < 1; `confidence` not in (0, 1).
    """
    if n_resamples < 1:
        raise ValueError(f"`n_resamples` must be at least 1, but is {n_resamples} instead.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, but is {confidence} instead.")
    labels, probabilities = predictions.labels, predictions.probabilities
    index = _criterion_index(predictions, criteria)
    outcomes = _outcomes(labels, probabilities >= _cutoffs(criteria, thresholds)[index])
    keys = [*BOOTSTRAPPED, *(f"per_criterion/{criterion}/f1" for criterion in criteria)]
    ids, groups = np.unique(predictions.group_ids, return_inverse=True)
    if len(ids) < 2:
        reason = "all pairs are of one post" if len(ids) else _NO_PAIRS
        return _metrics({f"{key}_ci_{end}": reason for key in keys for end in ("low", "high")})

    n_cells = len(criteria) * len(ids)
    by_group = _confusion(index * len(ids) + groups, outcomes, n_cells).astype(np.float64)
    by_group = by_group.reshape(len(criteria), len(ids), 4)
    pooled = _Ranking(labels, probabilities, groups)
    rankings = [
        _Ranking(labels[own], probabilities[own], groups[own])
        for own in (index == position for position in np.unique(index[labels == 1]))
    ]
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // len(labels))
    samples = np.concatenate(
        [
            _resampled_figures(
                draw_group_counts(rng, n_groups=len(ids), n_resamples=min(chunk, n_resamples - at)),
                by_group=by_group,
                pooled=pooled,
                rankings=rankings,
            )
            for at in range(0, n_resamples, chunk)
        ],
        axis=1,
    )
    tail = (1 - confidence) / 2
    figures: dict[str, _Figure] = {}
    for key, sample in zip(keys, samples, strict=True):
        defined = sample[~np.isnan(sample)]
        n_undefined = n_resamples - len(defined)
        for end, quantile in (("low", tail), ("high", 1 - tail)):
            figures[f"{key}_ci_{end}"] = (
                f"undefined in {n_undefined} of {n_resamples} resamples"
                if 2 * n_undefined > n_resamples
                else float(np.quantile(defined, quantile))
            )
    return _metrics(figures)


def draw_group_counts(rng: np.random.Generator, *, n_groups: int, n_resamples: int) -> Ints:
    """How often each group is in each resample of `n_groups` draws; [groups, resamples]."""
    draws = (rng.integers(n_groups, size=n_groups) for _ in range(n_resamples))
    return np.stack([np.bincount(draw, minlength=n_groups) for draw in draws], axis=1)


class _Ranking:
    """Pairs sorted once by descending score, to rank any number of resamples of their groups.

    They are summed in blocks: equal scores are one block, and so are neighbouring scores without
    a positive label, which changes neither figure and leaves at most 2 * positives + 1 blocks.
    """

    def __init__(self, labels: Ints, probabilities: Floats, groups: Ints) -> None:
        order = np.argsort(-probabilities, kind="stable")
        scores = probabilities[order]
        tie_starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
        has_positive = np.add.reduceat(labels[order], tie_starts) > 0
        starts_block = np.append(True, has_positive[1:] | has_positive[:-1])
        self.starts = tie_starts[starts_block]
        self.has_positive = has_positive[starts_block]
        self.groups = groups[order]
        found = np.flatnonzero(labels[order])
        self.positive_groups = self.groups[found]
        # Every block with positives starts its run of them at its first one.
        blocks = np.searchsorted(self.starts, found, side="right")
        self.positive_starts = np.flatnonzero(np.append(True, blocks[1:] != blocks[:-1]))

    def auroc_and_average_precision(self, counts: Ints) -> tuple[Floats, Floats]:
        """Both figures of each resample, NaN where undefined; from [groups, resamples]."""
        if not self.positive_groups.size:
            undefined = np.full(counts.shape[1], np.nan)
            return undefined, undefined
        total = np.add.reduceat(counts[self.groups], self.starts, axis=0)  # [blocks, resamples]
        decided = total.cumsum(axis=0)
        n_pairs = decided[-1].astype(np.float64)
        total, decided = total[self.has_positive], decided[self.has_positive].astype(np.float64)
        positive = np.add.reduceat(counts[self.positive_groups], self.positive_starts, axis=0)
        found = positive.cumsum(axis=0)
        n_positive = found[-1].astype(np.float64)
        n_negative = n_pairs - n_positive
        # A positive wins against the negatives below its block, and half against those in it.
        below = n_negative - (decided - found) + (total - positive) / 2
        won = (positive * below).sum(axis=0)
        precision = np.divide(found, decided, out=np.zeros_like(decided), where=decided > 0)
        average_precision = _divide((precision * positive).sum(axis=0), n_positive)
        return _divide(won, n_positive * n_negative), average_precision


def _resampled_figures(
    counts: Ints, *, by_group: Floats, pooled: _Ranking, rankings: Sequence[_Ranking]
) -> Floats:
    """The bootstrapped figures, [keys, resamples]; `by_group` is [criteria, groups, 4]."""
    tp, fp, fn, tn = np.einsum("cgo,gr->ocr", by_group, counts.astype(float), optimize=True)
    f1 = _divide(2 * tp, np.where(tp + fn > 0, 2 * tp + fp + fn, 0))
    pooled_tp, pooled_errors = tp.sum(axis=0), (fp + fn).sum(axis=0)
    has_positive = (tp + fn).sum(axis=0) > 0
    f1_micro = _divide(2 * pooled_tp, np.where(has_positive, 2 * pooled_tp + pooled_errors, 0))
    accuracy = _divide((tp + tn).sum(axis=0), (tp + fp + fn + tn).sum(axis=0))
    auroc_micro, ap_micro = pooled.auroc_and_average_precision(counts)
    own = [ranking.auroc_and_average_precision(counts) for ranking in rankings]
    auroc, average_precision = np.reshape(own, (-1, 2, counts.shape[1])).transpose(1, 0, 2)
    f1_macro, auroc_macro, ap_macro = map(_mean_of_defined, (f1, auroc, average_precision))
    figures = [f1_macro, f1_micro, accuracy, auroc_macro, auroc_micro, ap_macro, ap_micro]
    return np.stack([*figures, *f1])  # in the order of BOOTSTRAPPED, then the criteria


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise; NaN, which stays inside the bootstrap, where the denominator is 0."""
    out = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def _mean_of_defined(values: Floats) -> Floats:
    defined = ~np.isnan(values)
    return _divide(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0).astype(float))


def classification_report(
    metrics: Mapping[str, float | int | None],
    *,
    criteria: Sequence[str],
    names: Mapping[str, str],
) -> str:
    """A fixed-width table of `classification_metrics(...).values`: a row a criterion, macro, micro.

    Support is positives / pairs; an undefined figure reads `n/a`. Raises KeyError if a criterion
    has no name or the figures of a row are missing.
    """
    columns = ("precision", "recall", "f1", "auroc", "average_precision")

    def cells(prefix: str, suffix: str = "") -> list[str]:
        figures = (metrics[f"{prefix}{column}{suffix}"] for column in columns)
        return ["n/a" if figure is None else f"{figure:.3f}" for figure in figures]

    rows = [["criterion", "name", "support", "precision", "recall", "F1", "AUROC", "AP"]]
    for criterion in criteria:
        key = f"per_criterion/{criterion}/"
        support = f"{metrics[key + 'n_positive']}/{metrics[key + 'n_pairs']}"
        rows.append([criterion, names[criterion], support, *cells(key)])
    averaged = f"mean of {metrics['n_criteria_in_macro']}/{len(criteria)} criteria"
    rows.append(["macro", averaged, "", *cells("", "_macro")])
    support = f"{metrics['n_positive']}/{metrics['n_pairs']}"
    rows.append(["micro", "all pairs", support, *cells("", "_micro")])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if position < 2 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-2], rule, *lines[-2:]])


def _criterion_index(predictions: PairPredictions, criteria: Sequence[str]) -> Ints:
    """The position in `criteria` of each pair's criterion, [pairs]."""
    positions = {criterion: position for position, criterion in enumerate(criteria)}
    if len(positions) < len(criteria):
        raise ValueError(f"`criteria` must be distinct, but are {list(criteria)} instead.")
    present, inverse = np.unique(predictions.criterion_ids, return_inverse=True)
    unknown = [str(criterion) for criterion in present if criterion not in positions]
    if unknown:
        raise ValueError(f"every pair's criterion must be in `criteria`, but {unknown} are not.")
    return np.array([positions[criterion] for criterion in present], dtype=np.int64)[inverse]


def _cutoffs(criteria: Sequence[str], thresholds: Mapping[str, float]) -> Floats:
    missing = [criterion for criterion in criteria if criterion not in thresholds]
    if missing:
        raise ValueError(f"`thresholds` must hold every criterion, but lacks {missing}.")
    cutoffs = np.array([thresholds[criterion] for criterion in criteria], dtype=np.float64)
    if not np.isfinite(cutoffs).all():
        raise ValueError("`thresholds` must be finite, but are not.")
    return cutoffs


def _outcomes(labels: Ints, decisions: NDArray[np.bool_]) -> Ints:
    """0 true positive, 1 false positive, 2 false negative, 3 true negative; [pairs]."""
    return 3 - 2 * decisions.astype(np.int64) - labels


def _confusion(cells: Ints, outcomes: Ints, n_cells: int) -> Ints:
    """Counts of TP, FP, FN, TN in each cell, [cells, 4]."""
    return np.bincount(cells * 4 + outcomes, minlength=n_cells * 4).reshape(n_cells, 4)


def _count_figures(counts: Ints) -> dict[str, _Figure]:
    names = ("true_positives", "false_positives", "false_negatives", "true_negatives")
    return dict(zip(names, counts.tolist(), strict=True))


def _precision_recall_f1(counts: Ints) -> dict[str, _Figure]:
    tp, fp, fn, tn = counts.tolist()
    if tp + fp + fn + tn == 0:
        return dict.fromkeys(("precision", "recall", "f1"), _NO_PAIRS)
    return {
        "precision": tp / (tp + fp) if tp + fp else _NO_DECISIONS,
        "recall": tp / (tp + fn) if tp + fn else _NO_POSITIVES,
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fn else _NO_POSITIVES,
    }


def _decision_figures(confusion: Ints) -> dict[str, _Figure]:
    """Accuracy, and precision, recall and F1 pooled and averaged; from [criteria, 4]."""
    pooled = confusion.sum(axis=0)
    n_pairs = int(pooled.sum())
    averaged = [_precision_recall_f1(counts) for counts in confusion if counts[0] + counts[2]]
    for figures in averaged:
        if isinstance(figures["precision"], str):
            figures["precision"] = 0.0
    return {
        "accuracy": int(pooled[0] + pooled[3]) / n_pairs if n_pairs else _NO_PAIRS,
        **{f"{name}_micro": figure for name, figure in _precision_recall_f1(pooled).items()},
        **{
            f"{name}_macro": _mean([figures[name] for figures in averaged])
            for name in ("precision", "recall", "f1")
        },
    }


def _ranking_figures(labels: Ints, probabilities: Floats) -> dict[str, _Figure]:
    n_positive = int(labels.sum())
    reason = _NO_POSITIVES if len(labels) else _NO_PAIRS
    if n_positive == 0:
        return {"auroc": reason, "average_precision": reason}
    both = n_positive < len(labels)
    return {
        "auroc": float(roc_auc_score(labels, probabilities)) if both else _ONE_CLASS,
        "average_precision": float(average_precision_score(labels, probabilities)),
    }


def _mean(figures: Sequence[_Figure]) -> _Figure:
    """The mean of the defined figures; a reason if there are none."""
    defined = [figure for figure in figures if not isinstance(figure, str)]
    return fmean(defined) if defined else "undefined for every criterion"


def _metrics(figures: Mapping[str, _Figure]) -> Metrics:
    undefined = {key: figure for key, figure in figures.items() if isinstance(figure, str)}
    values = {key: None if isinstance(f, str) else f for key, f in figures.items()}
    return Metrics(values=values, undefined=undefined)
