"""Decode scores of span borders to spans of the post.

Shapes: B pairs with S spans each; W windows of T tokens, of which the best K may start or end a span.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from psy_agents_noaug.errors import NonFiniteError

NO_SPAN = -1

_FLOAT64_DEVICES = ("cpu", "cuda")  # not MPS
_NEVER = float("-inf")
_BEYOND = torch.iinfo(torch.int64).max  # no code point of a post is as large


class SpanCandidates(NamedTuple):
    """The best spans of each pair that do not overlap, best first; a threshold decides which count.

    Args:
        starts: int64 `[B, S]`, code points of the post; NO_SPAN if a pair has fewer than S spans.
        ends: as `starts`, exclusive.
        scores: float64 `[B, S]`; those of a model are log odds of the span against no evidence in its
            window. -inf without a span.
    """

    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray


def decode_spans(
    log_odds: Tensor,
    offsets: Tensor,
    pairs: Tensor,
    *,
    n_pairs: int,
    n_best_size: int,
    max_answer_length: int,
    max_spans: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best spans of each pair, over all its windows, that do not overlap.

    All windows are computed together, on the device of `log_odds`. No candidate is dropped before the
    choice: any number of the best spans of a window may overlap one that is chosen in another.

    Args:
        log_odds: float32 `[W, T, 2]` of starts and ends (`models.evidence.log_odds`); -inf where not
            allowed.
        offsets: int64 `[W, T, 2]`, start and end of each token in code points of the post.
        pairs: int64 `[W]`, the pair of each window; each of 0 to n_pairs - 1 has one or more.
        n_pairs: B.
        n_best_size: K, number of starts and of ends of a window that are combined.
        max_answer_length: maximum tokens of a span.
        max_spans: S.

    Returns:
        The fields of `SpanCandidates`. Of equal scores the earliest and shortest span comes first.

    Raises:
        NonFiniteError: a score is NaN or +inf.
    """
    if not (log_odds < float("inf")).all():
        raise NonFiniteError(
            "The span scores of the model are NaN or infinite, so its metrics would be meaningless. "
            "Evaluate with `training.amp=off`, or train with a lower `training.learning_rate`."
        )
    if log_odds.device.type not in _FLOAT64_DEVICES:
        log_odds, offsets, pairs = log_odds.cpu(), offsets.cpu(), pairs.cpu()
    by_border = log_odds.transpose(1, 2)
    tokens = _best(by_border, n_best_size)
    first, last = by_border.gather(2, tokens).double().unbind(1)
    begin, stop = offsets.transpose(1, 2).gather(2, tokens).unbind(1)
    length = tokens[:, 1].unsqueeze(1) - tokens[:, 0].unsqueeze(2) + 1
    scores = first.unsqueeze(2) + last.unsqueeze(1)
    scores.masked_fill_((length < 1) | (length > max_answer_length), _NEVER)
    windows = _windows_of(pairs, n_pairs)
    chosen = []
    for _ in range(max_spans):
        # The best candidates of each pair, then the earliest of these, then the shortest of those.
        score = scores.amax(dim=(1, 2))[windows].amax(dim=1)
        best = scores == score[pairs].view(-1, 1, 1)
        start = begin.where(best.any(dim=2), _BEYOND).amin(dim=1)[windows].amin(dim=1)
        own_start = start[pairs].unsqueeze(1)
        best &= (begin == own_start).unsqueeze(2)
        end = stop.where(best.any(dim=1), _BEYOND).amin(dim=1)[windows].amin(dim=1)
        overlap = (begin < end[pairs].unsqueeze(1)).unsqueeze(2) & (stop > own_start).unsqueeze(1)
        scores.masked_fill_(overlap, _NEVER)
        chosen.append((start, end, score))
    starts, ends, best_scores = (torch.stack(column, dim=1) for column in zip(*chosen, strict=True))
    none = best_scores == _NEVER
    return starts.masked_fill(none, NO_SPAN), ends.masked_fill(none, NO_SPAN), best_scores


def _best(scores: Tensor, count: int) -> Tensor:
    """Return the positions of the highest scores along the last dimension, of equal ones the first.

    `topk` leaves open which of equal numbers it takes, and a stable sort takes four times as long. So
    each score and its position become one number.
    """
    bits = (scores + 0.0).view(torch.int32)  # of -0.0 those of 0.0
    # As integers, the bits of negative numbers are in reverse order.
    in_order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    n_tokens = scores.shape[-1]
    from_end = torch.arange(n_tokens - 1, -1, -1, device=scores.device)
    best = ((in_order << 32) | from_end).topk(min(count, n_tokens)).values
    return n_tokens - 1 - (best & 0xFFFFFFFF)


def _windows_of(pairs: Tensor, n_pairs: int) -> Tensor:
    """Return the windows of each pair, `[B, most of a pair]`; the last again where it has fewer."""
    counts = torch.bincount(pairs, minlength=n_pairs).unsqueeze(1)
    place = torch.arange(int(counts.max()), device=pairs.device)
    before = counts.cumsum(0) - counts
    return pairs.argsort(stable=True)[before + torch.minimum(place, counts - 1)]
