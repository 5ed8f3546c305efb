"""Sentence segmentation."""

import re
from collections.abc import Sequence

from psy_agents_noaug.data.span import Span

_LINE = re.compile(r"[^\r\n]+")
# Closing punctuation with the quotes or brackets after it, followed by white space; that of Chinese and
# Japanese needs none.
_END = re.compile(r"[.!?…]['\"”’)\]]*(?=\s)|[。！？｡]+['\"”’)\]）」』]*")


def sentences(text: str) -> list[Span]:
    """Return the sentences of `text` in order, without the white space between them.

    A sentence ends at . ! ? or … before white space, at 。 ！ or ？, and at the end of a line. This
    rule also splits after abbreviations ("Dr. X"). Every character except white space is in exactly one
    sentence.
    """
    found: list[Span] = []
    for line in _LINE.finditer(text):
        ends = [end.end() for end in _END.finditer(text, *line.span())]
        for start, end in zip([line.start(), *ends], [*ends, line.end()], strict=True):
            piece = text[start:end]
            if words := piece.strip():
                at = start + len(piece) - len(piece.lstrip())
                found.append(Span(at, at + len(words)))
    return found


def sentences_of_span(span: Span, sentences: Sequence[Span]) -> list[Span]:
    """Return the sentences that an annotated span is about.

    Those of which the span covers at least half, and those that hold at least half of what it covers
    of all sentences. A span that covers more than white space is about one sentence at least.

    Args:
        span: offsets in a post.
        sentences: those of the post.
    """
    shared = {
        sentence: min(sentence.end_char, span.end_char) - max(sentence.start_char, span.start_char)
        for sentence in sentences
        if sentence.start_char < span.end_char and span.start_char < sentence.end_char
    }
    covered = sum(shared.values())
    return [
        sentence
        for sentence, n_shared in shared.items()
        if 2 * n_shared >= min(sentence.end_char - sentence.start_char, covered)
    ]
