"""From annotations to examples: one example per (post or sentence, criterion) pair.

The label comes from `status`, the evidence from the evidence columns, never one from the other.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from psy_agents_noaug.data.corpus import Annotation, Corpus
from psy_agents_noaug.data.labels import BINARY, LabelScale
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.validation import Fault, quote_identifier, raise_faults

Unit = Literal["post", "sentence"]
UnannotatedPairs = Literal["negative", "drop"]


@dataclass(frozen=True, slots=True)
class Example:
    """A pair to classify.

    Spans are sorted, without duplicates, in code points of the post, and empty if the unit is the
    sentence. If a criterion is met and has no evidence, its evidence is unknown.

    Attributes:
        example_id: "post_id/criterion_id", or "post_id/sentence_id/criterion_id" for sentences.
        text: the post or the sentence.
        label: 0 if the criterion is not met, above 0 if it is (binary: 1).
        annotated: whether the label is explicit; otherwise it is the negative of an unannotated pair.
        evidence: spans of rows with a positive status.
        hard_negative_spans: spans of rows with status 0.
        evidence_is_partial: whether some rows with a positive status have known evidence and others
            do not.
    """

    example_id: str
    post_id: str
    group_id: str
    criterion_id: str
    text: str
    label: float
    annotated: bool
    evidence: tuple[Span, ...]
    hard_negative_spans: tuple[Span, ...]
    evidence_is_partial: bool = False


@dataclass(frozen=True, slots=True)
class LabelReport:
    """Counts of the labels and of the annotations behind them.

    Attributes:
        n_annotations: rows, without the ignored ones.
        positives: pairs per criterion; holds every criterion, like the next two.
        explicit_negatives: pairs per criterion with status 0.
        unannotated: pairs per criterion without an annotation.
        contradictions: examples whose rows differ in status; `LabelScale.merge` decides.
        ignored: rows left out, by label.
    """

    n_posts: int
    n_annotations: int
    n_pairs: int
    positives: Mapping[str, int]
    explicit_negatives: Mapping[str, int]
    unannotated: Mapping[str, int]
    contradictions: Sequence[str]
    ignored: Mapping[str, int]
    posts_without_annotation: int

    def to_json(self) -> dict[str, Any]:
        """Return plain containers, for a JSON file."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Text:
    """The text of an example: a post, or one of its sentences."""

    post_id: str
    part: str
    group_id: str
    text: str


def build_examples(
    corpus: Corpus,
    *,
    unit: Unit,
    unannotated_pairs: UnannotatedPairs,
    spans: Mapping[int, Span],
    labels: LabelScale = BINARY,
) -> tuple[list[Example], LabelReport]:
    """Merge the annotations of each pair, and add unannotated pairs as negatives or drop them.

    Args:
        corpus: posts, annotations and criteria.
        unit: "post" pairs every post; "sentence" pairs the annotated sentences (`evidence_text`, or
            the text at the offsets), identified by `sentence_id`, or by content where it is missing.
        unannotated_pairs: "negative" or "drop".
        spans: aligned spans by annotation row (`align_corpus`).
        labels: the labels that the task reads.

    Returns:
        The examples, sorted by post, sentence and the order of the criteria; the report.

    Raises:
        DataError: lists the rows of sentences without text or with two texts, or the identifiers
            with slashes that give two examples the same id.
    """
    if unit == "post":
        texts = {
            (post.post_id, ""): _Text(post.post_id, "", post.group_id, post.text)
            for post in corpus.posts
        }
        parts = {annotation.row: "" for annotation in corpus.annotations}
    else:
        texts, parts = _sentences(corpus)
    pairs: dict[tuple[str, str, str], list[Annotation]] = {}
    for annotation in corpus.annotations:
        key = (annotation.post_id, parts[annotation.row], annotation.criterion_id)
        pairs.setdefault(key, []).append(annotation)

    examples: list[Example] = []
    contradictions: list[str] = []
    for (post_id, part), text in sorted(texts.items()):
        for criterion in corpus.criteria:
            criterion_id = criterion.criterion_id
            rows = pairs.get((post_id, part, criterion_id), [])
            if not rows and unannotated_pairs == "drop":
                continue
            aligned = spans if unit == "post" else {}
            example = _example(text, criterion_id, rows, spans=aligned, labels=labels)
            examples.append(example)
            if len({row.status for row in rows}) > 1:
                contradictions.append(example.example_id)
    _check_unique(examples)
    return examples, _report(corpus, examples, contradictions)


