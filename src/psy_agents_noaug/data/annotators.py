"""Several annotators of one corpus: where they contradict each other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from psy_agents_noaug.data.corpus import Annotation
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.validation import Fault, quote_identifier, raise_faults


@dataclass(frozen=True, slots=True)
class Conflict:
    """Annotators who give a post and a criterion different labels, of the whole pair or of one span.

    Args:
        rows: one of each annotator, 1-based as in the file.
    """

    post_id: str
    criterion_id: str
    rows: tuple[int, ...]


def conflicts(annotations: Iterable[Annotation], *, spans: Mapping[int, Span]) -> list[Conflict]:
    """Return the pairs on which named annotators contradict each other, in the order of the rows.

    An annotator says of a pair the highest status of its rows without evidence, and of evidence the
    highest of its rows with it. One who says 0 of the pair contradicts positive evidence of another;
    labels of the same evidence contradict each other where they differ. A pair that somebody has no row
    of is no contradiction: nothing was said.

    Args:
        annotations: of the corpus; those without `annotator_id` are nobody's.
        spans: of the evidence that was found, by row.
    """
    pairs: dict[tuple[str, str], list[Annotation]] = {}
    for annotation in annotations:
        if annotation.annotator_id is not None:
            pairs.setdefault((annotation.post_id, annotation.criterion_id), []).append(annotation)
    found = []
    for (post_id, criterion_id), rows in pairs.items():
        if len({row.annotator_id for row in rows}) > 1 and (own := _contradiction(rows, spans)):
            found.append(Conflict(post_id, criterion_id, own))
    return sorted(found, key=lambda conflict: conflict.rows)


def check_annotators(annotations: Sequence[Annotation], *, spans: Mapping[int, Span]) -> None:
    """Refuse a corpus whose annotators contradict each other: no rule says whose label counts.

    Args:
        annotations: of the corpus.
        spans: of the evidence that was found, by row.

    Raises:
        DataError: names the pairs.
    """
    faults = [
        Fault(
            f"annotations, rows {', '.join(map(str, conflict.rows))}",
            "must agree",
            f"post {quote_identifier(conflict.post_id)}, criterion {conflict.criterion_id}",
        )
        for conflict in conflicts(annotations, spans=spans)
    ]
    raise_faults(
        f"Annotators give different labels to {len(faults):,} pairs of a post and a criterion. Say "
        "whose count (`data.merge=majority`, any, unanimous or annotator:ID), or adjudicate them "
        "(`data.corrections`):",
        faults,
    )


def _contradiction(rows: Sequence[Annotation], spans: Mapping[int, Span]) -> tuple[int, ...]:
    """Return a row of each side of a contradiction; none if there is none."""
    of_pair: dict[str | None, Annotation] = {}
    of_evidence: list[Annotation] = []
    for row in sorted(rows, key=lambda row: (-row.status, row.row)):
        if not row.has_evidence:
            of_pair.setdefault(row.annotator_id, row)
        elif not any(
            other.annotator_id == row.annotator_id and _is_same_evidence(other, row, spans)
            for other in of_evidence
        ):
            of_evidence.append(row)
    for one, other in combinations(of_evidence, 2):
        if one.status != other.status and _is_same_evidence(one, other, spans):
            return tuple(sorted((one.row, other.row)))
    said = list(of_pair.values())
    if said and said[0].status != said[-1].status:
        return tuple(sorted((said[0].row, said[-1].row)))
    for row in rows:
        own = of_pair.get(row.annotator_id)
        is_positive = row.status > 0 and (own is None or own.status > 0)
        denial = next(
            (s for s in said if s.status == 0 and s.annotator_id != row.annotator_id), None
        )
        if is_positive and denial is not None:
            return tuple(sorted((row.row, denial.row)))
    return ()


def _is_same_evidence(one: Annotation, other: Annotation, spans: Mapping[int, Span]) -> bool:
    """Return whether two rows are about the same words; where these were not found, of the same text."""
    first, second = spans.get(one.row), spans.get(other.row)
    if first is not None and second is not None:
        return first == second
    text, other_text = ((row.evidence_text or "").strip() for row in (one, other))
    ids = {one.sentence_id, other.sentence_id}
    return text == other_text and (len(ids) == 1 or (text != "" and None in ids))
