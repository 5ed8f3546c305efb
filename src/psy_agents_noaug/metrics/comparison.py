"""Comparison of two systems on the same posts: is their difference larger than chance explains?

The input is prediction lines (`metrics.lines`) of several trainings of each system, or their figures.

Chance is of two kinds: other posts, and other seeds. The squared standard error of a difference is the
paired variance over groups of posts (`metrics.jackknife`) plus the variance over seeds of each system,
divided by its number of seeds. The test is Student's, with Satterthwaite's (1946) degrees of freedom. A
test over posts alone takes the trained weights for the system: it may find equal systems different
far more often than it says. `benchmarks/comparison_error.py` measures both, and `holm` over criteria.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from psy_agents_noaug.metrics.jackknife import (
    Estimate,
    add_variances,
    jackknife,
    leave_blocks_out,
    logit_interval,
    student_interval,
)
from psy_agents_noaug.metrics.lines import (
    METRICS,
    Line,
    block_counts,
    check_same_pairs,
    line_blocks,
    line_groups,
    trained_criteria_lines,
)
from psy_agents_noaug.metrics.values import Floats

_CHUNK = 500
MIN_TRAININGS = 3  # for an interval: two seeds say next to nothing of their spread


@dataclass(frozen=True)
class Difference:
    """A figure of two systems, in the mean over their trainings.

    Attributes:
        first: mean of the first system.
        second: mean of the second system.
        difference: first minus second.
        ci_low: lower end of the difference's interval over posts and seeds; None if the sample is too
            small. The seeds of a system that was trained once do not count.
        ci_high: upper end, likewise.
        p_value: two-sided, likewise.
    """

    first: float
    second: float
    difference: float
    ci_low: float | None
    ci_high: float | None
    p_value: float | None


@dataclass(frozen=True)
class Comparison(Difference):
    """A difference, and what a test over posts alone says of it.

    Attributes:
        p_value_of_these_weights: two-sided, over posts alone (randomization): the systems are the
            weights that were trained, not the way of training them.
        n_posts: posts of the split.
        n_groups: authors, or posts, of the split.
    """

    p_value_of_these_weights: float
    n_posts: int
    n_groups: int


def compare(
    metric: str,
    first: Sequence[Sequence[Line]],
    second: Sequence[Sequence[Line]],
    *,
    n_samples: int,
    seed: int,
    confidence: float = 0.95,
) -> Comparison | None:
    """Compare two systems, each trained several times, on one split.

    The metric is computed for each training and averaged.

    Args:
        metric: a key of `METRICS`.
        first: lines of the first system, `[trainings][pairs]`.
        second: lines of the second system, about the same pairs in the same order.
        n_samples: swaps of the randomization test (Noreen 1989; Yeh 2000), which exchanges all
            predictions of a group, in all trainings, between the systems.
        seed: of the swaps.
        confidence: level of the interval.

    Returns:
        None if the metric of a system is undefined on the whole split.

    Raises:
        ValueError: lines are about different pairs, or the numbers of trainings differ.
    """
    first, second = trained_criteria_lines(first), trained_criteria_lines(second)
    check_same_pairs([*first, *second])
    if len(first) != len(second):
        raise ValueError("Both systems must be trained equally often.")
    compute = METRICS[metric][0]
    blocks = line_blocks([*first, *second])
    one, other = block_counts(first, blocks), block_counts(second, blocks)
    values_of_one, values_of_other = (
        np.stack([compute(leave_blocks_out(training)) for training in counts])
        for counts in (one, other)
    )  # [trainings, 1 + blocks]
    found = difference_of(values_of_one, values_of_other, confidence=confidence)
    if found is None:
        return None
    return Comparison(
        **vars(found),
        p_value_of_these_weights=_randomization(
            one, other, compute, n_samples=n_samples, seed=seed
        ),
        n_posts=len({line["post_id"] for line in first[0]}),
        n_groups=len(set(line_groups([*first, *second]))),
    )


def difference_of(one: Floats, other: Floats, *, confidence: float = 0.95) -> Difference | None:
    """Return the difference of a figure between two systems, with its interval and its test.

    The variance over seeds is that of each system which was trained more than once.

    Args:
        one: values of the first system, `[trainings, 1 + blocks]`, see `metrics.jackknife`.
        other: of the second system, likewise; the numbers of trainings may differ.
        confidence: level of the interval.

    Returns:
        None if the figure of a training is undefined on the whole split.
    """
    first, second = float(one[:, 0].mean()), float(other[:, 0].mean())
    if np.isnan([first, second]).any():
        return None
    difference = first - second
    variance = _variance_of_difference(one, other)
    if variance is None:
        return Difference(first, second, difference, None, None, None)
    total, degrees_of_freedom = variance
    error = float(np.sqrt(total))
    half_width = error * float(stats.t.ppf((1 + confidence) / 2, degrees_of_freedom))
    p_value = 2 * float(stats.t.sf(abs(difference) / error, degrees_of_freedom))
    return Difference(
        first, second, difference, difference - half_width, difference + half_width, p_value
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values that are adjusted for their number (Holm 1979).

    If those of at most 0.05 are called differences, the chance that any of them is none is at most 5 %.
    A test that cannot be made (None) counts as one that finds nothing.
    """
    known = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, at) in enumerate(known):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        adjusted[at] = highest
    return adjusted


