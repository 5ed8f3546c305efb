"""How long texts are in an encoder's tokens, and what each `model.max_length` would leave unread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from psy_agents_noaug.data.encoding import frames_of
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.tokens import tokenise
from psy_agents_noaug.data.windows import clean_offsets, tokens_of
from psy_agents_noaug.metrics.values import Ints
from psy_agents_noaug.models.encoder import Encoder

MAX_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
MAX_TEXTS, MAX_TEXTS_WITH_SPANS = 10_000, 5000
_CHUNK = 1024


@dataclass(frozen=True)
class Unread:
    """What one `max_length` would leave unread, if texts were truncated.

    Args:
        max_length: tokens of a text with its frame.
        texts: number of texts that are longer.
        tokens: share of all tokens of the texts, beyond it.
        spans: number of evidence spans that end beyond it.
    """

    max_length: int
    texts: int
    tokens: float
    spans: int


@dataclass(frozen=True, eq=False)
class EncoderLengths:
    """The lengths of the texts in an encoder's tokens.

    Args:
        encoder: its name.
        lengths: tokens of each text without its frame, `[texts]`.
        n_texts: that there are; of more than `MAX_TEXTS` as many were drawn at random and counted.
        frame: tokens of the longest frame: special tokens and, if it is read too, the criterion.
        unread: by `max_length`, in ascending order.
        n_spans: evidence spans that were looked at.
        n_texts_with_spans: texts with evidence; those beyond `MAX_TEXTS_WITH_SPANS` were not looked at.
    """

    encoder: str
    lengths: Ints
    n_texts: int
    frame: int
    unread: Sequence[Unread]
    n_spans: int
    n_texts_with_spans: int

    def at(self, max_length: int) -> Unread | None:
        """Return what this `max_length` would leave unread; None: it was not looked at."""
        return next((one for one in self.unread if one.max_length == max_length), None)


def encoder_lengths(
    name: str,
    encoder: Encoder,
    texts: Mapping[str, str],
    spans: Mapping[str, Sequence[Span]],
    *,
    first: Sequence[str | None],
    max_length: int,
) -> EncoderLengths:
    """Count the tokens of texts.

    Args:
        name: of the encoder.
        encoder: its tokenizer counts; its positions limit `max_length`.
        texts: by identifier.
        spans: of evidence, in code points of the text, by identifier.
        first: what the encoder reads before a text: that of each criterion, or None.
        max_length: the configured one.

    Raises:
        ConfigError: the longest criterion leaves no room in the encoder's positions, or the tokenizer
            cannot pad.
    """
    tokenizer = encoder.tokenizer
    positions = encoder.max_positions or MAX_LENGTHS[-1]
    frame = max(map(len, frames_of(tokenizer, first, max_length=positions).values()))
    lengths = _counts(tokenizer, _drawn(list(texts.values()), MAX_TEXTS))
    with_spans = [one for one in texts if spans.get(one)]
    ends = _span_ends(tokenizer, texts, spans, _drawn(with_spans, MAX_TEXTS_WITH_SPANS))
    wanted = {one for one in (*MAX_LENGTHS, max_length) if frame < one <= positions}
    needed = int(lengths.max(initial=0)) + frame
    # The first that every text fits into, the configured one, and all between.
    enough = min((one for one in wanted if one >= needed), default=positions)
    total = max(int(lengths.sum()), 1)
    unread = [
        Unread(
            one,
            texts=int((lengths > one - frame).sum()),
            tokens=float(np.maximum(lengths - (one - frame), 0).sum()) / total,
            spans=int((ends > one - frame).sum()),
        )
        for one in sorted(wanted)
        if one <= max(enough, max_length)
    ]
    return EncoderLengths(name, lengths, len(texts), frame, unread, len(ends), len(with_spans))


def _drawn(values: Sequence[str], most: int) -> list[str]:
    """Return all values, or as many of them, drawn at random, in their order."""
    if len(values) <= most:
        return list(values)
    chosen = np.random.default_rng(0).permutation(len(values))[:most]
    return [values[number] for number in np.sort(chosen)]


def _counts(tokenizer: Any, texts: Sequence[str]) -> Ints:
    """Return the tokens of each text, without special ones, `[texts]`."""
    counts: list[int] = []
    for begin in range(0, len(texts), _CHUNK):
        encoded = tokenizer(
            list(texts[begin : begin + _CHUNK]),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about long texts
        )
        counts += map(len, encoded["input_ids"])
    return np.asarray(counts, dtype=np.int64)


def _span_ends(
    tokenizer: Any,
    texts: Mapping[str, str],
    spans: Mapping[str, Sequence[Span]],
    chosen: Sequence[str],
) -> Ints:
    """Return the tokens of its text up to the end of each span, `[spans]`."""
    tokens = tokenise(tokenizer, [texts[one] for one in chosen])
    ends: list[int] = []
    for one in chosen:
        offsets = clean_offsets(texts[one], tokens[texts[one]].offsets)
        ends += [tokens_of(span, offsets)[1] for span in spans[one]]
    return np.asarray(ends, dtype=np.int64)


def shortest_sufficient(lengths: EncoderLengths, *, share: float) -> int | None:
    """Return the least `max_length` that leaves at most this share of texts truncated, if any does."""
    n_texts = len(lengths.lengths)
    return next((u.max_length for u in lengths.unread if u.texts <= share * n_texts), None)
