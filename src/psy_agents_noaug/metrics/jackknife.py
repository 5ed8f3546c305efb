"""Intervals of figures in [0, 1] by the delete-a-group jackknife.

The units are groups: authors where they are known, posts elsewhere. A figure is computed once for the
whole split and once without each group (Quenouille 1956; Tukey 1958). This gives its bias, which is
subtracted, and its variance. The interval is Student's on the logit scale, so that it stays within
[0, 1] (for average precision: Boyd, Eng and Page 2013, "Area under the precision-recall curve: point
estimates and confidence intervals"). Resampling with replacement would inflate average precision,
because the copies of a positive rank beside each other.

A ratio of sums, such as F1, has one degree of freedom less than there are groups, counted as
`effective_groups`. In a ranking, few groups may decide: there the spread of the differences gives the
degrees of freedom (Satterthwaite 1946).

Shares of items, such as sensitivity, have the exact interval of `share_interval`.

More than `MAX_BLOCKS` groups are left out in blocks of equal size, drawn at random (Kott 2001, "The
delete-a-group jackknife").

Where the sample is too small there is no interval, but a reason. `benchmarks/interval_coverage.py`
measures the coverage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.values import Floats, Ints, Metrics, ValueOrReason, metrics_of

MAX_BLOCKS = 500
TOO_FEW = "too few"
_ROUNDING = 1e-12
_MIN_DEGREES_OF_FREEDOM = 4.0


@dataclass(frozen=True)
class Estimate:
    """A figure and what the jackknife says of it.

    Attributes:
        value: the figure on the whole sample.
        corrected: the figure without its bias of order 1/n.
        variance: of the figure.
        degrees_of_freedom: of the variance.
    """

    value: float
    corrected: float
    variance: float
    degrees_of_freedom: float


def jackknife_blocks(group_ids: NDArray[Any]) -> tuple[Ints, int]:
    """Return the block of each item, `[items]`, and the number of blocks.

    Each group is a block, unless there are more than `MAX_BLOCKS`. The result does not depend on the
    order of items.

    Args:
        group_ids: the group of each item, `[items]`.
    """
    ids, groups = np.unique(group_ids, return_inverse=True)
    n_blocks = min(len(ids), MAX_BLOCKS)
    if n_blocks == len(ids):
        return groups.astype(np.int64), n_blocks
    order = np.random.default_rng(0).permutation(len(ids))
    return (order % n_blocks)[groups], n_blocks


def effective_groups(group_ids: NDArray[Any]) -> float:
    """Return how many groups of equal size tell as much as these (Kish 1965, "Survey Sampling").

    It is at most `MAX_BLOCKS`, and 0 without items.

    Args:
        group_ids: the group of each item, `[items]`.
    """
    sizes = np.unique(group_ids, return_counts=True)[1].astype(np.float64)
    return min(float(sizes.sum() ** 2 / (sizes**2).sum()), MAX_BLOCKS) if len(sizes) else 0.0


def jackknife_weights(n_blocks: int) -> Ints:
    """Return how often each block counts in each sample, `[blocks, 1 + blocks]`; 0 is the whole one."""
    whole = np.ones((n_blocks, 1), dtype=np.int64)
    return np.concatenate([whole, 1 - np.eye(n_blocks, dtype=np.int64)], axis=1)


def leave_blocks_out(counts: Floats) -> Floats:
    """Return sums over blocks: over all of them, then without each.

    Args:
        counts: `[..., blocks, counts]`.

    Returns:
        `[..., 1 + blocks, counts]`.
    """
    whole = counts.sum(axis=-2, keepdims=True)
    return np.concatenate([whole, whole - counts], axis=-2)


def jackknife(values: Floats) -> Estimate | str:
    """Return the estimate of a figure, or the reason why there is none.

    Args:
        values: the figure of the whole sample, then without each block; NaN if undefined.
    """
    value, without = float(values[0]), values[1:]
    n = len(without)
    if np.isnan(value):
        return "the figure is undefined"
    if n < 2:
        return f"{TOO_FEW}: all items are of one group"
    n_undefined = int(np.isnan(without).sum())
    if n_undefined:
        return f"{TOO_FEW}: without one of {n_undefined} groups the figure is undefined"
    mean = float(without.mean())
    squares = (without - mean) ** 2
    total = float(squares.sum())
    spread = float((squares**2).sum()) - total**2 / n
    return Estimate(
        value=value,
        corrected=value - (n - 1) * (mean - value),
        variance=(n - 1) / n * total,
        degrees_of_freedom=_degrees_of_freedom(total, spread, n),
    )


def _degrees_of_freedom(total: float, spread: float, n: int) -> float:
    """Return those of the variance: n - 1 if all groups matter alike, else fewer.

    A floor keeps one deviating group from making the interval useless; it costs next to no coverage.
    """
    if spread <= _ROUNDING**2:
        return n - 1
    return min(max(2 * total**2 / spread, _MIN_DEGREES_OF_FREEDOM), n - 1)


def add_variances(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the sum of independent variances, and its degrees of freedom (Satterthwaite 1946).

    Args:
        parts: variances, each with its degrees of freedom.
    """
    # `fsum` gives the same in any order of the systems.
    total = fsum(variance for variance, _ in parts)
    below = fsum(variance**2 / df for variance, df in parts if variance)
    return total, total**2 / below if below else float("inf")


