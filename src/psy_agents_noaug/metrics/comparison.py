"""Comparison of two systems on the same posts: is their difference larger than chance explains?

The input is prediction lines (`predictions/<split>.jsonl`) of several trainings of each system. Metrics
are computed from counts that add up over posts, so that leaving posts out and swapping are sums.

Chance is of two kinds: other posts, and other seeds. The squared standard error of a difference is the
paired variance over groups of posts (`metrics.jackknife`) plus the variance over seeds of each system,
divided by its number of seeds. The test is Student's, with Satterthwaite's (1946) degrees of freedom. A
test over posts alone takes the trained weights for the system: it may find equal systems different
far more often than it says. `benchmarks/comparison_error.py` measures both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from psy_agents_noaug.metrics.intervals import macro
from psy_agents_noaug.metrics.jackknife import (
    Estimate,
    add_variances,
    jackknife,
    jackknife_blocks,
    leave_blocks_out,
    logit_interval,
)
from psy_agents_noaug.metrics.ratios import f1_score
from psy_agents_noaug.metrics.values import Floats, Ints

# The counts of a pair.
_TP, _FP, _FN, _PREDICTED, _RIGHT, _GOLD, _FOUND = range(7)
_N_COUNTS = 7
_CHUNK = 500
MIN_TRAININGS = 3  # for an interval: two seeds say next to nothing of their spread

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A metric of two systems, in the mean over their trainings.

    Attributes:
        first: mean of the first system.
        second: mean of the second system.
        difference: first minus second.
        ci_low: lower end of the difference's interval over posts and seeds; None if the sample is too
            small.
        ci_high: upper end, likewise.
        p_value: two-sided, over posts and seeds; None if the sample is too small.
        p_value_of_these_weights: two-sided, over posts alone (randomization): the systems are the
            weights that were trained, not the way of training them.
        n_posts: posts of the split.
        n_groups: authors, or posts, of the split.
    """

    first: float
    second: float
    difference: float
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    p_value_of_these_weights: float
    n_posts: int
    n_groups: int


def _f1_macro(counts: Floats) -> Floats:
    """Return macro-F1, `[samples]`, from `[criteria, samples, counts]`; sample 0 is the split itself."""
    tp, fp, fn = (counts[..., outcome] for outcome in (_TP, _FP, _FN))
    return macro(f1_score(tp, tp + fp, tp + fn))


def _evidence_iou_f1(counts: Floats) -> Floats:
    right, predicted, found, gold = (
        counts[..., index] for index in (_RIGHT, _PREDICTED, _FOUND, _GOLD)
    )
    return macro(f1_score(right, predicted, gold, found=found))


def _joint_score(counts: Floats) -> Floats:
    return (_f1_macro(counts) + _evidence_iou_f1(counts)) / 2


# Metrics by their names in `metrics.json`, each with the keys that it needs in a line.
METRICS: dict[str, tuple[Callable[[Floats], Floats], tuple[str, ...]]] = {
    "f1_macro": (_f1_macro, ("decision",)),
    "evidence_iou_f1": (_evidence_iou_f1, ("evidence",)),
    "joint_score": (_joint_score, ("decision", "evidence")),
}


def comparable_metrics(line: Line) -> list[str]:
    """Return the names of the metrics that can be computed from lines like this one."""
    return [name for name, (_, keys) in METRICS.items() if all(key in line for key in keys)]


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
    first, second = _of_trained_criteria(first), _of_trained_criteria(second)
    _check_same_pairs([*first, *second])
    if len(first) != len(second):
        raise ValueError("Both systems must be trained equally often.")
    compute = METRICS[metric][0]
    blocks = _blocks([*first, *second])
    one, other = _block_counts(first, blocks), _block_counts(second, blocks)
    values_of_one, values_of_other = (
        np.stack([compute(leave_blocks_out(training)) for training in counts])
        for counts in (one, other)
    )  # [trainings, 1 + blocks]
    means = [float(values[:, 0].mean()) for values in (values_of_one, values_of_other)]
    if np.isnan(means).any():
        return None
    difference = means[0] - means[1]
    variance = _variance_of_difference(values_of_one, values_of_other)
    low = high = p_value = None
    if variance is not None:
        total, degrees_of_freedom = variance
        error = float(np.sqrt(total))
        half_width = error * float(stats.t.ppf((1 + confidence) / 2, degrees_of_freedom))
        low, high = difference - half_width, difference + half_width
        p_value = 2 * float(stats.t.sf(abs(difference) / error, degrees_of_freedom))
    return Comparison(
        first=means[0],
        second=means[1],
        difference=difference,
        ci_low=low,
        ci_high=high,
        p_value=p_value,
        p_value_of_these_weights=_randomization(
            one, other, compute, n_samples=n_samples, seed=seed
        ),
        n_posts=len({line["post_id"] for line in first[0]}),
        n_groups=len(set(_group_ids([*first, *second]))),
    )


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
    trainings = _of_trained_criteria(trainings)
    _check_same_pairs(trainings)
    compute = METRICS[metric][0]
    values = np.stack(
        [
            compute(leave_blocks_out(training))
            for training in _block_counts(trainings, _blocks(trainings))
        ]
    )
    posts = jackknife(values.mean(axis=0))
    if isinstance(posts, str):
        return None
    total, degrees_of_freedom = add_variances(
        [(posts.variance, posts.degrees_of_freedom), _seed_variance(values)]
    )
    whole = Estimate(posts.value, posts.corrected, total, degrees_of_freedom)
    found = logit_interval(whole, confidence=confidence)
    return None if isinstance(found, str) else found


