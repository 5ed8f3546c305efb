"""Sentence segmentation."""

import re

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