def logit_interval(estimate: Estimate, *, confidence: float = 0.95) -> tuple[float, float] | str:
    """Return the interval of a figure in [0, 1], or the reason why there is none.

    The correction of the bias moves the figure at most half-way to 0 or 1. If it moves the interval off
    the figure itself, the interval is widened to hold it.
    """
    from scipy.special import expit, logit
    from scipy.stats import t

    value = estimate.value
    if not _ROUNDING < value < 1 - _ROUNDING:
        return f"{TOO_FEW}: the figure is {value:.0f}, the end of its range"
    if estimate.variance <= _ROUNDING**2:
        return f"{TOO_FEW}: the figure is the same without any group"
    center = float(np.clip(estimate.corrected, value / 2, (1 + value) / 2))
    quantile = t.ppf((1 + confidence) / 2, estimate.degrees_of_freedom)
    half_width = quantile * np.sqrt(estimate.variance) / (center * (1 - center))
    low, high = expit(logit(center) - half_width), expit(logit(center) + half_width)
    return min(float(low), value), max(float(high), value)


def student_interval(estimate: Estimate, *, confidence: float = 0.95) -> tuple[float, float] | str:
    """Return Student's interval of a figure without bounds, such as a difference."""
    from scipy.stats import t

    if estimate.variance <= _ROUNDING**2:
        return f"{TOO_FEW}: the figure is the same without any group"
    quantile = t.ppf((1 + confidence) / 2, estimate.degrees_of_freedom)
    half_width = float(quantile * np.sqrt(estimate.variance))
    return estimate.value - half_width, estimate.value + half_width


def share_interval(
    values: Floats, n_groups: int, *, confidence: float = 0.95
) -> tuple[float, float] | str:
    """Return the interval of a share of items, which is exact for independent items.

    It is Clopper and Pearson's (1934) for as many independent items as would give the share the variance
    that it has over groups, reduced for the uncertainty of that variance (Korn and Graubard 1998,
    "Confidence intervals for proportions with small expected number of positive counts estimated from
    survey data"). At 0 and 1, where the variance is 0, each group is one item.

    Args:
        values: the share of the whole sample, then without each block.
        n_groups: the number of groups that have such items.
        confidence: level of the interval.
    """
    from scipy.stats import beta, norm, t

    share = float(values[0])
    tail = (1 - confidence) / 2
    if share in (0.0, 1.0):
        n = float(n_groups)
    else:
        estimate = jackknife(values)
        if isinstance(estimate, str):
            return estimate
        if estimate.variance <= _ROUNDING**2:
            return f"{TOO_FEW}: the figure is the same without any group"
        if n_groups < 2:
            return f"{TOO_FEW}: all items are of one group"
        reduction = float(norm.ppf(tail) / t.ppf(tail, n_groups - 1))
        n = share * (1 - share) / estimate.variance * reduction**2
    x = share * n
    low = float(beta.ppf(tail, x, n - x + 1)) if x > 0 else 0.0
    high = float(beta.ppf(1 - tail, x + 1, n - x)) if x < n else 1.0
    return low, high


def intervals(
    samples: Mapping[str, Floats],
    *,
    shares: Mapping[str, int] | None = None,
    ratios: Mapping[str, float] | None = None,
    bounded: bool = True,
    confidence: float = 0.95,
) -> Metrics:
    """Return `<key>_ci_low` and `<key>_ci_high` of each figure.

    Args:
        samples: the figures, each as `jackknife` takes them.
        shares: the figures that are shares of items, each with the number of groups that it is about.
        ratios: the other figures that are ratios of sums, each with its `effective_groups`.
        bounded: whether the figures lie in [0, 1].
        confidence: level of the intervals.

    Raises:
        ValueError: `confidence` is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must be between 0 and 1, but is {confidence} instead.")
    interval = logit_interval if bounded else student_interval
    metrics: dict[str, ValueOrReason] = {}
    for key, values in samples.items():
        n = (shares or {}).get(key, 0)
        found: tuple[float, float] | str
        if n:
            found = share_interval(values, n, confidence=confidence)
        else:
            estimate = jackknife(values)
            if isinstance(estimate, Estimate) and ratios and key in ratios:
                estimate = replace(estimate, degrees_of_freedom=max(ratios[key] - 1, 1.0))
            found = (
                estimate if isinstance(estimate, str) else interval(estimate, confidence=confidence)
            )
        low, high = (found, found) if isinstance(found, str) else found
        metrics |= {f"{key}_ci_low": low, f"{key}_ci_high": high}
    return metrics_of(metrics)
