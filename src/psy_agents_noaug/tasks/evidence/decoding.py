"""Decode scores of span borders to spans of the post.

Shapes: B pairs with K spans each; W windows of T tokens.
"""

from typing import NamedTuple

import numpy as np

from psy_agents_noaug.errors import NonFiniteError

NO_SPAN = -1


class SpanCandidates(NamedTuple):
    """The best spans of each pair that do not overlap, best first; a threshold decides which count.

    Args:
        starts: int64 `[B, K]`, code points of the post; NO_SPAN if a pair has fewer than K spans.
        ends: as `starts`, exclusive.
        scores: float64 `[B, K]`; those of a model are log odds of the span against no evidence in its
            window. -inf without a span.
    """

    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray


def decode_spans(
    log_odds: np.ndarray,
    offsets: np.ndarray,
    pairs: np.ndarray,
    *,
    n_pairs: int,
    n_best_size: int,
    max_answer_length: int,
    max_spans: int,
) -> SpanCandidates:
    """Return the best spans of each pair, over all its windows, that do not overlap.

    Args:
        log_odds: `[W, T, 2]` of starts and ends (`models.evidence.log_odds`); -inf where not allowed.
        offsets: `[W, T, 2]`, start and end of each token in code points of the post.
        pairs: `[W]`, the pair (0 to n_pairs - 1) of each window.
        n_pairs: B.
        n_best_size: number of starts and of ends of a window that are combined.
        max_answer_length: maximum tokens of a span.
        max_spans: K.

    Raises:
        NonFiniteError: a score is NaN or +inf.
    """
    if np.isnan(log_odds).any() or np.isposinf(log_odds).any():
        raise NonFiniteError(
            "The span scores of the model are NaN or infinite, so its metrics would be meaningless. "
            "Evaluate with `training.amp=off`, or train with a lower `training.learning_rate`."
        )
    starts = np.full((n_pairs, max_spans), NO_SPAN, dtype=np.int64)
    ends = np.full((n_pairs, max_spans), NO_SPAN, dtype=np.int64)
    scores = np.full((n_pairs, max_spans), -np.inf)
    candidates: list[list[tuple[float, int, int]]] = [[] for _ in range(n_pairs)]
    for window, pair in enumerate(pairs.tolist()):
        candidates[pair] += _candidates(
            log_odds[window].astype(np.float64),
            offsets[window],
            n_best_size=n_best_size,
            max_answer_length=max_answer_length,
        )
    for pair, found in enumerate(candidates):
        taken: list[tuple[int, int]] = []
        # Of equal scores, the earliest and shortest span comes first, from any window.
        for negative_score, start, end in sorted(found):
            if len(taken) == max_spans:
                break
            if all(end <= begin or start >= stop for begin, stop in taken):
                starts[pair, len(taken)] = start
                ends[pair, len(taken)] = end
                scores[pair, len(taken)] = -negative_score
                taken.append((start, end))
    return SpanCandidates(starts, ends, scores)


def _candidates(
    log_odds: np.ndarray, offsets: np.ndarray, *, n_best_size: int, max_answer_length: int
) -> list[tuple[float, int, int]]:
    """Return the spans of one window: (negative score, start and end in code points)."""
    first, last = (_best(log_odds[:, border], n_best_size) for border in (0, 1))
    length = last[None, :] - first[:, None] + 1
    total = log_odds[first, 0][:, None] + log_odds[last, 1][None, :]
    rows, columns = np.nonzero((length >= 1) & (length <= max_answer_length))
    return list(
        zip(
            (-total[rows, columns]).tolist(),
            offsets[first[rows], 0].tolist(),
            offsets[last[columns], 1].tolist(),
            strict=True,
        )
    )


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the highest finite scores, best first; of equal ones the earlier first."""
    order = np.argsort(-scores, kind="stable")[:count]
    finite: np.ndarray = order[np.isfinite(scores[order])]
    return finite
