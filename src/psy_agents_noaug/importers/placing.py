"""Where the words of marks are in a document, in code points. Offsets are compared with the text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from psy_agents_noaug.data.folding import fold
from psy_agents_noaug.data.offsets import OffsetStyle, OffsetUnit, cuts_words, to_code_points
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.validation import VISIBLE, Fault, quote_identifier
from psy_agents_noaug.importers.documents import Document, Mark, Review

UnitSetting = OffsetUnit | Literal["auto"]
OFFSETS_ALONE = (
    "annotations without words at their offsets, which are other words in another unit "
    "(offset_unit fixes it)"
)
_UNITS: tuple[OffsetUnit, ...] = get_args(OffsetUnit)


@dataclass(frozen=True)
class Placed:
    """Spans of a document's marks.

    Args:
        spans: of each mark of each review, sorted; none of a mark of the whole document.
        units: in which the offsets of the reviews are, each once.
        n_checked: marks whose words were compared with the text.
        n_by_words: marks whose offsets fit in no unit, and whose words the text has once.
        n_cutting: marks without words in the file that cut a word.
        n_offsets_alone: reviews without words, whose marks are elsewhere in another unit that was not
            taken.
        faults: marks that are nowhere, and reviews whose unit cannot be told.
    """

    spans: list[list[tuple[Span, ...]]]
    units: tuple[OffsetUnit, ...]
    n_checked: int
    n_by_words: int
    n_cutting: int
    n_offsets_alone: int
    faults: list[Fault]


def place_marks(document: Document, setting: UnitSetting) -> Placed:
    """Find the spans of a document's marks, and the unit of the offsets of each review.

    The unit is the first in which the text has the marks' words at their offsets: the tool's own, then
    the others. Where the file does not have the words, see `_unit_of_offsets` and `_unit_of_model`.

    Args:
        document: with offsets as the tool counts them.
        setting: the unit of marks without words, tried first for those with words; or auto.
    """
    n_checked = n_by_words = n_cutting = n_offsets_alone = 0
    faults: list[Fault] = []
    reviews: list[list[tuple[Span, ...]]] = []
    used: dict[OffsetUnit, None] = {}
    for review, unit in zip(document.reviews, _units(document, setting), strict=True):
        reviews.append([])
        if unit is None:
            faults.append(_doubt(document, review))
            continue
        if setting == "auto":
            n_offsets_alone += bool(_open_units(document.text, unit, review))
        for mark in review.marks:
            own, spans = _place(document.text, mark, unit, setting)
            if mark.ranges:
                used[own] = None
            if mark.ranges and (spans is None or not _has_words(document.text, mark, spans)):
                spans = _by_words(document.text, mark)
                n_by_words += spans is not None
            n_checked += mark.quote is not None and bool(mark.ranges)
            if spans is None:
                faults.append(_fault(document, mark, own))
            elif mark.quote is None:
                n_cutting += any(cuts_words(document.text, span) for span in spans)
            reviews[-1].append(spans or ())
    return Placed(reviews, tuple(used), n_checked, n_by_words, n_cutting, n_offsets_alone, faults)


def _place(
    text: str, mark: Mark, unit: OffsetUnit, setting: UnitSetting
) -> tuple[OffsetUnit, tuple[Span, ...] | None]:
    """Return the unit of a mark, and its spans: in the unit of the setting unless words deny it."""
    if setting != "auto":
        spans = _spans(text, mark, setting)
        is_there = spans is not None and _has_words(text, mark, spans)
        if mark.quote is None or is_there:
            return setting, spans
    return unit, _spans(text, mark, unit)


# --------------------------------------------------------------------------------------------- units


def _ranged(review: Review) -> list[Mark]:
    return [mark for mark in review.marks if mark.ranges]


def _with_words(review: Review) -> list[Mark]:
    return [mark for mark in _ranged(review) if mark.quote is not None]


def _without_words(review: Review) -> list[Mark]:
    return [mark for mark in _ranged(review) if mark.quote is None]


def _units(document: Document, setting: UnitSetting) -> list[OffsetUnit | None]:
    """Return the unit of each review; None: it cannot be told.

    Annotators count as their tool does, unless words or offsets deny it. A model does not.
    """
    text, reviews = document.text, document.reviews
    own = document.unit if setting == "auto" else setting
    if text.isascii() and "\n" not in text:
        return [own] * len(reviews)  # all units are one
    by_words = [_unit_of_words(text, own, review) for review in reviews]
    if setting != "auto":
        return [unit or own for unit in by_words]
    of_people = Counter(
        unit for unit, r in zip(by_words, reviews, strict=True) if unit and not r.is_of_model
    )
    of_tool = max(of_people, key=lambda unit: of_people[unit], default=own)
    people = [
        _ranged(review)
        for unit, review in zip(by_words, reviews, strict=True)
        if unit is None and not review.is_of_model
    ]
    shared = _unit_of_people(text, of_tool, people)
    found: list[OffsetUnit | None] = []
    for unit, review in zip(by_words, reviews, strict=True):
        if unit is not None:
            found.append(_unit_of_rest(text, unit, review))
        elif review.is_of_model:
            found.append(_unit_of_model(text, own, _ranged(review), _plausible(text)))
        else:
            found.append(shared)
    return found


def _unit_of_words(text: str, own: OffsetUnit, review: Review) -> OffsetUnit | None:
    """Return the unit in which most words of a review are at their offsets; None: it has no words."""
    quoted = _with_words(review)
    if not quoted:
        return None
    counts = {}
    for unit in (own, *(unit for unit in _UNITS if unit != own)):
        counts[unit] = _n_there(text, quoted, unit)
        if counts[unit] == len(quoted):
            break
    return max(counts, key=lambda unit: counts[unit])


def _n_there(text: str, quoted: Sequence[Mark], unit: OffsetUnit) -> int:
    placed = [(mark, _spans(text, mark, unit)) for mark in quoted]
    return sum(s is not None and _has_words(text, mark, s) for mark, s in placed)


def _unit_of_rest(text: str, unit: OffsetUnit, review: Review) -> OffsetUnit | None:
    """Return the unit of a review with words: if they fit in several, its marks without words tell."""
    units = _open_units(text, unit, review)
    if not units:
        return unit
    rest = _without_words(review)
    if review.is_of_model:
        return _unit_of_model(text, unit, rest, units)
    found = _unit_of_offsets(text, unit, rest)
    return found if found in units else unit


def _open_units(text: str, unit: OffsetUnit, review: Review) -> list[OffsetUnit]:
    """Return the plausible units in which a review's words fit as well as in its own, if it matters.

    It does not if there are no marks without words, or if they are at the same places in all of them.
    """
    rest, quoted = _without_words(review), _with_words(review)
    if not _is_doubtful(text, rest, _plausible(text)):
        return []
    most = _n_there(text, quoted, unit)
    units = [u for u in _plausible(text) if _n_there(text, quoted, u) >= most]
    return units if _is_doubtful(text, rest, units) else []


def _unit_of_people(
    text: str, own: OffsetUnit, reviews: Sequence[Sequence[Mark]]
) -> OffsetUnit | None:
    """Return the one unit of annotators without words, by `_unit_of_offsets`; None if they differ."""
    marks = [mark for review in reviews for mark in review]
    shared = _unit_of_offsets(text, own, marks)
    if len(reviews) < 2 or _fit(text, marks, shared, whole_words=True):
        return shared
    units = {_unit_of_offsets(text, own, review) for review in reviews}
    is_told = len(units) == 1 or not _is_doubtful(text, marks, _plausible(text))
    return shared if is_told else None


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


def _unit_of_model(
    text: str, own: OffsetUnit, marks: Sequence[Mark], units: Sequence[OffsetUnit]
) -> OffsetUnit | None:
    """Return the unit in which a model's offsets fit; None: they do in several, at other places.

    Args:
        text: of the document.
        own: the unit of the tool.
        marks: of the model, without words.
        units: in which the model may count.
    """
    if not _is_doubtful(text, marks, units):
        return _unit_of_offsets(text, own, marks)
    for whole_words in (True, False):
        fitting = [u for u in units if _fit(text, marks, u, whole_words=whole_words)]
        if fitting:
            return None if _is_doubtful(text, marks, fitting) else fitting[0]
    return own  # the marks are faults


def _plausible(text: str) -> list[OffsetUnit]:
    """Return the units in which programs may count the characters of a text, if they differ in it."""
    found: list[OffsetUnit] = ["code_points"]
    if text and max(text) > "\uffff":
        found.append("utf16")
    if "\r\n" in text:
        found.append("lf")
    return found


def _is_doubtful(text: str, marks: Sequence[Mark], units: Sequence[OffsetUnit]) -> bool:
    """Whether a mark is not at the same place in all of the units."""
    return len(units) > 1 and any(
        len({_spans(text, mark, unit) for unit in units}) > 1 for mark in marks
    )


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


def _doubt(document: Document, review: Review) -> Fault:
    units = " or ".join(f"offset_unit={unit}" for unit in _plausible(document.text))
    rule = (
        "must have offsets whose unit can be told: the file does not have the words of these spans, and "
        f"they are others in another unit; {units} says which"
    )
    annotator = review.annotator_id
    detail = "" if annotator is None else f"of {quote_identifier(annotator)}"
    return Fault(document.place, rule, detail)