def _example(
    text: _Text,
    criterion_id: str,
    rows: Sequence[Annotation],
    *,
    spans: Mapping[int, Span],
    labels: LabelScale,
) -> Example:
    found = {
        is_met: tuple(
            sorted({spans[r.row] for r in rows if (r.status > 0) == is_met and r.row in spans})
        )
        for is_met in (False, True)
    }
    return Example(
        example_id="/".join(filter(None, (text.post_id, text.part, criterion_id))),
        post_id=text.post_id,
        group_id=text.group_id,
        criterion_id=criterion_id,
        text=text.text,
        label=labels.merge([row.status for row in rows]) if rows else 0,
        annotated=bool(rows),
        evidence=found[True],
        hard_negative_spans=found[False],
        evidence_is_partial=bool(found[True])
        and any(row.status > 0 and row.row not in spans for row in rows),
    )


def _sentences(corpus: Corpus) -> tuple[dict[tuple[str, str], _Text], dict[int, str]]:
    """Return the annotated sentences by (post, sentence), and the sentence of each annotation row."""
    posts = {post.post_id: post for post in corpus.posts}
    texts: dict[tuple[str, str], _Text] = {}
    parts: dict[int, str] = {}
    faults: list[Fault] = []
    for annotation in sorted(corpus.annotations, key=lambda a: a.row):
        post = posts[annotation.post_id]
        place = f"annotations, row {annotation.row}"
        text = annotation.evidence_text
        if text is None and annotation.start_char is not None:
            text = post.text[annotation.start_char : annotation.end_char]
        if text is None:
            rule = "must have evidence_text or offsets where the unit is the sentence"
            faults.append(Fault(place, rule))
            continue
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        part = annotation.sentence_id or f"text-{digest}"
        sentence = _Text(post.post_id, part, post.group_id, text)
        if texts.setdefault((post.post_id, part), sentence) != sentence:
            rule = "must have the same text as the other rows of its sentence"
            faults.append(Fault(place, rule, quote_identifier(part)))
        parts[annotation.row] = part
    raise_faults("The annotations cannot be used by sentence:", faults)
    return texts, parts


def _check_unique(examples: Sequence[Example]) -> None:
    counts = Counter(example.example_id for example in examples)
    faults = [
        Fault(
            quote_identifier(name),
            "must name one example; rename posts, sentences or criteria with a /",
        )
        for name, count in counts.items()
        if count > 1
    ]
    raise_faults("Some examples have the same id:", faults)


def _report(
    corpus: Corpus, examples: Sequence[Example], contradictions: Sequence[str]
) -> LabelReport:
    counts = Counter((e.criterion_id, int(e.label > 0), e.annotated) for e in examples)
    criterion_ids = [criterion.criterion_id for criterion in corpus.criteria]
    annotated_posts = {annotation.post_id for annotation in corpus.annotations}
    return LabelReport(
        n_posts=len(corpus.posts),
        n_annotations=len(corpus.annotations),
        n_pairs=len(examples),
        positives={name: counts[name, 1, True] for name in criterion_ids},
        explicit_negatives={name: counts[name, 0, True] for name in criterion_ids},
        unannotated={name: counts[name, 0, False] for name in criterion_ids},
        contradictions=list(contradictions),
        ignored=dict(corpus.ignored),
        posts_without_annotation=sum(p.post_id not in annotated_posts for p in corpus.posts),
    )
