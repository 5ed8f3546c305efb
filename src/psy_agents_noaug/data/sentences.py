"""Where the sentences of a text are."""

import re

from psy_agents_noaug.data.alignment import Span

# Up to closing punctuation (and quotes or brackets after it) before a space, or to the line's end.
_SENTENCE = re.compile(r"\S[^\r\n]*?(?:[.!?…]+['\"”’)\]]*(?=\s|\Z)|(?=\s*(?:[\r\n]|\Z)))")


def sentences(text: str) -> list[Span]:
    """Return the sentences of `text` in order, without the white space between them.

    A plain rule: a sentence ends at . ! ? or … before white space, and at every line's end. It divides
    after abbreviations ("Dr. X"); every character but white space is in exactly one sentence.
    """
    return [Span(*match.span()) for match in _SENTENCE.finditer(text)]
