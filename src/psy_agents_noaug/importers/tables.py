"""From annotated documents to the rows of the three tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.validation import Fault
from psy_agents_noaug.importers.documents import Document, Reading, Review
from psy_agents_noaug.importers.labels import LabelMap, shown_label
from psy_agents_noaug.importers.placing import OFFSETS_ALONE, Placed
from psy_agents_noaug.importers.whole import Rules, Work, leave_out_faulty, whole_documents

ASKED_ALONE = (
    "annotations of the labels that were asked for alone (data.unannotated_pairs=drop takes no other "
    "for a negative)"
)


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
    work = Work(rules, reading)
    kept = whole_documents(work)
    heard = [
        _heard(document, review, spans, labels)
        for document, placed in kept
        for review, spans in zip(document.reviews, placed.spans, strict=True)
    ]
    contradicting = _contradicting(heard, labels, work)
    kept = [(document, placed) for document, placed in kept if document.place not in contradicting]
    heard = [own for own in heard if own.document.place not in contradicting]
    found = {criterion_id for own in heard for criterion_id in own.criteria}
    found |= labels.mapped_criteria()
    used = [c for c in criteria if keeps_criteria or c.criterion_id in found]
    writes_negatives = rules.negatives == "explicit" or (
        rules.negatives == "auto" and any(len(document.reviews) > 1 for document, _ in kept)
    )
    tables = Tables(counts=work.counts)
    _count(kept, heard, tables, reading)
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


def _count(
    kept: Sequence[tuple[Document, Placed]],
    heard: Sequence[_Heard],
    tables: Tables,
    reading: Reading,
) -> None:
    """Count the spans, labels and what is left of the documents that are kept."""
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
            reading.left.add(reason, own.document.place, number)
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


def _contradicting(heard: Sequence[_Heard], labels: LabelMap, work: Work) -> set[str]:
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
                leave_out_faulty(document, work)
        else:
            work.reading.faults += faults
        found |= {fault.place for fault in faults}
    return found


def _says_status(spans: Sequence[tuple[Span, str | None]], work: Work) -> bool:
    """Whether spans say what the status of their criterion is."""
    return bool(spans) and work.rules.spans_imply_label is True


def _rows(document: Document, review: Review, said: Mapping[str, _Said], work: Work) -> list[Row]:
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
