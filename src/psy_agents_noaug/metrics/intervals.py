"""Bootstrap intervals of the classification metrics.

A resample is computed from counts per post and from pairs that are sorted once; its pairs are never
listed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from psy_agents_noaug.metrics.classification import (
    NO_PAIRS,
    Floats,
    Ints,
    Metrics,
    PairPredictions,
    ValueOrReason,
    count_outcomes,
    criterion_cutoffs,
    criterion_index,
    metrics_of,
    pair_outcomes,
)
from psy_agents_noaug.metrics.ratios import divide, f1_score

BOOTSTRAPPED = (
    "f1_macro",
    "f1_micro",
    "accuracy",
    "auroc_macro",
    "auroc_micro",
    "average_precision_macro",
    "average_precision_micro",
)
_CHUNK_CELLS = 2**22  # pairs times resamples in memory at once: 32 MiB per array


def bootstrap_intervals(
    predictions: PairPredictions,
    *,
    criteria: Sequence[str],
    thresholds: Mapping[str, float],
    n_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Metrics:
    """Return percentile bootstrap intervals that resample whole posts (Efron & Tibshirani 1993).

    The pairs of a post are not independent, so posts are drawn with replacement, each with all its
    pairs. Thresholds are fixed. Resamples are scored by the rules of `metrics.classification`, with
    one exception: a macro average is over the criteria of the whole split, and is undefined in a
    resample without positives of one of them. Otherwise its interval would be about another
    quantity. Resamples in which a metric is undefined are left out of its interval; if they are more
    than half, the interval is undefined. The result does not depend on the order of rows.

    Args:
        predictions: labels and probabilities of one split.
        criteria: as for `classification_metrics`.
        thresholds: as for `classification_metrics`.
        n_resamples: number of resamples, at least 1.
        seed: of the draws.
        confidence: level of the intervals, in (0, 1).

    Returns:
        `<key>_ci_low` and `<key>_ci_high` for the keys in `BOOTSTRAPPED` and for
        `per_criterion/<id>/f1`.

    Raises:
        ValueError: as for `classification_metrics`, or an argument is out of range.
    """
    if n_resamples < 1:
        raise ValueError(f"`n_resamples` must be at least 1, but is {n_resamples} instead.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, but is {confidence} instead.")
    labels, probabilities = predictions.labels, predictions.probabilities
    index = criterion_index(predictions, criteria)
    cutoffs = criterion_cutoffs(criteria, thresholds)
    outcomes = pair_outcomes(labels, probabilities >= cutoffs[index])
    keys = [*BOOTSTRAPPED, *(f"per_criterion/{criterion}/f1" for criterion in criteria)]
    ids, groups = np.unique(predictions.group_ids, return_inverse=True)
    if len(ids) < 2:
        reason = "all pairs are of one post" if len(ids) else NO_PAIRS
        return metrics_of({f"{key}_ci_{end}": reason for key in keys for end in ("low", "high")})

    n_cells = len(criteria) * len(ids)
    by_group = count_outcomes(index * len(ids) + groups, outcomes, n_cells).astype(np.float64)
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
            _resampled_metrics(
                draw_group_counts(rng, n_groups=len(ids), n_resamples=min(chunk, n_resamples - at)),
                by_group=by_group,
                pooled=pooled,
                rankings=rankings,
            )
            for at in range(0, n_resamples, chunk)
        ],
        axis=1,
    )
    return percentile_intervals(dict(zip(keys, samples, strict=True)), confidence=confidence)


def percentile_intervals(samples: Mapping[str, Floats], *, confidence: float) -> Metrics:
    """Return `<key>_ci_low` and `<key>_ci_high` of each key's resampled values, NaN if undefined."""
    tail = (1 - confidence) / 2
    metrics: dict[str, ValueOrReason] = {}
    for key, sample in samples.items():
        defined = sample[~np.isnan(sample)]
        n_undefined = len(sample) - len(defined)
        for end, quantile in (("low", tail), ("high", 1 - tail)):
            metrics[f"{key}_ci_{end}"] = (
                f"undefined in {n_undefined} of {len(sample)} resamples"
                if 2 * n_undefined > len(sample)
                else float(np.quantile(defined, quantile))
            )
    return metrics_of(metrics)