def mean_interval(
    metric: str, trainings: Sequence[Sequence[Line]], *, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return the interval of a metric's mean over trainings: for other posts and for other seeds.

    Args:
        metric: a key of `METRICS`.
        trainings: lines of each training, `[trainings][pairs]`.
        confidence: level of the interval.

    Returns:
        None with fewer than three trainings, or if the sample is too small.
    """
    if len(trainings) < MIN_TRAININGS:
        return None
    trainings = trained_criteria_lines(trainings)
    check_same_pairs(trainings)
    compute = METRICS[metric][0]
    values = np.stack(
        [
            compute(leave_blocks_out(training))
            for training in block_counts(trainings, line_blocks(trainings))
        ]
    )
    return interval_of_mean(values, confidence=confidence)


def interval_of_mean(
    values: Floats, *, bounded: bool = True, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return the interval of the mean over trainings, for other posts and for other seeds.

    Args:
        values: a figure of each training, whole and without each block, `[trainings, 1 + blocks]`.
        bounded: whether the figure lies in [0, 1].
        confidence: level of the interval.

    Returns:
        None if the sample is too small. Of one training the interval is for other posts alone.
    """
    posts = jackknife(values.mean(axis=0))
    if isinstance(posts, str):
        return None
    parts = [(posts.variance, posts.degrees_of_freedom)]
    if len(values) > 1:
        parts.append(_seed_variance(values))
    total, degrees_of_freedom = add_variances(parts)
    whole = Estimate(posts.value, posts.corrected, total, degrees_of_freedom)
    interval = logit_interval if bounded else student_interval
    found = interval(whole, confidence=confidence)
    return None if isinstance(found, str) else found


def _variance_of_difference(one: Floats, other: Floats) -> tuple[float, float] | None:
    """Return the variance of the difference of the means, with its degrees of freedom; None if unknown.

    Args:
        one: values of the first system, `[trainings, 1 + blocks]`.
        other: of the second system, likewise.
    """
    posts = jackknife(one.mean(axis=0) - other.mean(axis=0))
    if isinstance(posts, str):
        return None
    parts = [(posts.variance, posts.degrees_of_freedom)]
    parts += [_seed_variance(values) for values in (one, other) if len(values) > 1]
    total, degrees_of_freedom = add_variances(parts)
    # Neither posts nor seeds differ: the sample cannot tell how much others would.
    return (total, degrees_of_freedom) if total > 0 else None


def _seed_variance(values: Floats) -> tuple[float, float]:
    """Return the variance of the mean over trainings, with its degrees of freedom."""
    n = len(values)
    return float(values[:, 0].var(ddof=1)) / n, n - 1


def _randomization(
    one: Floats,
    other: Floats,
    compute: Callable[[Floats], Floats],
    *,
    n_samples: int,
    seed: int,
) -> float:
    """Return the p-value of the difference if all predictions of a block may be swapped.

    Args:
        one: counts of the first system, `[trainings, criteria, blocks, counts]`.
        other: of the second system, likewise.
        compute: the metric.
        n_samples: number of swaps.
        seed: of the swaps.
    """

    def difference(first: Floats, second: Floats) -> Floats:
        means = [
            np.mean([compute(training) for training in counts], axis=0)
            for counts in (first, second)
        ]
        found: Floats = means[0] - means[1]
        return found

    rng = np.random.default_rng(seed)
    whole, whole_other = (counts.sum(axis=2, keepdims=True) for counts in (one, other))
    observed = float(difference(whole, whole_other)[0])
    n_extreme = 0
    for begin in range(0, n_samples, _CHUNK):
        size = min(_CHUNK, n_samples - begin)
        swap = rng.integers(0, 2, size=(one.shape[2], size)).astype(float)
        change: Floats = np.einsum("tcpk,ps->tcsk", other - one, swap, optimize=True)
        # The whole split comes first: a macro average is over its criteria.
        swapped = difference(
            np.concatenate([whole, whole + change], axis=2),
            np.concatenate([whole_other, whole_other - change], axis=2),
        )[1:]
        n_extreme += int((np.abs(swapped) >= abs(observed) - 1e-12).sum())
    return (1 + n_extreme) / (1 + n_samples)