def _variance_of_difference(one: Floats, other: Floats) -> tuple[float, float] | None:
    """Return the variance of the difference of the means, with its degrees of freedom; None if unknown.

    Args:
        one: values of the first system, `[trainings, 1 + blocks]`.
        other: of the second system, likewise.
    """
    posts = jackknife((one - other).mean(axis=0))
    if isinstance(posts, str):
        return None
    parts = [(posts.variance, posts.degrees_of_freedom)]
    if len(one) > 1:
        parts += [_seed_variance(one), _seed_variance(other)]
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


def _of_trained_criteria(trainings: Sequence[Sequence[Line]]) -> list[list[Line]]:
    """Return the lines without those of held-out criteria, of which no figure of a split is."""
    return [[line for line in lines if not line.get("held_out")] for lines in trainings]


def _check_same_pairs(trainings: Sequence[Sequence[Line]]) -> None:
    pairs = [_pair(line) for line in trainings[0]]
    if any([_pair(line) for line in lines] != pairs for lines in trainings):
        raise ValueError("All predictions must be about the same pairs, in the same order.")


def _pair(line: Line) -> tuple[str, str, str]:
    return line["post_id"], line["criterion_id"], line["example_id"]


def _group_ids(trainings: Sequence[Sequence[Line]]) -> list[str]:
    """Return the author of each pair, or its post where some lines, of version 0.2, have no author."""
    if all("group_id" in line for lines in trainings for line in lines):
        return [line["group_id"] for line in trainings[0]]
    return [line["post_id"] for line in trainings[0]]


def _blocks(trainings: Sequence[Sequence[Line]]) -> tuple[Ints, int]:
    return jackknife_blocks(np.asarray(_group_ids(trainings)))


def _block_counts(trainings: Sequence[Sequence[Line]], blocks: tuple[Ints, int]) -> Floats:
    """Return the counts of each training, `[trainings, criteria, blocks, counts]`."""
    of_pair, n_blocks = blocks
    names = [line["criterion_id"] for line in trainings[0]]
    criteria, index = np.unique(names, return_inverse=True)
    shape = (len(criteria), n_blocks, _N_COUNTS)
    return np.stack([_counts(training, index, of_pair, shape) for training in trainings])


def _counts(lines: Sequence[Line], index: Any, blocks: Any, shape: tuple[int, int, int]) -> Floats:
    """Return the counts of one training's predictions, `[criteria, posts, counts]`."""
    rows = np.zeros((len(lines), _N_COUNTS))
    for row, line in zip(rows, lines, strict=True):
        if "decision" in line:
            label, decision = line["label"], line["decision"]
            row[_TP], row[_FP] = label & decision, decision & ~label & 1
            row[_FN] = label & ~decision & 1
        # Pairs whose evidence is unknown are in no evidence metric.
        if line.get("gold_evidence") is not None:
            row[_PREDICTED] = len(line["evidence"])
            row[_RIGHT] = sum(span["right"] for span in line["evidence"])
            row[_GOLD] = len(line["gold_evidence"])
            row[_FOUND] = sum(span["found"] for span in line["gold_evidence"])
    counts = np.zeros(shape)
    np.add.at(counts, (index, blocks), rows)
    return counts
