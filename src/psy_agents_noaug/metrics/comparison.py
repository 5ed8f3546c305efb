"""Two systems on the same posts: is their difference more than chance would make?

From prediction lines (`predictions/<split>.jsonl`), of several trainings of each system. A figure is
made of counts that add up over posts, so neither resampling nor swapping rebuilds one.
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
    """Of a figure, in the mean over trainings.

    difference: first minus second; ci_low, ci_high: its percentile interval over resampled posts, None
    where it is undefined in most; p_value: two-sided, of the systems being exchangeable.
    """

    first: float
    second: float
    difference: float
    ci_low: float | None
    ci_high: float | None
    p_value: float
    n_posts: int


def _f1_macro(counts: Floats) -> Floats:
    """From `[criteria, samples, counts]`, the first sample the split itself, to `[samples]`."""
    tp, fp, fn = (counts[..., outcome] for outcome in (_TP, _FP, _FN))
    return macro(f1_score(tp, tp + fp, tp + fn))


def _evidence_iou_f1(counts: Floats) -> Floats:
    right, predicted, found, gold = (
        counts[..., index] for index in (_RIGHT, _PREDICTED, _FOUND, _GOLD)
    )
    return macro(f1_score(right, predicted, gold, found=found))


def _joint_score(counts: Floats) -> Floats:
    return (_f1_macro(counts) + _evidence_iou_f1(counts)) / 2


# By the names that they have in `metrics.json`; what each needs of a line.
FIGURES: dict[str, tuple[Callable[[Floats], Floats], tuple[str, ...]]] = {
    "f1_macro": (_f1_macro, ("decision",)),
    "evidence_iou_f1": (_evidence_iou_f1, ("evidence",)),
    "joint_score": (_joint_score, ("decision", "evidence")),
}


def comparable_figures(line: Line) -> list[str]:
    """Return the names of the figures that can be had of lines like this one."""
    return [name for name, (_, keys) in FIGURES.items() if all(key in line for key in keys)]


def compare(
    figure: str,
    first: Sequence[Sequence[Line]],
    second: Sequence[Sequence[Line]],
    *,
    n_samples: int,
    seed: int,
    confidence: float = 0.95,
) -> Comparison | None:
    """Compare two systems, each trained several times, on one split; None if the figure is undefined.

    The figure is taken of each training and averaged. Posts are the units: the test swaps all of a
    post's predictions, of all trainings, between the systems (approximate randomization, Noreen 1989;
    Yeh 2000), `n_samples` times; the interval resamples posts (paired bootstrap, Efron & Tibshirani
    1993).

    Raises:
        ValueError: the lines are not about the same pairs, or of more trainings of one system.
    """
    pairs = [(line["post_id"], line["criterion_id"], line["example_id"]) for line in first[0]]
    for lines in (*first, *second):
        if [(li["post_id"], li["criterion_id"], li["example_id"]) for li in lines] != pairs:
            raise ValueError("All predictions must be about the same pairs, in the same order.")
    if len(first) != len(second):
        raise ValueError("Both systems must have been trained equally often.")
    posts, groups = np.unique([post for post, _, _ in pairs], return_inverse=True)
    criteria, index = np.unique([criterion for _, criterion, _ in pairs], return_inverse=True)
    shape = (len(criteria), len(posts), _N_COUNTS)
    ours, theirs = (
        np.stack([_counts(lines, index, groups, shape) for lines in system])
        for system in (first, second)
    )
    of = FIGURES[figure][0]

    def means(counts: Floats) -> Floats:
        """From `[trainings, criteria, samples, counts]` to `[samples]`."""
        averaged: Floats = np.mean([of(training) for training in counts], axis=0)
        return averaged

    rng = np.random.default_rng(seed)
    whole = np.ones((len(posts), 1))
    observed, other = (float(means(_summed(counts, whole))[0]) for counts in (ours, theirs))
    if np.isnan(observed) or np.isnan(other):
        return None
    difference = observed - other
    swapped: list[Floats] = []
    resampled: list[Floats] = []
    for begin in range(0, n_samples, _CHUNK):
        size = min(_CHUNK, n_samples - begin)
        swap = rng.integers(0, 2, size=(len(posts), size)).astype(float)
        moved = _summed(theirs - ours, swap)
        total, total_other = _summed(ours, whole), _summed(theirs, whole)
        swapped.append(
            means(np.concatenate([total, total + moved], axis=2))[1:]
            - means(np.concatenate([total_other, total_other - moved], axis=2))[1:]
        )
        draws = draw_group_counts(rng, n_groups=len(posts), n_resamples=size).astype(float)
        weights = np.concatenate([whole, draws], axis=1)
        resampled.append(means(_summed(ours, weights))[1:] - means(_summed(theirs, weights))[1:])
    extreme = np.abs(np.concatenate(swapped)) >= abs(difference) - 1e-12
    differences = np.concatenate(resampled)
    defined = differences[~np.isnan(differences)]
    tail = (1 - confidence) / 2
    has_interval = 2 * len(defined) > n_samples
    low, high = np.quantile(defined, [tail, 1 - tail]) if has_interval else (None, None)
    return Comparison(
        first=observed,
        second=other,
        difference=difference,
        ci_low=None if low is None else float(low),
        ci_high=None if high is None else float(high),
        p_value=float((1 + extreme.sum()) / (1 + n_samples)),
        n_posts=len(posts),
    )


def _counts(lines: Sequence[Line], index: Any, groups: Any, shape: tuple[int, int, int]) -> Floats:
    """`[criteria, posts, counts]` of one training's predictions."""
    rows = np.zeros((len(lines), _N_COUNTS))
    for row, line in zip(rows, lines, strict=True):
        if "decision" in line:
            met, decided = line["label"], line["decision"]
            row[_TP], row[_FP], row[_FN] = met & decided, decided & ~met & 1, met & ~decided & 1
        # Of pairs whose evidence is unknown no figure knows.
        if line.get("gold_evidence") is not None:
            row[_PREDICTED] = len(line["evidence"])
            row[_RIGHT] = sum(span["right"] for span in line["evidence"])
            row[_GOLD] = len(line["gold_evidence"])
            row[_FOUND] = sum(span["found"] for span in line["gold_evidence"])
    counts = np.zeros(shape)
    np.add.at(counts, (index, groups), rows)
    return counts


def _summed(counts: Floats, weights: Floats) -> Floats:
    """`[trainings, criteria, posts, counts]` and `[posts, samples]`: weighted sums over posts."""
    summed: Floats = np.einsum("tcpk,ps->tcsk", counts, weights, optimize=True)
    return summed
