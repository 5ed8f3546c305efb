"""From annotated documents to the rows of the three tables."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.validation import (
    MAX_ID_LENGTH,
    MAX_ID_WORDS,
    UNREADABLE,
    VISIBLE,
    Fault,
    quote_identifier,
)
from psy_agents_noaug.importers.documents import WHOLE_FILE, Document, Reading, Review
from psy_agents_noaug.importers.labels import LabelMap, shown_label
from psy_agents_noaug.importers.placing import OFFSETS_ALONE, Placed, UnitSetting, place_marks

MAX_CHARACTERS = 5_000_000  # of one document
ASKED_ALONE = (
    "annotations of the labels that were asked for alone (data.unannotated_pairs=drop takes no other "
    "for a negative)"
)

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


class Row(NamedTuple):
    """A row of the annotations."""

    post_id: str
    criterion_id: str
    status: int
    evidence_text: str | None
    start_char: int | None
    end_char: int | None
    annotator_id: str | None
    explanation: str | None


@dataclass
class Tables:
    """The tables, and counts for the report.

    Args:
        posts: post_id, text, group_id.
        rows: of the annotations.
        counts: how many documents, marks and so on there were.
        units: how many documents with spans have offsets in which unit, which may be several.
        annotators: how many documents each has annotated.
        labels: how many marks each label has for each criterion.
        labels_left_out: how many marks each label has that the map leaves out.
    """

    posts: list[tuple[str, str, str | None]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)
    annotators: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    labels_left_out: Counter[str] = field(default_factory=Counter)


@dataclass
class _Said:
    """What an annotator said of one criterion in a document."""

    met: list[tuple[Span, str | None]] = field(default_factory=list)
    not_met: list[tuple[Span, str | None]] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)


@dataclass
class _Heard:
    """What an annotator said of a document, by criterion, and what counts if the document is kept.

    Args:
        document: that is annotated.
        review: of the annotator.
        criteria: what is said of each.
        labels: how many marks say what of which criterion: label and criterion.
        labels_left_out: how many marks the map leaves out, or does not know.
        left: reasons for which properties of marks are left out.
        n_absent: labels of absence that do not apply.
    """

    document: Document
    review: Review
    criteria: dict[str, _Said] = field(default_factory=dict)
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    labels_left_out: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    n_absent: int = 0


@dataclass
class _Work:
    """What the steps share: the rules, what was read, the tables, and what only the user can answer."""

    rules: Rules
    reading: Reading
    tables: Tables
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


def make_tables(
    reading: Reading,
    *,
    labels: LabelMap,
    rules: Rules,
    criteria: Sequence[Criterion],
    keeps_criteria: bool,
) -> tuple[Tables, list[Criterion]]:
    """Verify, map and count what a reader found. Faults are added to the reading.

    Args:
        reading: whose lists of faults and of what is left grow.
        labels: finds the criteria of the marks.
        rules: of the user.
        criteria: that labels may stand for.
        keeps_criteria: whether criteria that no label stands for are kept.

    Returns:
        The tables, and their criteria.
    """
    work = _Work(rules, reading, Tables())
    kept = [
        checked
        for document in _whole(_merged(_identified(work), work), work)
        if (checked := _checked(document, work)) is not None
    ]
    heard = [
        _heard(document, review, spans, labels)
        for document, placed in kept
        for review, spans in zip(document.reviews, placed.spans, strict=True)
    ]
    contradicting = _contradicting(heard, labels, work)
    kept = [(document, placed) for document, placed in kept if document.place not in contradicting]
    heard = [own for own in heard if own.document.place not in contradicting]
    _count(kept, heard, work)
    found = {criterion_id for own in heard for criterion_id in own.criteria}
    found |= labels.mapped_criteria()
    used = [c for c in criteria if keeps_criteria or c.criterion_id in found]
    writes_negatives = rules.negatives == "explicit" or (
        rules.negatives == "auto" and any(len(document.reviews) > 1 for document, _ in kept)
    )
    tables = work.tables
    for own in heard:
        document, review = own.document, own.review
        rows = _rows(document, review, own.criteria, work)
        if writes_negatives and review.says_all:
            labelled = {row.criterion_id for row in rows}
            others = [c.criterion_id for c in used if c.criterion_id not in labelled]
            rows += [_row(document, review, criterion_id, 0) for criterion_id in others]
            tables.counts["rows of status 0 for what an annotator did not label"] += len(others)
        tables.counts[ASKED_ALONE] += not review.says_all
        tables.counts["labels that an annotator gave twice"] += len(rows) - len(set(rows))
        tables.rows += dict.fromkeys(rows)
        tables.annotators[review.annotator_id or ""] += 1
    for document, _ in kept:
        tables.posts.append((document.document_id or "", document.text, document.group_id))
    reading.faults += work.questions()
    return tables, used


# --------------------------------------------------------------------------------------- documents


def _identified(work: _Work) -> list[Document]:
    """Give each document an identifier: that of the tool, or a hash of its text."""
    found = []
    for document in work.reading.documents:
        identifier = document.document_id
        if identifier is None or not _is_identifier(identifier):
            reason = "no identifier" if identifier is None else "an identifier that is too long"
            work.tables.counts[f"documents with {reason}, named by a hash of the text"] += 1
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


def _merged(documents: Sequence[Document], work: _Work) -> list[list[Document]]:
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


def _of_one_group(parts: Sequence[Document], work: _Work) -> list[Document]:
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


def _versions(parts: Sequence[Document], work: _Work) -> Iterator[Fault]:
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


def _whole(groups: Sequence[Sequence[Document]], work: _Work) -> list[Document]:
    """Return the documents, each with one review of each annotator; without those that have faults."""
    bad = {place for fault in work.reading.faults for place in _places(fault)}
    found = []
    for parts in groups:
        work.tables.counts["documents"] += 1
        is_unread = parts[0].document_id in work.reading.unread
        if is_unread or any(place in bad for part in parts for place in _records(part.place)):
            if work.rules.leaves_out_faulty:
                _leave_out_faulty(parts[0], work)
            continue
        reviews: dict[str | None, Review] = {}
        for review in (review for part in parts for review in part.reviews):
            first = reviews.get(review.annotator_id)
            if first is not None:
                work.tables.counts["annotations put together, of one document and annotator"] += 1
                marks = (*first.marks, *review.marks)
                is_finished = first.is_finished or review.is_finished
                says_all = first.says_all or review.says_all
                review = Review(review.annotator_id, marks, is_finished, says_all)
            reviews[review.annotator_id] = review
        found.append(replace(parts[0], reviews=tuple(reviews.values())))
    if work.rules.leaves_out_faulty:
        _leave_out_faults(groups, work)
    return found


def _leave_out_faults(groups: Sequence[Sequence[Document]], work: _Work) -> None:
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


def _leave_out_faulty(document: Document, work: _Work) -> None:
    """Leave a document out as a whole: with a label less it would be wrong."""
    work.reading.left.add("documents with faults (faulty=leave_out)", document.place)


def _checked(document: Document, work: _Work) -> tuple[Document, Placed] | None:
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
            _leave_out_faulty(document, work)
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


def _chosen(document: Document, work: _Work) -> tuple[Review, ...]:
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


def _finished(reviews: Sequence[Review], place: str, work: _Work) -> tuple[Review, ...]:
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


# ---------------------------------------------------------------------------------------------- rows


def _count(kept: Sequence[tuple[Document, Placed]], heard: Sequence[_Heard], work: _Work) -> None:
    """Count the spans, labels and what is left of the documents that are kept."""
    tables = work.tables
    for _, placed in kept:
        tables.units.update(placed.units)
        tables.counts["spans compared with their words"] += placed.n_checked
        tables.counts["spans found by their words, as their offsets are wrong"] += placed.n_by_words
        tables.counts["spans that cut a word"] += placed.n_cutting
        tables.counts[OFFSETS_ALONE] += placed.n_offsets_alone
    for own in heard:
        for (label, criterion_id), number in own.labels.items():
            tables.labels.setdefault(label, Counter())[criterion_id] += number
        for reason, number in own.left.items():
            work.reading.left.add(reason, own.document.place, number)
        tables.labels_left_out += own.labels_left_out
        tables.counts["labels of absence that do not apply, which say nothing"] += own.n_absent


def _heard(
    document: Document, review: Review, spans: Sequence[tuple[Span, ...]], labels: LabelMap
) -> _Heard:
    """Return what an annotator said of a document."""
    heard = _Heard(document, review)
    targets = [labels.target(mark) for mark in review.marks]
    marks = list(zip(review.marks, targets, spans, strict=True))
    kept = {(mark.ranges, mark.label) for mark, target, _ in marks if target is not None}
    for mark, target, found in marks:
        if target is None:
            heard.labels_left_out[mark.label] += 1
            continue
        for attribute in mark.attributes:
            name, _, value = attribute.partition("=")
            if not labels.reads_attribute(mark, attribute) and (mark.ranges, value) not in kept:
                reason = f"attribute {name} of a label (LABEL[{name}] in the map reads it)"
                heard.left[reason] += 1
        if not mark.is_met and target.status == 0:
            heard.n_absent += 1
            continue
        status = target.status if mark.is_met else 0
        own = heard.criteria.setdefault(target.criterion_id, _Said())
        heard.labels[mark.label, target.criterion_id] += 1
        if not mark.ranges:
            own.statuses.add(status)
        else:
            pieces = own.met if status else own.not_met
            pieces += [(span, mark.note) for span in found]
    return heard


def _contradicting(heard: Sequence[_Heard], labels: LabelMap, work: _Work) -> set[str]:
    """Return the places of documents in which one annotator says of a criterion both yes and no."""
    found = set()
    for one in heard:
        document, review = one.document, one.review
        rule = "must not have a criterion both met and not met by one annotator"
        faults = [
            Fault(document.place, rule, criterion_id)
            for criterion_id, own in one.criteria.items()
            if len(own.statuses | {1} if _says_status(own.met, work) else own.statuses) > 1
            or {span for span, _ in own.met} & {span for span, _ in own.not_met}
        ]
        rule = "must not have a span with several attributes that the map gives different meanings"
        faults += [
            Fault(document.place, rule, ", ".join(map(shown_label, entries)))
            for mark in review.marks
            if (entries := labels.differing(mark))
        ]
        if faults and work.rules.leaves_out_faulty:
            if document.place not in found:
                _leave_out_faulty(document, work)
        else:
            work.reading.faults += faults
        found |= {fault.place for fault in faults}
    return found


def _says_status(spans: Sequence[tuple[Span, str | None]], work: _Work) -> bool:
    """Whether spans say what the status of their criterion is."""
    return bool(spans) and work.rules.spans_imply_label is True


def _rows(document: Document, review: Review, said: Mapping[str, _Said], work: _Work) -> list[Row]:
    rows: list[Row] = []
    for criterion_id, own in said.items():
        # A span of what is not met may stand beside the label met: it is a hard negative.
        labelled = {0: bool(own.statuses), 1: 1 in own.statuses}
        for status, spans in ((0, own.not_met), (1, own.met)):
            if labelled[status] or _says_status(spans, work):
                rows += [_row(document, review, criterion_id, status, s, note) for s, note in spans]
            elif work.rules.spans_imply_label is None:
                work.spans_without_label += [document.place] * len(spans)
            else:
                reason = "spans without a label of their document (spans_imply_label=false)"
                work.reading.left.add(reason, document.place, len(spans))
        if 1 in own.statuses and not own.met:
            rows.append(_row(document, review, criterion_id, 1))
        if 0 in own.statuses:
            rows.append(_row(document, review, criterion_id, 0))
    return rows


def _row(
    document: Document,
    review: Review,
    criterion_id: str,
    status: int,
    span: Span | None = None,
    note: str | None = None,
) -> Row:
    return Row(
        document.document_id or "",
        criterion_id,
        status,
        document.text[span.start_char : span.end_char] if span else None,
        span.start_char if span else None,
        span.end_char if span else None,
        review.annotator_id,
        note,
    )
