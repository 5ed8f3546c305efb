"""Folding: what differs between two copies of a text without changing its words.

Folded are case, white space, typographic quotes, dashes and ellipses, canonically equivalent characters
(NFC, NFD), zero-width characters, and HTML entities, also those that were escaped twice.
"""

import html
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from html.entities import html5

import regex

from psy_agents_noaug.data.span import Span
from psy_agents_noaug.utils.words import word_borders

_TO_ASCII = (
    dict.fromkeys("‘’‚‛′", "'")
    | dict.fromkeys("“”„‟″«»", '"')
    | dict.fromkeys("‐‑‒–—―−", "-")
    | {"…": "..."}
)
_TYPOGRAPHIC = re.compile(f"[{''.join(_TO_ASCII)}]")  # ten times as fast as str.translate
# Zero-width space, non-joiner and joiner, word joiner, byte order mark, soft hyphen.
_ZERO_WIDTH = re.compile("[\u200b\u200c\u200d\u2060\ufeff\u00ad]")
_ENTITY = re.compile(
    "&(?:amp;)*(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"  # &amp;lt; is <
)
_CLUSTER = regex.compile(r"\X")


@dataclass(frozen=True)
class FoldedText:
    """A folded text; its character i comes from `starts[i]:ends[i]` of the original."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    @cached_property
    def borders(self) -> bytearray:
        """Whether each position of `text` is a word border, see `word_borders`."""
        return word_borders(self.text)

    def cuts_word(self, position: int) -> bool:
        """Return whether a position of the original lies inside a word."""
        index = bisect_left(self.starts, position)
        if index > 0 and self.ends[index - 1] > position:
            return True  # inside a character that is written as several, such as &amp;
        return not self.borders[index]

    def original(self, start: int, end: int) -> Span:
        """Return the range of the original behind a range of `text` that is not empty."""
        return Span(self.starts[start], self.ends[end - 1])

    def splits_character(self, start: int, end: int) -> bool:
        """Return whether a range of `text` begins or ends inside one character, such as ß or …"""
        begins = start == 0 or self.starts[start - 1] != self.starts[start]
        stops = end == len(self.text) or self.starts[end] != self.starts[end - 1]
        return not (begins and stops)


def fold(text: str) -> str:
    """Return `text` folded, with single spaces between words and none around them."""
    decoded = _ENTITY.sub(_decode, text) if "&" in text else text
    return " ".join(_fold(_ZERO_WIDTH.sub("", decoded)).split())


@lru_cache(maxsize=1)  # the annotations of a post are aligned one after the other
def fold_with_offsets(text: str) -> FoldedText:
    """Fold like `fold`, without stripping, and record the original range of each character."""
    characters, starts, ends = _visible(text)
    folded: list[str] = []
    folded_starts: list[int] = []
    folded_ends: list[int] = []
    for cluster in _CLUSTER.finditer(characters):
        start, end = starts[cluster.start()], ends[cluster.end() - 1]
        for character in _fold(cluster.group()):
            if character.isspace():
                if folded and folded[-1] == " ":
                    continue
                character = " "
            folded.append(character)
            folded_starts.append(start)
            folded_ends.append(end)
    return FoldedText("".join(folded), folded_starts, folded_ends)


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    # Canonical caseless matching, Unicode 3.13: decompose before the case is folded.
    ascii_marks = _TYPOGRAPHIC.sub(lambda mark: _TO_ASCII[mark.group()], text)
    decomposed = unicodedata.normalize("NFD", ascii_marks)
    return unicodedata.normalize("NFC", decomposed.casefold())


def _visible(text: str) -> tuple[str, list[int], list[int]]:
    """Return the characters without entities and zero-width ones, and the original range of each."""
    if "&" not in text and text.isascii():
        return text, list(range(len(text))), list(range(1, len(text) + 1))
    kept = [
        (character, start, end)
        for decoded, start, end in _decoded(text)
        for character in _ZERO_WIDTH.sub("", decoded)
    ]
    return (
        "".join(character for character, _, _ in kept),
        [start for _, start, _ in kept],
        [end for _, _, end in kept],
    )


def _decoded(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield each character, or what an entity stands for, with its range."""
    position = 0
    for entity in _ENTITY.finditer(text):
        if (decoded := _decode(entity)) != entity.group():
            yield from ((text[i], i, i + 1) for i in range(position, entity.start()))
            yield decoded, *entity.span()
            position = entity.end()
    yield from ((text[i], i, i + 1) for i in range(position, len(text)))


def _decode(entity: re.Match[str]) -> str:
    """Return what an entity stands for; what only looks like one is left as it is."""
    name = f"{entity.group(1)};"
    return html.unescape(f"&{name}") if name[0] == "#" or name in html5 else entity.group()
