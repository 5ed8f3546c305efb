"""Comparison of two systems on the same posts: is their difference larger than chance explains?

The input is prediction lines (`predictions/<split>.jsonl`) of several trainings of each system. Metrics
are computed from counts that add up over posts, so a resample or a swap is a weighted sum of counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from psy_agents_noaug.metrics.classification import Floats
from psy_agents_noaug.metrics.intervals import draw_group_counts, macro
from psy_agents_noaug.metrics.ratios import f1_score

# The counts of a pair.
_TP, _FP, _FN, _PREDICTED, _RIGHT, _GOLD, _FOUND = range(7)
_N_COUNTS = 7
_CHUNK = 500

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A metric of two systems, in the mean over their trainings.

    Attributes:
        first: mean of the first system.
        second: mean of the second system.
        difference: first minus second.
        ci_low: lower end of the difference's percentile interval over resampled posts; None if the
            difference is undefined in half of the resamples or more.
        ci_high: upper end, likewise.
        p_value: two-sided; the null hypothesis is that the systems are exchangeable.
        n_posts: posts of the split.
    """

    first: float
    second: float
    difference: float
    ci_low: float | None
    ci_high: float | None
    p_value: float
    n_posts: int


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

    The metric is computed for each training and averaged. Posts are the unit. The test swaps all
    predictions of a post, in all trainings, between the systems (approximate randomization, Noreen
    1989; Yeh 2000). The interval resamples posts (paired bootstrap, Efron & Tibshirani 1993).

    Args:
        metric: a key of `METRICS`.
        first: lines of the first system, `[trainings][pairs]`.
        second: lines of the second system, in the same shape and order of pairs.
        n_samples: number of swaps, and of resamples.
        seed: of both.
        confidence: level of the interval.

    Returns:
        None if the metric of a system is undefined on the whole split.

    Raises:
        ValueError: lines are about different pairs, or the numbers of trainings differ.
    """
    pairs = [(line["post_id"], line["criterion_id"], line["example_id"]) for line in first[0]]
    for lines in (*first, *second):
        if [(li["post_id"], li["criterion_id"], li["example_id"]) for li in lines] != pairs:
            raise ValueError("All predictions must be about the same pairs, in the same order.")
    if len(first) != len(second):
        raise ValueError("Both systems must be trained equally often.")
    posts, groups = np.unique([post for post, _, _ in pairs], return_inverse=True)
    criteria, index = np.unique([criterion for _, criterion, _ in pairs], return_inverse=True)
    shape = (len(criteria), len(posts), _N_COUNTS)
    first_counts, second_counts = (
        np.stack([_counts(lines, index, groups, shape) for lines in system])
        for system in (first, second)
    )
    compute = METRICS[metric][0]

    def means(counts: Floats) -> Floats:
        """Return the mean over trainings, `[samples]`; from `[trainings, criteria, samples, counts]`."""
        averaged: Floats = np.mean([compute(training) for training in counts], axis=0)
        return averaged

    rng = np.random.default_rng(seed)
    whole = np.ones((len(posts), 1))
    first_total, second_total = _summed(first_counts, whole), _summed(second_counts, whole)
    first_mean, second_mean = (float(means(total)[0]) for total in (first_total, second_total))
    if np.isnan(first_mean) or np.isnan(second_mean):
        return None
    difference = first_mean - second_mean
    swapped: list[Floats] = []
    resampled: list[Floats] = []
    for begin in range(0, n_samples, _CHUNK):
        size = min(_CHUNK, n_samples - begin)
        swap = rng.integers(0, 2, size=(len(posts), size)).astype(float)
        change = _summed(second_counts - first_counts, swap)
        swapped.append(
            means(np.concatenate([first_total, first_total + change], axis=2))[1:]
            - means(np.concatenate([second_total, second_total - change], axis=2))[1:]
        )
        draws = draw_group_counts(rng, n_groups=len(posts), n_resamples=size).astype(float)
        weights = np.concatenate([whole, draws], axis=1)
        resampled.append(
            means(_summed(first_counts, weights))[1:] - means(_summed(second_counts, weights))[1:]
        )
    extreme = np.abs(np.concatenate(swapped)) >= abs(difference) - 1e-12
    differences = np.concatenate(resampled)
    defined = differences[~np.isnan(differences)]
    tail = (1 - confidence) / 2
    has_interval = 2 * len(defined) > n_samples
    low, high = np.quantile(defined, [tail, 1 - tail]) if has_interval else (None, None)
    return Comparison(
        first=first_mean,
        second=second_mean,
        difference=difference,
        ci_low=None if low is None else float(low),
        ci_high=None if high is None else float(high),
        p_value=float((1 + extreme.sum()) / (1 + n_samples)),
        n_posts=len(posts),
    )


def _counts(lines: Sequence[Line], index: Any, groups: Any, shape: tuple[int, int, int]) -> Floats:
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
    np.add.at(counts, (index, groups), rows)
    return counts


def _summed(counts: Floats, weights: Floats) -> Floats:
    """Return sums over posts, `[trainings, criteria, samples, counts]`.

    Args:
        counts: `[trainings, criteria, posts, counts]`.
        weights: `[posts, samples]`.
    """
    summed: Floats = np.einsum("tcpk,ps->tcsk", counts, weights, optimize=True)
    return summed
