"""Offsets as other tools count them, to and from code points.

Python counts code points. JavaScript, Java and most annotation tools of the web count UTF-16 units (an
emoji is two), others bytes of UTF-8, or the characters of a text whose line ends were changed.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, product
from typing import Literal, get_args

from psy_agents_noaug.data.folding import fold, fold_with_offsets
from psy_agents_noaug.data.span import Span

OffsetUnit = Literal["code_points", "utf16", "utf8_bytes", "lf", "crlf"]


@dataclass(frozen=True, slots=True)
class OffsetStyle:
    """How the corpus counts its offsets.

    Attributes:
        unit: code_points; utf16 units; utf8_bytes; lf or crlf: code points of the post with these line
            ends instead of its own.
        inclusive_ends: `end_char` is the last character of the evidence, not the one after it.
    """

    unit: OffsetUnit = "code_points"
    inclusive_ends: bool = False

    def settings(self, *, current: "OffsetStyle") -> str:
        """Return the settings that must change to choose this style."""
        unit = f"data.offset_unit={self.unit}"
        ends = f"data.inclusive_ends={str(self.inclusive_ends).lower()}"
        changed = (self.unit != current.unit, self.inclusive_ends != current.inclusive_ends)
        return " ".join(compress((unit, ends), changed))


CODE_POINTS = OffsetStyle()
# The simplest first: of styles that fit equally well the first is suggested.
_STYLES = [
    OffsetStyle(unit, inclusive) for inclusive, unit in product((False, True), get_args(OffsetUnit))
]


@dataclass(frozen=True, slots=True)
class GivenSpan:
    """A span as the file gives it; `evidence_text` is None if the file gives offsets alone."""

    text: str
    start: int
    end: int
    evidence_text: str | None


def to_code_points(text: str, start: int, end: int, style: OffsetStyle) -> Span | None:
    """Return a span in code points, None if an end is beyond the text or inside a character."""
    if style.unit == "code_points":
        span = Span(start, end + style.inclusive_ends)
        return span if 0 <= start < span.end_char <= len(text) else None
    positions = _positions(text, style.unit)
    first = bisect_left(positions, start)
    # An inclusive end is the first unit of the last character, or any of its bytes.
    last = bisect_left(positions, end + 1) if style.inclusive_ends else bisect_left(positions, end)
    if not 0 <= first < last < len(positions) or positions[first] != start:
        return None
    if not style.inclusive_ends and positions[last] != end:
        return None
    return Span(first, last)


def from_code_points(text: str, span: Span, style: OffsetStyle) -> tuple[int, int]:
    """Return the offsets that `to_code_points` reads as `span`."""
    positions = _positions(text, style.unit)
    return positions[span.start_char], positions[span.end_char] - style.inclusive_ends


def suggest_style(
    spans: Sequence[GivenSpan], *, current: OffsetStyle
) -> tuple[OffsetStyle, int] | None:
    """Return the style that mends most of the doubtful spans, and how many it mends.

    A span is mended if it is the evidence text, or, where there is none, if neither end cuts a word.

    Args:
        spans: doubtful spans; those of one post should be neighbours, for speed.
        current: the style by which they are doubtful.

    Returns:
        None if no other style mends more than half of them.
    """
    counts = dict.fromkeys((style for style in _STYLES if style != current), 0)
    for given in spans:
        for style in counts:
            span = to_code_points(given.text, given.start, given.end, style)
            counts[style] += span is not None and _is_plausible(given, span)
    best = max(counts, key=lambda style: counts[style])
    return (best, counts[best]) if counts[best] * 2 > len(spans) else None


def cuts_words(text: str, span: Span) -> bool:
    """Return whether one of the ends of a span lies inside a word."""
    folded = fold_with_offsets(text)
    return folded.cuts_word(span.start_char) or folded.cuts_word(span.end_char)


def _is_plausible(given: GivenSpan, span: Span) -> bool:
    if given.evidence_text is None:
        return not cuts_words(given.text, span)
    return fold(given.text[span.start_char : span.end_char]) == fold(given.evidence_text)


def _positions(text: str, unit: OffsetUnit) -> list[int]:
    """Return where each code point begins in `unit`, and where the text ends, [characters + 1]."""
    return list(accumulate(map(_WIDTH[unit], " " + text, text, text[1:] + " "), initial=0))


# The width of a character, given the one before it, itself, and the one after it.
_WIDTH: dict[OffsetUnit, Callable[[str, str, str], int]] = {
    "code_points": lambda before, character, after: 1,
    "utf16": lambda before, character, after: 1 + (character > "\uffff"),
    "utf8_bytes": lambda before, character, after: len(character.encode()),
    "lf": lambda before, character, after: int((character, after) != ("\r", "\n")),
    "crlf": lambda before, character, after: 1 + (character == "\n" and before != "\r"),
}
