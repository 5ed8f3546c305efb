"""Where the sentences of a text are."""

import re

from psy_agents_noaug.data.alignment import Span

_LINE = re.compile(r"[^\r\n]+")
# Closing punctuation, and quotes or brackets after it, before white space.
_END = re.compile(r"[.!?…]['\"”’)\]]*(?=\s)")


def sentences(text: str) -> list[Span]:
    """Return the sentences of `text` in order, without the white space between them.

    A plain rule: a sentence ends at . ! ? or … before white space, and at every line's end. It divides
    after abbreviations ("Dr. X"); every character but white space is in exactly one sentence.
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
