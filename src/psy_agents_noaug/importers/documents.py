"""What every reader returns: annotated documents as the tool has them, and what was left of the file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from psy_agents_noaug.data.offsets import OffsetUnit
from psy_agents_noaug.data.validation import Fault

MAX_PLACES_LISTED = 20
WHOLE_FILE = "the file"  # place of a fault that is of no single document


@dataclass(frozen=True, slots=True)
class Mark:
    """A label that an annotator gave to a document or to words of it.

    Args:
        label: its name in the tool.
        ranges: start and end of the words, half-open, in the document's unit; several if the span is
            discontinuous; none if the label is of the whole document.
        quote: the words as the file has them, those of several ranges joined by spaces; None: not there.
        field: the control, layer or feature that the label belongs to; "" where the tool has none.
        is_met: False: the annotator said that the label does not apply.
        attributes: further properties of the span, as NAME or NAME=VALUE.
        note: what the annotator wrote about it.
    """

    label: str
    ranges: tuple[tuple[int, int], ...] = ()
    quote: str | None = None
    field: str = ""
    is_met: bool = True
    attributes: tuple[str, ...] = ()
    note: str | None = None


def marks_of_features(
    layer: str,
    ranges: tuple[tuple[int, int], ...],
    labels: Sequence[tuple[str, str]],
    properties: Sequence[tuple[str, str]],
) -> Iterator[Mark]:
    """Yield a mark for each label of an annotation, or one that is named by its layer if it has none.

    Args:
        layer: its short name.
        ranges: of the span; none: the annotation is of the whole document.
        labels: features with their values, of which each may be a label, or an attribute of the others.
        properties: features with values that are no labels, such as true and false.
    """
    said = (*labels, *properties)
    if not labels:
        yield Mark(layer, ranges, field=layer, attributes=_attributes(said))
    for feature, value in labels:
        others = [(name, own) for name, own in said if name != feature]
        yield Mark(value, ranges, field=f"{layer}.{feature}", attributes=_attributes(others))


def _attributes(said: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in said)


@dataclass(frozen=True, slots=True)
class Review:
    """What one annotator said of a document.

    Args:
        annotator_id: as the tool has it; None: it does not say.
        marks: in the order of the file.
        is_finished: True: the annotator submitted it, so that what has no label was not labelled; None:
            the tool does not say whether a document without labels was annotated.
        says_all: False: the annotator was asked for these labels alone, and said nothing of others.
        is_of_model: whether a program made the offsets, which may not count as the tool does.
    """

    annotator_id: str | None
    marks: tuple[Mark, ...]
    is_finished: bool | None = None
    says_all: bool = True
    is_of_model: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A text with the reviews of its annotators.

    Args:
        place: in the file, for messages.
        text: exactly as the tool has it.
        reviews: none: nobody has annotated the document.
        document_id: of the tool; None: it has none.
        group_id: the author, where the file has it.
        unit: in which the tool counts offsets.
    """

    place: str
    text: str
    reviews: tuple[Review, ...]
    document_id: str | None = None
    group_id: str | None = None
    unit: OffsetUnit = "code_points"


@dataclass
class Left:
    """What was not taken over, by reason."""

    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, place: str, times: int = 1) -> None:
        """Count something that is left out at a place."""
        if times:
            self.places.setdefault(reason, []).extend([place] * times)

    def update(self, other: "Left") -> None:
        """Add what another reader left."""
        for reason, places in other.places.items():
            self.places.setdefault(reason, []).extend(places)

    def counts(self) -> dict[str, int]:
        """Return how often each reason occurred."""
        return {reason: len(places) for reason, places in self.places.items()}

    def to_json(self) -> dict[str, Any]:
        """Return plain containers: of each reason the number and the first places."""
        return {
            reason: {
                "n": len(places),
                "places": list(dict.fromkeys(places))[:MAX_PLACES_LISTED],
            }
            for reason, places in self.places.items()
        }


@dataclass
class Reading:
    """What a reader found.

    Args:
        documents: in the order of the file.
        faults: what cannot be read.
        left: what the tables have no place for.
        notes: what a user should know of how the file was read.
        has_versions: whether several reviews of a document by one annotator are versions, of which one
            counts, not parts.
        unread: identifiers of documents of which an annotator's part could not be read.
        unknown: places of parts that could not be read, and of which the document is not known.
    """

    documents: list[Document] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    left: Left = field(default_factory=Left)
    notes: list[str] = field(default_factory=list)
    has_versions: bool = False
    unread: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    def cannot_read(self, place: str, document_id: str | None) -> None:
        """Say that a part of a document has faults, and becomes none of `documents`.

        Args:
            place: of the part.
            document_id: which other parts of the document have; None: not known.
        """
        if document_id is None:
            self.unknown.add(place)
        else:
            self.unread.add(document_id)
