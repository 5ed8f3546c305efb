"""Corrections of annotations: a table of labels and spans that replace what annotators wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psy_agents_noaug.data.corpus import Annotation, Corpus
from psy_agents_noaug.data.labels import LabelScale
from psy_agents_noaug.data.offsets import CODE_POINTS
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.tables import read_table
from psy_agents_noaug.data.validation import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    Fault,
    Table,
    annotation_faults,
    column_faults,
    criterion_names,
    parse_offset,
    quote_columns,
    raise_faults,
    rename_columns,
    resolve_criterion,
)

_KIND = "corrections"


@dataclass(frozen=True, slots=True)
class Correction:
    """One row of the table.

    Args:
        post_id: of a post of the corpus.
        criterion_id: of a criterion of the corpus.
        label: what `status` should be; None: the row is only a note.
        span: the evidence that the label is about, in code points; None: the label is of the whole pair.
        row: 1-based number of the record in the file.
    """

    post_id: str
    criterion_id: str
    label: float | None
    span: Span | None
    row: int

    @property
    def pair(self) -> tuple[str, str]:
        """The post and the criterion."""
        return self.post_id, self.criterion_id

    def replaces(self, annotation: Annotation, span: Span | None) -> bool:
        """Return whether an annotation of this pair is taken out.

        A label without a span replaces what says otherwise. One with a span replaces the evidence that
        overlaps it; if it is positive, also rows whose evidence is unknown.

        Args:
            annotation: of the same pair.
            span: its evidence, None where that is unknown.
        """
        if self.label is None:
            return False
        if self.span is None:
            return annotation.status != self.label
        if span is None:
            return self.label > 0
        return _overlap(self.span, span)


@dataclass(frozen=True, slots=True)
class CorrectionReport:
    """What a table of corrections did.

    Args:
        file: its name.
        rows: of the file.
        notes: rows that are only a note.
        pairs: pairs of a post and a criterion with a corrected label or span.
        annotations_replaced: annotations that were taken out.
        annotations_added: annotations that were put in.
        first_row: number of the first one that was put in, as in the other lists of alignment.json.
    """

    file: str
    rows: int
    notes: int
    pairs: int
    annotations_replaced: int
    annotations_added: int
    first_row: int

    def to_json(self) -> dict[str, Any]:
        """Return plain containers, for alignment.json."""
        return asdict(self)


def read_corrections(
    path: Path, *, corpus: Corpus, labels: LabelScale, needs_spans: bool = False
) -> list[Correction]:
    """Read a table of corrections: post_id, criterion_id, label, start_char, end_char, note.

    Offsets are code points and half-open, however the corpus counts its own.

    Args:
        path: a CSV file, or another table that `read_table` reads.
        corpus: that is corrected.
        labels: the labels that the task reads.
        needs_spans: whether each label must have a span, as where sentences are paired by annotations.

    Raises:
        DataError: lists every fault: other columns, unknown posts and criteria, spans outside of the
            text, spans without a label, rows that contradict each other.
    """
    frame, file = read_table(path), path.name
    table, faults = rename_columns(frame, file=file, kind=_KIND, columns={})
    known = [*REQUIRED_COLUMNS[_KIND], *OPTIONAL_COLUMNS[_KIND]]
    if others := [name for name in frame.columns if name not in known]:
        rule = f"must have the columns {', '.join(known)}, and no others"
        faults.append(Fault(file, rule, f"it has {quote_columns(others, known)}"))
    cells = column_faults(table, labels)
    faults += [fault for _, _, fault in cells]
    names = criterion_names(corpus.criteria)
    faults += annotation_faults(
        table,
        bad={(row, column) for row, column, _ in cells},
        texts={post.post_id: post.text for post in corpus.posts},
        names=names,
        ignored=(),
        offsets=CODE_POINTS,
        suggests_style=False,
    )
    raise_faults("The corrections cannot be used:", faults)
    corrections = _corrections(table, names, labels)
    faults = _faults_of_labels(table, corrections, needs_spans) + _contradictions(
        table, corrections
    )
    raise_faults("The corrections cannot be used:", faults)
    return corrections


def apply_corrections(
    corpus: Corpus, corrections: Sequence[Correction], *, spans: Mapping[int, Span], file: str
) -> tuple[Corpus, CorrectionReport]:
    """Return the corpus with corrected annotations, and what was done. Splits should not follow them.

    A correction with a span becomes an annotation. One without becomes one if no row of the pair has its
    label then.

    Args:
        corpus: as the files have it.
        corrections: of `read_corrections`.
        spans: aligned spans by annotation row (`align_corpus`).
        file: name of the table, for the report.
    """
    labelled = [correction for correction in corrections if correction.label is not None]
    of_pair: dict[tuple[str, str], list[Correction]] = {}
    for correction in labelled:
        of_pair.setdefault(correction.pair, []).append(correction)
    kept, of_span = [], {}
    for annotation in corpus.annotations:
        span = spans.get(annotation.row)
        own = of_pair.get((annotation.post_id, annotation.criterion_id), ())
        if not any(correction.replaces(annotation, span) for correction in own):
            kept.append(annotation)
        if span is not None:
            of_span[annotation.post_id, span] = annotation
    first_row = max((annotation.row for annotation in corpus.annotations), default=0) + 1
    said = {(a.post_id, a.criterion_id, a.status) for a in kept}
    added: list[Annotation] = []
    # Those with a span first, as they say the label too.
    for correction in sorted(labelled, key=lambda c: (c.span is None, c.row)):
        assert correction.label is not None
        statement = (*correction.pair, correction.label)
        if correction.span is None and statement in said:
            continue
        said.add(statement)
        span = correction.span
        # A sentence keeps its id and wording where an annotation has given it one.
        twin = None if span is None else of_span.get((correction.post_id, span))
        added.append(
            Annotation(
                *statement,
                evidence_text=twin.evidence_text if twin else None,
                start_char=span.start_char if span else None,
                end_char=span.end_char if span else None,
                sentence_id=twin.sentence_id if twin else None,
                row=first_row + len(added),
            )
        )
    report = CorrectionReport(
        file=file,
        rows=len(corrections),
        notes=len(corrections) - len(labelled),
        pairs=len(of_pair),
        annotations_replaced=len(corpus.annotations) - len(kept),
        annotations_added=len(added),
        first_row=first_row,
    )
    return corpus.with_annotations([*kept, *added]), report


def _corrections(table: Table, names: Mapping[str, str], labels: LabelScale) -> list[Correction]:
    columns = ("post_id", "criterion_id", "label", "start_char", "end_char")
    cells = zip(*(table.values(column) for column in columns), strict=True)
    corrections = []
    for row, (post_id, criterion, label, start, end) in enumerate(cells, start=1):
        assert post_id is not None
        assert criterion is not None
        criterion_id = resolve_criterion(criterion, names)
        assert criterion_id is not None
        first, last = parse_offset(start), parse_offset(end)
        span = None if first is None or last is None else Span(first, last)
        value = None if label is None else labels.parse(label)
        corrections.append(Correction(post_id, criterion_id, value, span, row))
    return corrections


def _faults_of_labels(
    table: Table, corrections: Sequence[Correction], needs_spans: bool
) -> list[Fault]:
    rule = "must come with start_char and end_char where only annotated sentences are judged"
    faults = []
    for correction in corrections:
        place = table.place(correction.row - 1, "label")
        if correction.label is None and correction.span is not None:
            faults.append(Fault(place, "must be given with a span: 0 if it is no evidence"))
        if needs_spans and correction.label is not None and correction.span is None:
            faults.append(Fault(place, rule))
    return faults


def _contradictions(table: Table, corrections: Sequence[Correction]) -> list[Fault]:
    """Find rows that say otherwise than an earlier row of the same pair."""
    before: dict[tuple[str, str], list[Correction]] = {}
    faults = []
    for correction in corrections:
        if correction.label is None:
            continue
        own = before.setdefault(correction.pair, [])
        if other := next((o for o in own if _contradict(o, correction)), None):
            place = table.place(correction.row - 1, "label")
            rule = "must not contradict another row of its post and criterion"
            faults.append(Fault(place, rule, f"row {other.row} says otherwise"))
        own.append(correction)
    return faults


def _contradict(one: Correction, other: Correction) -> bool:
    if one.label == other.label:
        return False
    if one.span is not None and other.span is not None:
        return _overlap(one.span, other.span)
    if one.span is None and other.span is None:
        return True
    of_pair, of_span = (one, other) if one.span is None else (other, one)
    # A criterion that is met may have a span that is no evidence.
    return of_span.label != 0 or of_pair.label is None


def _overlap(one: Span, other: Span) -> bool:
    return one.start_char < other.end_char and other.start_char < one.end_char
