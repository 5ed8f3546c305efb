"""Curves: what deciding by each threshold would give, and how far probabilities can be believed.

Bands are pointwise: at the threshold of a point, the 95 % interval of sensitivity or precision there, by
`metrics.jackknife.share_interval`. At the threshold in use they are the intervals of the metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.classification import (
    ECE_BINS,
    PairPredictions,
    criterion_index,
    f1_at,
)
from psy_agents_noaug.metrics.jackknife import jackknife_blocks, leave_blocks_out, share_interval
from psy_agents_noaug.metrics.ratios import divide
from psy_agents_noaug.metrics.values import Floats, Ints


@dataclass(frozen=True, eq=False)
class Ranking:
    """Items with labels and scores, the more probable the higher.

    Attributes:
        labels: 0 or 1, `[items]`.
        scores: `[items]`; of equal scores all are decided alike.
        group_ids: the author (or post) of each item, `[items]`.
    """

    labels: Ints
    scores: Floats
    group_ids: NDArray[np.str_]

    @property
    def has_both_classes(self) -> bool:
        """Whether there are labels of both classes, without which there is no curve."""
        return 0 < int(self.labels.sum()) < len(self.labels)


@dataclass(frozen=True, eq=False)
class OperatingPoints:
    """What deciding by each threshold gives, from the highest threshold down; all `[points]`.

    Attributes:
        thresholds: what is at or above is decided positive.
        recall: the share of positives found, also called sensitivity and true positive rate.
        precision: the share of decisions that are right.
        false_positive_rate: the share of negatives decided positive, 1 - specificity.
    """

    thresholds: Floats
    recall: Floats
    precision: Floats
    false_positive_rate: Floats


@dataclass(frozen=True, eq=False)
class Band:
    """Intervals of operating points, `[points]` each; NaN where there is none.

    Attributes:
        points: where they are.
        recall: lower and upper ends of its intervals, `[2, points]`.
        precision: likewise.
    """

    points: OperatingPoints
    recall: Floats
    precision: Floats


def operating_points(ranking: Ranking, *, max_points: int | None = None) -> OperatingPoints:
    """Return an operating point for each score at which the curves bend.

    Neighbouring scores without a positive are one point: neither curve bends between them.

    Args:
        ranking: with labels of both classes.
        max_points: keep no more, at about equal steps of recall; the first and the last among them.
    """
    order = np.argsort(-ranking.scores, kind="stable")
    scores, labels = ranking.scores[order], ranking.labels[order]
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of each run of equal scores
    found = labels.cumsum()[ends].astype(np.float64)
    gains = np.diff(found, prepend=0.0) > 0
    bends = gains | np.append(gains[1:], True)
    ends, found = ends[bends], found[bends]
    if max_points is not None and len(ends) > max_points:
        steps = np.linspace(found[0], found[-1], max_points - 1)
        kept = np.unique(np.append(np.searchsorted(found, steps), len(ends) - 1))
        ends, found = ends[kept], found[kept]
    decided = (ends + 1).astype(np.float64)
    n_positive = float(labels.sum())
    return OperatingPoints(
        thresholds=scores[ends],
        recall=found / n_positive,
        precision=found / decided,
        false_positive_rate=(decided - found) / (len(labels) - n_positive),
    )


def band(ranking: Ranking, *, max_points: int) -> Band:
    """Return the intervals of at most so many operating points.

    Args:
        ranking: with labels of both classes.
        max_points: as for `operating_points`.
    """
    points = operating_points(ranking, max_points=max_points)
    n_points = len(points.thresholds)
    # The first point that decides an item positive; the last decides all.
    first = np.searchsorted(-points.thresholds, -ranking.scores, side="left")
    blocks, n_blocks = jackknife_blocks(ranking.group_ids)
    counts = np.zeros((n_points, n_blocks, 2))
    np.add.at(counts, (first, blocks), np.stack([ranking.labels, np.ones_like(first)], axis=1))
    found, decided = np.moveaxis(leave_blocks_out(counts.cumsum(axis=0)), -1, 0)
    recall = divide(found, found[-1:].repeat(n_points, axis=0))
    precision = divide(found, decided)
    n_with_positive = len(np.unique(ranking.group_ids[ranking.labels == 1]))
    ids, groups = np.unique(ranking.group_ids, return_inverse=True)
    first_of_group = np.full(len(ids), n_points)
    np.minimum.at(first_of_group, groups, first)
    n_with_decision = [int((first_of_group <= point).sum()) for point in range(n_points)]
    return Band(
        points,
        recall=_ends(recall, [n_with_positive] * n_points),
        precision=_ends(precision, n_with_decision),
    )


def _ends(values: Floats, n_groups: Sequence[int]) -> Floats:
    """Return the ends of the interval of each share, `[2, points]`, from `[points, 1 + blocks]`."""
    found = [share_interval(own, n) for own, n in zip(values, n_groups, strict=True)]
    return np.array([(np.nan, np.nan) if isinstance(one, str) else one for one in found]).T


def macro_f1_at(pairs: PairPredictions, *, criteria: Sequence[str], thresholds: Floats) -> Floats:
    """Return the macro-F1 of deciding all criteria by each threshold, `[thresholds]`.

    Args:
        pairs: of one split.
        criteria: every criterion; those without labels of both classes are left out of the mean.
        thresholds: `[thresholds]`.

    Returns:
        NaN if no criterion has labels of both classes.
    """
    index = criterion_index(pairs, criteria)
    rows = []
    for position in range(len(criteria)):
        own = index == position
        labels = pairs.labels[own]
        if labels.any() and not labels.all():
            once = np.ones((len(labels), 1), dtype=np.int64)
            rows.append(f1_at(labels, pairs.probabilities[own], once, thresholds)[:, 0])
    return np.mean(rows, axis=0) if rows else np.full(len(thresholds), np.nan)


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of pairs by their probability, those of the expected calibration error; `[bins]` each.

    Attributes:
        n_pairs: in the bin, above 0.
        probability: the mean of the predicted probabilities.
        share: of met pairs.
        interval: of the share, `[2, bins]`; NaN where there is none.
    """

    n_pairs: Ints
    probability: Floats
    share: Floats
    interval: Floats


def reliability(pairs: PairPredictions) -> Reliability:
    """Return how often pairs of each probability are met. Bins without pairs are left out."""
    edges = np.linspace(0, 1, ECE_BINS + 1)[1:-1]
    used, bins = np.unique(
        np.searchsorted(edges, pairs.probabilities, side="left"), return_inverse=True
    )
    blocks, n_blocks = jackknife_blocks(pairs.group_ids)
    counts = np.zeros((len(used), n_blocks, 2))
    np.add.at(counts, (bins, blocks), np.stack([pairs.labels, np.ones_like(bins)], axis=1))
    met, total = np.moveaxis(leave_blocks_out(counts), -1, 0)
    n_groups = [len(np.unique(pairs.group_ids[bins == one])) for one in range(len(used))]
    n_pairs = np.bincount(bins)
    return Reliability(
        n_pairs=n_pairs,
        probability=np.bincount(bins, weights=pairs.probabilities) / n_pairs,
        share=met[:, 0] / total[:, 0],
        interval=_ends(divide(met, total), n_groups),
    )
