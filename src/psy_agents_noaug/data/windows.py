"""Posts of any length as sliding windows, and the positions of gold spans in them.

A position is a token's index in its window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psy_agents_noaug.data.encoding import EncodedPairs, Frame, framed_pairs, frames_of
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.tokens import tokenise
from psy_agents_noaug.errors import ConfigError

NO_OFFSET = -1


class UnreachableSpan(NamedTuple):
    """A gold span that no window holds whole.

    Attributes:
        pair: index of its pair.
        tokens: length of the span in tokens; 0 if no token covers it.
    """

    pair: int
    tokens: int


@dataclass(frozen=True)
class EncodedWindows:
    """Pairs whose second texts are cut into overlapping windows, each with the frame of its first text.

    Attributes:
        rows: one row per window, in the order of pairs and then of the text.
        starts: int64 `[pairs + 1]`; pair i has windows starts[i] to starts[i + 1] - 1, at least one.
        begins: int64 `[windows]`; index in the text of a window's first token.
        offsets: per pair, int32 `[tokens of its text, 2]`; the code points of the second text that a
            token covers, NO_OFFSET for tokens of white space. Empty if no spans are given.
        gold: int64 `[spans, 3]`; window, first and last position of each gold span in each window that
            holds it whole, in the order of windows and then of the given spans.
        cut: bool `[windows]`; whether a window holds part of a gold span and no whole one.
        unreachable: the gold spans that are whole in no window.
        longest_gold: tokens of the longest gold span, 0 without gold spans.
        longest_frame: tokens of the longest frame.
    """

    rows: EncodedPairs
    starts: np.ndarray
    begins: np.ndarray
    offsets: Sequence[np.ndarray]
    gold: np.ndarray
    cut: np.ndarray
    unreachable: Sequence[UnreachableSpan]
    longest_gold: int
    longest_frame: int

    def framed_offsets(self, window: int, offsets: np.ndarray) -> np.ndarray:
        """Return the offsets of a window's tokens, int32 `[tokens, 2]`; NO_OFFSET for its frame.

        Args:
            window: index of the window.
            offsets: of its whole text, `[tokens of the text, 2]`.
        """
        frame, ids = self.rows.parts[window]
        framed = np.full((len(frame) + len(ids), 2), NO_OFFSET, dtype=np.int32)
        begin, shift = self.begins[window], len(frame.before)
        framed[shift : shift + len(ids)] = offsets[begin : begin + len(ids)]
        return framed


def encode_windows(
    tokenizer: Any,
    first: Sequence[str | None],
    second: Sequence[str],
    spans: Sequence[Sequence[Span]] | None = None,
    *,
    max_length: int,
    stride: int | None,
    token_cache: Path | None = None,
) -> EncodedWindows:
    """Cut pairs into overlapping windows. A span of up to `stride` + 1 tokens is whole in some window.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        first: the first text of each pair; None if it has none.
        second: the second text of each pair.
        spans: gold spans of each pair, in code points of its second text; None: nobody asks for spans.
        max_length: tokens of a window, with its frame.
        stride: tokens of the text that neighbouring windows share; None: the first window alone, so that
            longer texts are truncated.
        token_cache: folder of cached tokens (`tokens.tokenise`); None for no cache.

    Raises:
        ConfigError: a window has no room for a first text and more than `stride` tokens, or the
            tokenizer cannot pad.
    """
    frames = frames_of(tokenizer, first, max_length=max_length)
    longest = max(map(len, frames.values()), default=0)
    if stride is not None and stride >= max_length - longest:
        raise ConfigError(
            f"`stride` must be less than the {max_length - longest} tokens of a post that fit "
            f"into `model.max_length` ({max_length}) beside the longest criterion, but is {stride} "
            "instead. Lower `stride` or raise `model.max_length`."
        )
    tokens = tokenise(tokenizer, second, cache=token_cache)
    offsets = (
        {}
        if spans is None
        else {text: clean_offsets(text, own.offsets) for text, own in tokens.items()}
    )
    rows: list[tuple[Frame, np.ndarray]] = []
    starts, windows_begin, gold, cut, truncated = [0], [], [], [], []
    unreachable: list[UnreachableSpan] = []
    longest_gold = 0
    for pair, (one, other) in enumerate(zip(first, second, strict=True)):
        frame, ids = frames[one], tokens[other].ids
        room = max_length - len(frame)
        begins = range(1) if stride is None else range(0, max(1, len(ids) - stride), room - stride)
        ranges = [tokens_of(span, offsets[other]) for span in (spans[pair] if spans else ())]
        reached = [False] * len(ranges)
        for begin in begins:
            end = min(begin + room, len(ids))
            rows.append((frame, ids[begin:end]))
            windows_begin.append(begin)
            truncated.append(end < len(ids))
            whole = part = False
            for number, (start, stop) in enumerate(ranges):
                if begin <= start < stop <= end:
                    shift = len(frame.before) - begin
                    gold.append((len(rows) - 1, start + shift, stop - 1 + shift))
                    whole = reached[number] = True
                else:
                    part |= start < end and stop > begin
            cut.append(part and not whole)
        starts.append(len(rows))
        lengths = [stop - start for start, stop in ranges]
        unreachable += [
            UnreachableSpan(pair, length)
            for length, found in zip(lengths, reached, strict=True)
            if not found
        ]
        longest_gold = max([longest_gold, *lengths])
    return EncodedWindows(
        rows=framed_pairs(tokenizer, rows, truncated=truncated),
        starts=np.asarray(starts, dtype=np.int64),
        begins=np.asarray(windows_begin, dtype=np.int64),
        offsets=[offsets[text] for text in second] if offsets else [],
        gold=np.asarray(gold, dtype=np.int64).reshape(-1, 3),
        cut=np.asarray(cut, dtype=bool),
        unreachable=unreachable,
        longest_gold=longest_gold,
        longest_frame=longest,
    )


def tokens_of(span: Span, offsets: np.ndarray) -> tuple[int, int]:
    """Return the half-open range of tokens that cover `span`; (0, 0) if there are none."""
    covering = (
        (offsets[:, 0] < span.end_char)
        & (offsets[:, 1] > span.start_char)
        & (offsets[:, 0] != NO_OFFSET)
    )
    found = np.flatnonzero(covering)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)


def clean_offsets(text: str, offsets: np.ndarray) -> np.ndarray:
    """Make the offsets of tokens cover all visible text and no white space at their ends.

    Characters that the tokenizer drops (combining accents, joiners, control characters) are added to the
    token before them, or else to the one after them. Tokens of white space get NO_OFFSET.

    Args:
        text: the text.
        offsets: the tokenizer's offsets, int32 `[tokens, 2]`.
    """
    cleaned = np.full_like(offsets, NO_OFFSET)
    before, end_before = -1, 0
    for index, (start, end) in enumerate(offsets.tolist()):
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if start >= end:
            continue
        if before >= 0 and end_before < start:
            cleaned[before, 1] = end_before = _end_of_word(text, end_before, start)
        while start > end_before and not text[start - 1].isspace():
            start -= 1
        cleaned[index] = start, end
        before, end_before = index, max(end, end_before)
    if before >= 0:
        cleaned[before, 1] = _end_of_word(text, int(cleaned[before, 1]), len(text))
    return cleaned


def _end_of_word(text: str, end: int, limit: int) -> int:
    while end < limit and not text[end].isspace():
        end += 1
    return end
