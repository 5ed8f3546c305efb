"""The documents of an export: their parts put together, each with its annotators and placed spans."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from psy_agents_noaug.data.validation import (
    MAX_ID_LENGTH,
    MAX_ID_WORDS,
    UNREADABLE,
    VISIBLE,
    Fault,
    quote_identifier,
)
from psy_agents_noaug.importers.documents import WHOLE_FILE, Document, Reading, Review
from psy_agents_noaug.importers.placing import Placed, UnitSetting, place_marks

MAX_CHARACTERS = 5_000_000  # of one document

_TASK = re.compile(r" \(task ")

Negatives = Literal["auto", "explicit", "none"]


@dataclass(frozen=True)
class Rules:
    """What the user says of the annotations.

    Args:
        unit: of the offsets, or auto.
        spans_imply_label: whether a span says that its criterion is met (by the map: not met); None: not
            said.
        empty: whether a document without labels was annotated, and is a negative; None: not said.
        negatives: whether what an annotator did not label becomes rows of status 0.
        annotators: whose annotations are read; None: everybody's.
        leaves_out_faulty: whether documents with faults are left out.
    """

    unit: UnitSetting = "auto"
    spans_imply_label: bool | None = None
    empty: Literal["negative", "leave_out"] | None = None
    negatives: Negatives = "auto"
    annotators: Sequence[str] | None = None
    leaves_out_faulty: bool = False


@dataclass
class Work:
    """What the steps share.

    Args:
        rules: of the user.
        reading: what was read; its lists of faults and of what is left grow.
        counts: of documents, annotations and so on, for the report.
        empty: places of annotations without a label; only the user can say what they mean.
        spans_without_label: places of spans of which only the user can say what they mean.
    """

    rules: Rules
    reading: Reading
    counts: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    spans_without_label: list[str] = field(default_factory=list)

    def questions(self) -> list[Fault]:
        """Return a fault for each question, with the number of cases."""
        faults = []
        if self.empty:
            rule = (
                "have no label, and the file does not say whether they were annotated: empty=negative "
                "if nothing applies to them, empty=leave_out if they may not have been annotated"
            )
            faults.append(_question(self.empty, "documents", rule))
        if self.spans_without_label:
            rule = (
                "have no label of their document: spans_imply_label=true if a span says that its "
                "criterion is met (or, by the map, not met), spans_imply_label=false if only a label of "
                "the document does"
            )
            faults.append(_question(self.spans_without_label, "spans", rule))
        return faults


def _question(places: Sequence[str], what: str, rule: str) -> Fault:
    return Fault(f"{len(places):,} {what} (the first: {places[0]})", rule)


def whole_documents(work: Work) -> list[tuple[Document, Placed]]:
    """Return the documents that become posts, each with the places of its spans.

    Those that nobody has annotated, that have no text, or that have faults are counted, or told.
    """
    return [
        checked
        for document in _whole(_merged(_identified(work), work), work)
        if (checked := _checked(document, work)) is not None
    ]


def _identified(work: Work) -> list[Document]:
    """Give each document an identifier: that of the tool, or a hash of its text."""
    found = []
    for document in work.reading.documents:
        identifier = document.document_id
        if identifier is None or not _is_identifier(identifier):
            reason = "no identifier" if identifier is None else "an identifier that is too long"
            work.counts[f"documents with {reason}, named by a hash of the text"] += 1
            digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()
            identifier = f"text-{digest[:16]}"
            if document.document_id in work.reading.unread:
                work.reading.unread.add(identifier)
        faults = work.reading.faults
        if document.group_id is not None and not _is_identifier(document.group_id):
            faults.append(Fault(document.place, "must have a group that is an identifier"))
        if not all(map(_is_identifier, _annotators(document.reviews))):
            faults.append(Fault(document.place, "must have annotators that are identifiers"))
        found.append(replace(document, document_id=identifier))
    return found


def _annotators(reviews: Iterable[Review]) -> list[str]:
    return [review.annotator_id for review in reviews if review.annotator_id is not None]


def _is_identifier(name: str) -> bool:
    is_short = len(name) <= MAX_ID_LENGTH and len(name.split()) <= MAX_ID_WORDS
    return is_short and name.isprintable() and bool(name.strip())


def _merged(documents: Sequence[Document], work: Work) -> list[list[Document]]:
    """Put the parts of one document together, which some tools write apart."""
    found: dict[str, list[Document]] = {}
    for document in documents:
        identifier = document.document_id or ""
        parts = found.setdefault(identifier, [])
        parts.append(document)
        if parts[0].text != document.text:
            rule = "must have an identifier that no document with another text has"
            detail = f"{quote_identifier(identifier)} is also at {parts[0].place}"
            work.reading.faults.append(Fault(document.place, rule, detail))
    if work.reading.has_versions:
        work.reading.faults += [
            fault for parts in found.values() for fault in _versions(parts, work)
        ]
    return [_of_one_group(parts, work) for parts in found.values()]


def _of_one_group(parts: Sequence[Document], work: Work) -> list[Document]:
    """Give the parts of a document the group that any of them has; two groups are a fault."""
    named = [part for part in parts if part.group_id is not None]
    for part in named:
        if part.group_id != named[0].group_id:
            rule = (
                "must have one author in all parts of a document; other documents need identifiers of "
                "their own (id=FIELD)"
            )
            detail = f"{quote_identifier(part.document_id or '')} has another at {named[0].place}"
            work.reading.faults.append(Fault(part.place, rule, detail))
    group_id = named[0].group_id if named else None
    return [replace(part, group_id=group_id) for part in parts]


def _versions(parts: Sequence[Document], work: Work) -> Iterator[Fault]:
    """Yield a fault for each annotator that is read and has several reviews of a document."""
    counts = Counter(review.annotator_id for part in parts for review in part.reviews)
    for annotator, number in counts.items():
        if number == 1 or annotator not in (work.rules.annotators or counts):
            continue
        if annotator is None:
            rule = "must say of each of several annotations whose it is"
            detail = f"{number} do not"
        else:
            rule = "must have one annotation of each annotator"
            detail = f"{quote_identifier(annotator)} has {number}"
        rule += "; annotators=[ID] and ground_truth_only=true choose which are read"
        yield Fault(parts[0].place, rule, detail)


def _whole(groups: Sequence[Sequence[Document]], work: Work) -> list[Document]:
    """Return the documents, each with one review of each annotator; without those that have faults."""
    bad = {place for fault in work.reading.faults for place in _places(fault)}
    found = []
    for parts in groups:
        work.counts["documents"] += 1
        is_unread = parts[0].document_id in work.reading.unread
        if is_unread or any(place in bad for part in parts for place in _records(part.place)):
            if work.rules.leaves_out_faulty:
                leave_out_faulty(parts[0], work)
            continue
        reviews: dict[str | None, Review] = {}
        for review in (review for part in parts for review in part.reviews):
            first = reviews.get(review.annotator_id)
            if first is not None:
                work.counts["annotations put together, of one document and annotator"] += 1
                marks = (*first.marks, *review.marks)
                is_finished = first.is_finished or review.is_finished
                says_all = first.says_all or review.says_all
                review = Review(review.annotator_id, marks, is_finished, says_all)
            reviews[review.annotator_id] = review
        found.append(replace(parts[0], reviews=tuple(reviews.values())))
    if work.rules.leaves_out_faulty:
        _leave_out_faults(groups, work)
    return found


def _leave_out_faults(groups: Sequence[Sequence[Document]], work: Work) -> None:
    """Count the faults of what is left out. Those that may be of any document stay.

    Where annotators are named, each document may be one of which another annotator's part is not known.
    """
    reading = work.reading
    faults, reading.faults = reading.faults, []
    reviews = (review for parts in groups for part in parts for review in part.reviews)
    are_named = any(review.annotator_id is not None for review in reviews)
    for fault in faults:
        if fault.place == WHOLE_FILE:
            reading.faults.append(fault)
        elif are_named and not reading.unknown.isdisjoint(_places(fault)):
            rule = f"{fault.rule}; faulty=leave_out needs to know of which document it is"
            reading.faults.append(replace(fault, rule=rule))
        else:
            reading.left.add(f"faults: {fault.rule}", fault.place)


def _records(place: str) -> list[str]:
    """Return the place of a document, and the record of which a reader says the task."""
    ends = [found.start() for found in _TASK.finditer(place)]
    return [place, *(place[:end] for end in ends)]


def _places(fault: Fault) -> tuple[str, str]:
    """Return the place of a fault, and the document of which it may be a line."""
    return fault.place, fault.place.rpartition(", line ")[0]


def leave_out_faulty(document: Document, work: Work) -> None:
    """Leave a document out as a whole: with a label less it would be wrong."""
    work.reading.left.add("documents with faults (faulty=leave_out)", document.place)


def _checked(document: Document, work: Work) -> tuple[Document, Placed] | None:
    """Return a document that becomes a post, with the spans of its marks; None if it does not."""
    left, place = work.reading.left, document.place
    faults = _text_faults(document)
    placed = None
    if not faults:
        if not VISIBLE.search(document.text):
            left.add("documents without text", place)
            return None
        reviews = _finished(_chosen(document, work), place, work)
        if not reviews:
            return None
        document = replace(document, reviews=reviews)
        placed = place_marks(document, work.rules.unit)
        faults = placed.faults
    if faults or placed is None:
        if work.rules.leaves_out_faulty:
            leave_out_faulty(document, work)
        else:
            work.reading.faults += faults
        return None
    return document, placed


def _text_faults(document: Document) -> list[Fault]:
    if len(document.text) > MAX_CHARACTERS:
        rule = f"must have a text of at most {MAX_CHARACTERS:,} characters"
        return [Fault(document.place, rule, f"{len(document.text):,}")]
    if UNREADABLE.search(document.text):
        rule = "must have a text without NUL and unpaired surrogates"
        return [Fault(document.place, rule)]
    return []


def _chosen(document: Document, work: Work) -> tuple[Review, ...]:
    """Return the reviews of the annotators that are read."""
    left, place = work.reading.left, document.place
    if not document.reviews:
        left.add("documents that nobody has annotated", place)
    annotators = work.rules.annotators
    if annotators is None:
        return document.reviews
    chosen = tuple(r for r in document.reviews if r.annotator_id in annotators)
    left.add("annotations of other annotators", place, len(document.reviews) - len(chosen))
    if document.reviews and not chosen:
        left.add("documents that none of `annotators` has annotated", place)
    return chosen


def _finished(reviews: Sequence[Review], place: str, work: Work) -> tuple[Review, ...]:
    """Return the reviews without those that may not have been done, as they hold nothing."""
    kept = []
    for review in reviews:
        if review.marks or review.is_finished or work.rules.empty == "negative":
            kept.append(review)
        elif work.rules.empty == "leave_out":
            work.reading.left.add("annotations without a label (empty=leave_out)", place)
        else:
            work.empty.append(place)
    return tuple(kept)
