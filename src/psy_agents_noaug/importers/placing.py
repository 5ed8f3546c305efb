"""Where the words of marks are in a document, in code points. Offsets are compared with the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from psy_agents_noaug.data.folding import fold
from psy_agents_noaug.data.offsets import OffsetStyle, OffsetUnit, cuts_words, to_code_points
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.validation import VISIBLE, Fault
from psy_agents_noaug.importers.documents import Document, Mark

UnitSetting = OffsetUnit | Literal["auto"]
_UNITS: tuple[OffsetUnit, ...] = get_args(OffsetUnit)


@dataclass(frozen=True)
class Placed:
    """Spans of a document's marks.

    Args:
        spans: of each mark of each review, sorted; none of a mark of the whole document.
        unit: in which the offsets are.
        n_checked: marks whose words were compared with the text.
        n_by_words: marks whose offsets fit in no unit, and whose words the text has once.
        n_cutting: marks without words in the file that cut a word.
        faults: marks that are nowhere.
    """

    spans: list[list[tuple[Span, ...]]]
    unit: OffsetUnit
    n_checked: int
    n_by_words: int
    n_cutting: int
    faults: list[Fault]


def place_marks(document: Document, setting: UnitSetting) -> Placed:
    """Find the spans of a document's marks, and the unit of its offsets.

    The unit is the first in which the text has the marks' words at their offsets: the tool's own, then
    the others. Where the file does not have the words, see `_unit_of_offsets`.

    Args:
        document: with offsets as the tool counts them.
        setting: the unit, or auto.
    """
    marks = [mark for review in document.reviews for mark in review.marks if mark.ranges]
    unit = document.unit if setting == "auto" else setting
    if setting == "auto" and marks:
        unit = _unit(document, marks)
    n_checked = n_by_words = n_cutting = 0
    faults: list[Fault] = []
    reviews: list[list[tuple[Span, ...]]] = []
    for review in document.reviews:
        reviews.append([])
        for mark in review.marks:
            spans = _spans(document.text, mark, unit)
            if mark.ranges and (spans is None or not _has_words(document.text, mark, spans)):
                spans = _by_words(document.text, mark)
                n_by_words += spans is not None
            n_checked += mark.quote is not None and bool(mark.ranges)
            if spans is None:
                faults.append(_fault(document, mark, unit))
            elif mark.quote is None:
                n_cutting += any(cuts_words(document.text, span) for span in spans)
            reviews[-1].append(spans or ())
    return Placed(reviews, unit, n_checked, n_by_words, n_cutting, faults)


def _unit(document: Document, marks: Sequence[Mark]) -> OffsetUnit:
    """Return the unit in which the marks of a document fit; of several the tool's own."""
    text, own = document.text, document.unit
    if text.isascii() and "\n" not in text:
        return own  # all units are one
    quoted = [mark for mark in marks if mark.quote is not None]
    if not quoted:
        return _unit_of_offsets(text, own, marks)
    counts = {}
    for unit in (own, *(unit for unit in _UNITS if unit != own)):
        placed = [(mark, _spans(text, mark, unit)) for mark in quoted]
        counts[unit] = sum(s is not None and _has_words(text, m, s) for m, s in placed)
        if counts[unit] == len(quoted):
            break
    return max(counts, key=lambda unit: counts[unit])


def _unit_of_offsets(text: str, own: OffsetUnit, marks: Sequence[Mark]) -> OffsetUnit:
    """Return the unit of offsets without words, by whether they are in the text and cut no word.

    A cut word may be meant. It speaks for another unit only where characters have two UTF-16 units.
    """
    doubtful: tuple[OffsetUnit, ...] = ("code_points", "utf16") if max(text) > "\uffff" else ()
    for unit in (own, *doubtful):
        if _fit(text, marks, unit, whole_words=True):
            return unit
    if _fit(text, marks, own):
        return own
    return next((unit for unit in _UNITS if _fit(text, marks, unit, whole_words=True)), own)


def _fit(text: str, marks: Sequence[Mark], unit: OffsetUnit, *, whole_words: bool = False) -> bool:
    """Whether all marks are in the text and, if wanted, cut no word."""
    placed = [_spans(text, mark, unit) for mark in marks]
    return all(
        spans is not None and not (whole_words and any(cuts_words(text, s) for s in spans))
        for spans in placed
    )


def _spans(text: str, mark: Mark, unit: OffsetUnit) -> tuple[Span, ...] | None:
    """Return the spans of a mark in code points; None if one is not in the text, or invisible."""
    if unit == "utf16" and (not text or max(text) <= "\uffff"):
        unit = "code_points"  # the same, and much faster
    spans = [to_code_points(text, start, end, OffsetStyle(unit)) for start, end in mark.ranges]
    found = [span for span in spans if span is not None]
    if len(found) < len(spans) or not all(
        VISIBLE.search(text, s.start_char, s.end_char) for s in found
    ):
        return None
    return tuple(dict.fromkeys(found))


def _has_words(text: str, mark: Mark, spans: Sequence[Span]) -> bool:
    """Whether the words in the file, if it has them, are those at the spans."""
    if mark.quote is None:
        return True
    words = " ".join(text[span.start_char : span.end_char] for span in spans)
    # Label Studio has written line ends as a backslash and an n.
    return fold(words) in (fold(mark.quote), fold(mark.quote.replace("\\n", "\n")))


def _by_words(text: str, mark: Mark) -> tuple[Span, ...] | None:
    """Return the place of a mark's words if the text has them exactly once."""
    if mark.quote is None or len(mark.ranges) > 1 or not mark.quote.strip():
        return None
    start = text.find(mark.quote)
    if start < 0 or text.find(mark.quote, start + 1) >= 0:
        return None
    return (Span(start, start + len(mark.quote)),)


def _fault(document: Document, mark: Mark, unit: OffsetUnit) -> Fault:
    ranges = ", ".join(f"{start}-{end}" for start, end in mark.ranges)
    if mark.quote is None:
        detail = f"{ranges}, but the text has {len(document.text):,} characters"
        return Fault(document.place, "must have spans inside of the text", detail)
    rule = "must have at the offsets of each span the words that the file has for it"
    return Fault(document.place, rule, f"{ranges} in {unit}")
