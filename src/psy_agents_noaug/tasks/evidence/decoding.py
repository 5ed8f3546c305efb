"""From border scores to spans of the post."""

from typing import NamedTuple

import numpy as np

from psy_agents_noaug.errors import NonFiniteError

NO_SPAN = -1


class SpanCandidates(NamedTuple):
    """The best non-overlapping spans of each pair, best first; whether they count is decided later.

    starts, ends: int64 `[B, K]`, code points of the post, NO_SPAN where there are fewer than K.
    scores: float64 `[B, K]`, a model's are log odds against no evidence in the span's window; -inf
        without a span.
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
    """Take the best spans of each pair, over all its windows, that do not overlap.

    Args:
        log_odds: `[W, T, 2]` of starts and ends (`models.evidence.log_odds`), -inf where none may be.
        offsets: `[W, T, 2]` code points of the post that each token stands for.
        pairs: `[W]`, the pair (0 to n_pairs - 1) of each window.
        n_best_size: so many starts and ends of a window are combined.
        max_answer_length: tokens of a span at most.
        max_spans: K.

    Raises:
        NonFiniteError: a score is NaN or plus infinity.
    """
    if np.isnan(log_odds).any() or np.isposinf(log_odds).any():
        raise NonFiniteError(
            "The model's span scores are NaN or infinite, so that its figures would mean nothing. "
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
        # Equal scores: the earliest and shortest span, whatever window it came from.
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
    """Spans of one window as (negative score, start, end in code points)."""
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
    """Positions of the highest finite scores; the earlier one first where they are equal."""
    order = np.argsort(-scores, kind="stable")[:count]
    finite: np.ndarray = order[np.isfinite(scores[order])]
    return finite