def draw_group_counts(rng: np.random.Generator, *, n_groups: int, n_resamples: int) -> Ints:
    """Return how often each group is drawn in each resample of `n_groups` draws; [groups, resamples]."""
    draws = (rng.integers(n_groups, size=n_groups) for _ in range(n_resamples))
    return np.stack([np.bincount(draw, minlength=n_groups) for draw in draws], axis=1)


class _Ranking:
    """Pairs sorted once by falling score, from which any number of resamples are ranked.

    Pairs are counted in blocks. Equal scores are one block. Neighbouring scores without a positive
    label are merged into one block: this changes neither metric and leaves at most 2 * positives + 1
    blocks.
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
        positives = np.flatnonzero(labels[order])
        self.positive_groups = self.groups[positives]
        # The index among the positives of the first positive of each block that has any.
        blocks = np.searchsorted(self.starts, positives, side="right")
        self.positive_starts = np.flatnonzero(np.append(True, blocks[1:] != blocks[:-1]))

    def auroc_and_average_precision(self, counts: Ints) -> tuple[Floats, Floats]:
        """Return both metrics of each resample, NaN where undefined; from [groups, resamples]."""
        if not self.positive_groups.size:
            undefined = np.full(counts.shape[1], np.nan)
            return undefined, undefined
        total = np.add.reduceat(counts[self.groups], self.starts, axis=0)  # [blocks, resamples]
        retrieved = total.cumsum(axis=0)  # pairs in a block and above
        n_pairs = retrieved[-1].astype(np.float64)
        total, retrieved = total[self.has_positive], retrieved[self.has_positive].astype(np.float64)
        positive = np.add.reduceat(counts[self.positive_groups], self.positive_starts, axis=0)
        found = positive.cumsum(axis=0)  # positives in a block and above
        n_positive = found[-1].astype(np.float64)
        n_negative = n_pairs - n_positive
        # Negatives ranked below a block, and half of those in it, which tie with its positives.
        below = n_negative - (retrieved - found) + (total - positive) / 2
        well_ordered = (positive * below).sum(axis=0)
        precision = np.divide(found, retrieved, out=np.zeros_like(retrieved), where=retrieved > 0)
        average_precision = divide((precision * positive).sum(axis=0), n_positive)
        return divide(well_ordered, n_positive * n_negative), average_precision


def _resampled_metrics(
    counts: Ints, *, by_group: Floats, pooled: _Ranking, rankings: Sequence[_Ranking]
) -> Floats:
    """Return the bootstrapped metrics, [keys, resamples].

    Args:
        counts: draws of each group, [groups, resamples].
        by_group: TP, FP, FN and TN, [criteria, groups, 4].
        pooled: all pairs.
        rankings: pairs of each criterion that has positives.
    """
    whole = np.ones((len(counts), 1), dtype=counts.dtype)
    counts = np.concatenate([whole, counts], axis=1)  # the split itself, then the resamples
    tp, fp, fn, tn = np.einsum("cgo,gr->ocr", by_group, counts.astype(float), optimize=True)
    f1 = f1_score(tp, tp + fp, tp + fn)
    f1_micro = f1_score(tp.sum(axis=0), (tp + fp).sum(axis=0), (tp + fn).sum(axis=0))
    accuracy = divide((tp + tn).sum(axis=0), (tp + fp + fn + tn).sum(axis=0))
    auroc_micro, ap_micro = pooled.auroc_and_average_precision(counts)
    own = [ranking.auroc_and_average_precision(counts) for ranking in rankings]
    auroc, average_precision = np.reshape(own, (-1, 2, counts.shape[1])).transpose(1, 0, 2)
    f1_macro, auroc_macro, ap_macro = map(macro, (f1, auroc, average_precision))
    metrics = [f1_macro, f1_micro, accuracy, auroc_macro, auroc_micro, ap_macro, ap_micro]
    return np.stack([*metrics, *f1])[:, 1:]  # in the order of BOOTSTRAPPED, then the criteria


def macro(values: Floats) -> Floats:
    """Return the mean over criteria, [columns], from [criteria, columns].

    The first column is the whole split. A criterion that is undefined there is left out.
    """
    defined = values[~np.isnan(values[:, 0])]
    return defined.mean(axis=0) if len(defined) else np.full(values.shape[1], np.nan)
