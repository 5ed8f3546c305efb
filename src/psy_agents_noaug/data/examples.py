"""From annotations to examples: one example per (post or sentence, criterion) pair.

The label comes from `status`, the evidence from the evidence columns, never one from the other.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from psy_agents_noaug.data.corpus import Annotation, Corpus, Post
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.labels import BINARY, LabelScale
from psy_agents_noaug.data.merging import Panel, Vote
from psy_agents_noaug.data.sentences import sentences as split_sentences
from psy_agents_noaug.data.sentences import sentences_of_span
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.validation import Fault, quote_identifier, raise_faults
from psy_agents_noaug.errors import DataError

Unit = Literal["post", "sentence"]
SentenceChoice = Literal["all", "annotated"]
UnannotatedPairs = Literal["negative", "drop"]
# Beside the splits: the pairs of test's posts with the criteria that are held out of training.
HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class Example:
    """A pair to classify.

    Spans are sorted, without duplicates, in code points of the post, and empty if the unit is the
    sentence. If a criterion is met and has no evidence, its evidence is unknown.

    Attributes:
        example_id: "post_id/criterion_id"; for sentences "post_id/start_char-end_char/criterion_id", or
            "post_id/sentence_id/criterion_id" if only annotated ones are paired.
        text: the post or the sentence.
        label: 0 if the criterion is not met, above 0 if it is (binary: 1).
        annotated: whether the label is explicit; otherwise it is the negative of an unannotated pair.
        evidence: spans of rows with a positive status.
        hard_negative_spans: spans of rows with status 0.
        evidence_is_partial: whether some rows with a positive status have known evidence and others
            do not.
        sentence: where `text` lies in its post; None if it is the whole post, or the text of an
            annotation, which may differ from the post's.
        subgroups: of its post.
        votes: of those who have seen the pair, where `data.merge` merges their labels.
        votes_are_partial: whether somebody's met label of its post and criterion has no sentence, so
            that sentences that nobody marks, and votes, are missing: those that are left would show
            less agreement than there is.
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
    sentence: Span | None = None
    subgroups: tuple[str, ...] = ()
    votes: tuple[Vote, ...] = ()
    votes_are_partial: bool = False

    @property
    def soft_label(self) -> float:
        """The share of the annotators who say met; the label, if there are no votes."""
        votes = self.votes
        return sum(vote.label for vote in votes) / len(votes) if votes else self.label

    @property
    def text_id(self) -> str:
        """Identifier of the post or sentence: `example_id` without the criterion."""
        return self.example_id.removesuffix(f"/{self.criterion_id}")


@dataclass(frozen=True, slots=True)
class LabelReport:
    """Counts of the labels and of the annotations behind them.

    Attributes:
        n_annotations: rows, without the ignored ones.
        positives: pairs per criterion; holds every criterion, like the next two.
        explicit_negatives: pairs per criterion with status 0.
        unannotated: pairs per criterion without an annotation.
        contradictions: examples whose rows differ in status, of the whole text or of one span;
            `LabelScale.merge` decides. None where annotators' labels are merged.
        ignored: rows left out, by label.
        annotations_without_sentence: rows that belong to no sentence of their post, because they have
            no evidence or it was not found; 0 unless all sentences are paired. Where unannotated pairs
            are negatives, rows of status 0 are not counted: their sentences are negatives anyway.
        negatives_without_sentence: those of them that have status 0.
        pairs_of_unknown_label: pairs left out because such a row says that their criterion is met
            somewhere in the post.
        pairs_not_seen: pairs left out because the annotator of `data.merge=annotator:ID` has not seen
            them, while others have; None if nothing is merged.
    """

    n_posts: int
    n_annotations: int
    n_pairs: int
    positives: Mapping[str, int]
    explicit_negatives: Mapping[str, int]
    unannotated: Mapping[str, int]
    contradictions: Sequence[str] | None
    ignored: Mapping[str, int]
    posts_without_annotation: int
    annotations_without_sentence: int
    negatives_without_sentence: int
    pairs_of_unknown_label: int
    pairs_not_seen: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain containers, for a JSON file."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Text:
    """The text of an example: a post, or one of its sentences."""

    post_id: str
    part: str
    group_id: str
    text: str
    sentence: Span | None = None
    subgroups: tuple[str, ...] = ()


class _Texts(NamedTuple):
    """The texts to pair, in the order of the examples, and the parts that each row is about."""

    texts: list[_Text]
    parts: Mapping[int, Sequence[str]]


def build_examples(
    corpus: Corpus,
    *,
    unit: Unit,
    sentences: SentenceChoice = "all",
    unannotated_pairs: UnannotatedPairs,
    spans: Mapping[int, Span],
    labels: LabelScale = BINARY,
    panel: Panel | None = None,
) -> tuple[list[Example], LabelReport]:
    """Merge the annotations of each pair, and add unannotated pairs as negatives or drop them.

    Args:
        corpus: posts, annotations and criteria.
        unit: "post" pairs every post, "sentence" sentences.
        sentences: "all" pairs every sentence of every post (`data.sentences`); an annotation belongs
            to those that its span labels (`sentences_of_span`). If it has no span, its sentence is
            unknown, and if it is positive too, the post's other pairs with its criterion are left out,
            unless it is of an annotator whose vote does not count.
            "annotated" pairs the annotated sentences alone (`evidence_text`, or the text at the
            offsets), identified by `sentence_id`, or by content where it is missing.
        unannotated_pairs: "negative" or "drop".
        spans: aligned spans by annotation row (`align_corpus`).
        labels: the labels that the task reads.
        panel: the annotators, whose votes on a pair are merged; evidence is that of the annotators who
            count and agree with the merged label. None: all rows count as one annotator's.

    Returns:
        The examples, sorted by post, sentence and the order of the criteria; the report.

    Raises:
        DataError: lists the rows of sentences without text or with two texts, or the identifiers
            with slashes that give two examples the same id; or no annotation has a sentence.
    """
    if unit == "post":
        texts, parts = _posts(corpus)
    elif sentences == "all":
        texts, parts = _all_sentences(corpus, spans)
    else:
        texts, parts = _annotated_sentences(corpus)
    rows_of: dict[tuple[str, str], dict[str, list[Annotation]]] = {}
    for annotation in corpus.annotations:
        for part in parts[annotation.row]:
            by_criterion = rows_of.setdefault((annotation.post_id, part), {})
            by_criterion.setdefault(annotation.criterion_id, []).append(annotation)
    without_sentence = [row for row in corpus.annotations if not parts[row.row]]
    unplaced = [row for row in without_sentence if row.status > 0]
    n_lost_negatives = (
        0 if unannotated_pairs == "negative" else len(without_sentence) - len(unplaced)
    )
    unknown = {
        (row.post_id, row.criterion_id)
        for row in unplaced
        if panel is None or panel.rule.counts(row.annotator_id)
    }
    unknown_of = {(row.post_id, row.criterion_id, row.annotator_id) for row in unplaced}
    partial = {(post_id, criterion_id) for post_id, criterion_id, _ in unknown_of}

    aligned = spans if unit == "post" else {}
    examples: list[Example] = []
    contradictions: list[str] = []
    n_unknown = n_not_seen = 0
    for text in texts:
        by_criterion = rows_of.get((text.post_id, text.part), {})
        for criterion in corpus.criteria:
            criterion_id = criterion.criterion_id
            rows = by_criterion.get(criterion_id, [])
            if not rows and unannotated_pairs == "drop":
                continue
            if not rows and (text.post_id, criterion_id) in unknown:
                n_unknown += 1
                continue
            votes = (
                panel.votes(text.post_id, criterion_id, rows, spans=aligned, unknown=unknown_of)
                if panel
                else ()
            )
            counted: Sequence[Annotation] = rows
            is_partial = (text.post_id, criterion_id) in partial
            if panel and (votes or is_partial):
                label = panel.rule.label(votes)
                if label is None:
                    n_not_seen += 1
                    continue
                agreeing = panel.rule.agreeing(votes, label)
                counted = [row for row in rows if row.annotator_id in agreeing]
            example = _example(text, criterion_id, counted, spans=aligned, labels=labels)
            if votes:
                example = _with_votes(
                    example, votes, is_annotated=bool(rows), are_partial=is_partial
                )
            examples.append(example)
            if panel is None and _is_contradictory(rows, unit=unit, spans=aligned):
                contradictions.append(example.example_id)
    _check_unique(examples)
    report = _report(
        corpus,
        examples,
        contradictions if panel is None else None,
        n_without_sentence=len(unplaced) + n_lost_negatives,
        n_lost_negatives=n_lost_negatives,
        n_unknown=n_unknown,
        n_not_seen=n_not_seen if panel else None,
    )
    return examples, report


def unlabelled_examples(
    posts: Sequence[Post], criteria: Sequence[Criterion], *, unit: Unit
) -> list[Example]:
    """Return the pairs of posts that nobody has annotated; their labels mean nothing.

    Args:
        posts: in the order of the examples.
        criteria: of each post or sentence, in this order.
        unit: "post", or "sentence" for every sentence of every post, as in `build_examples`.
    """
    texts = [
        text
        for post in posts
        for text in (_sentence_texts(post) if unit == "sentence" else [_post_text(post)])
    ]
    return [
        _example(text, criterion.criterion_id, [], spans={}, labels=BINARY)
        for text in texts
        for criterion in criteria
    ]


def pairs_by_text(examples: Sequence[Example]) -> list[list[int]]:
    """Return the indices of the pairs of each text, in the order of the texts' first pairs."""
    members: dict[tuple[object, ...], list[int]] = {}
    for index, example in enumerate(examples):
        members.setdefault((example.post_id, example.sentence, example.text), []).append(index)
    return list(members.values())


def _example(
    text: _Text,
    criterion_id: str,
    rows: Sequence[Annotation],
    *,
    spans: Mapping[int, Span],
    labels: LabelScale,
) -> Example:
    evidence = _spans_of([row for row in rows if row.status > 0], spans)
    return Example(
        example_id="/".join(filter(None, (text.post_id, text.part, criterion_id))),
        post_id=text.post_id,
        group_id=text.group_id,
        criterion_id=criterion_id,
        text=text.text,
        label=labels.merge([row.status for row in rows]) if rows else 0,
        annotated=bool(rows),
        evidence=evidence,
        hard_negative_spans=_spans_of([row for row in rows if row.status <= 0], spans),
        evidence_is_partial=bool(evidence)
        and any(row.status > 0 and row.row not in spans for row in rows),
        sentence=text.sentence,
        subgroups=text.subgroups,
    )


def _is_contradictory(rows: Sequence[Annotation], *, unit: Unit, spans: Mapping[int, Span]) -> bool:
    """Return whether rows of a pair differ in status, of the whole text or of one span."""
    if len({row.status for row in rows}) < 2:
        return False
    met = {spans[row.row] for row in rows if row.status > 0 and row.row in spans}
    said = {
        row.status
        for row in rows
        if unit == "sentence" or row.status > 0 or not row.has_evidence or spans.get(row.row) in met
    }
    return len(said) > 1


def _with_votes(
    example: Example, votes: tuple[Vote, ...], *, is_annotated: bool, are_partial: bool
) -> Example:
    """Return an example of merged labels. Words that one of those who agree marks are evidence."""
    others = [span for span in example.hard_negative_spans if span not in example.evidence]
    return replace(
        example,
        annotated=is_annotated,
        hard_negative_spans=tuple(others),
        votes=votes,
        votes_are_partial=are_partial,
    )


def _spans_of(rows: Sequence[Annotation], spans: Mapping[int, Span]) -> tuple[Span, ...]:
    # Millions of pairs of sentences have no row.
    return tuple(sorted({spans[row.row] for row in rows if row.row in spans})) if rows else ()


def _post_text(post: Post) -> _Text:
    return _Text(post.post_id, "", post.group_id, post.text, None, post.subgroups)


def _sentence_texts(post: Post) -> list[_Text]:
    return [
        _Text(
            post.post_id,
            f"{sentence.start_char}-{sentence.end_char}",
            post.group_id,
            post.text[sentence.start_char : sentence.end_char],
            sentence,
            post.subgroups,
        )
        for sentence in split_sentences(post.text)
    ]


def _posts(corpus: Corpus) -> _Texts:
    texts = [_post_text(post) for post in corpus.posts]
    texts.sort(key=lambda text: text.post_id)
    return _Texts(texts, dict.fromkeys((row.row for row in corpus.annotations), ("",)))


def _all_sentences(corpus: Corpus, spans: Mapping[int, Span]) -> _Texts:
    """Return every sentence, and the sentences that each row labels: none if it has no span."""
    rows_of: dict[str, list[int]] = {}
    for annotation in corpus.annotations:
        rows_of.setdefault(annotation.post_id, []).append(annotation.row)
    texts: list[_Text] = []
    parts: dict[int, list[str]] = {}
    for post in sorted(corpus.posts, key=lambda post: post.post_id):
        own = _sentence_texts(post)
        texts += own
        found = {text.sentence: text.part for text in own if text.sentence is not None}
        for row in rows_of.get(post.post_id, []):
            labelled = sentences_of_span(spans[row], list(found)) if row in spans else []
            parts[row] = [found[sentence] for sentence in labelled]
    if parts and not any(parts.values()):
        raise DataError(
            "No annotation has evidence that was found in its post, so the sentence of none is known. "
            "Give `evidence_text` or offsets, or use `data.unit=post`."
        )
    return _Texts(texts, parts)


def _annotated_sentences(corpus: Corpus) -> _Texts:
    posts = {post.post_id: post for post in corpus.posts}
    texts: dict[tuple[str, str], _Text] = {}
    parts: dict[int, tuple[str]] = {}
    faults: list[Fault] = []
    for annotation in sorted(corpus.annotations, key=lambda a: a.row):
        post = posts[annotation.post_id]
        place = f"annotations, row {annotation.row}"
        text = annotation.evidence_text
        if text is None and annotation.start_char is not None:
            text = post.text[annotation.start_char : annotation.end_char]
        if text is None:
            rule = "must have evidence_text or offsets where only annotated sentences are judged"
            faults.append(Fault(place, rule))
            continue
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        part = annotation.sentence_id or f"text-{digest}"
        sentence = _Text(post.post_id, part, post.group_id, text, None, post.subgroups)
        if texts.setdefault((post.post_id, part), sentence) != sentence:
            rule = "must have the same text as the other rows of its sentence"
            faults.append(Fault(place, rule, quote_identifier(part)))
        parts[annotation.row] = (part,)
    raise_faults("The annotations cannot be used by sentence:", faults)
    return _Texts([text for _, text in sorted(texts.items())], parts)


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
    corpus: Corpus,
    examples: Sequence[Example],
    contradictions: Sequence[str] | None,
    *,
    n_without_sentence: int,
    n_lost_negatives: int,
    n_unknown: int,
    n_not_seen: int | None,
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
        contradictions=contradictions,
        ignored=dict(corpus.ignored),
        posts_without_annotation=sum(p.post_id not in annotated_posts for p in corpus.posts),
        annotations_without_sentence=n_without_sentence,
        negatives_without_sentence=n_lost_negatives,
        pairs_of_unknown_label=n_unknown,
        pairs_not_seen=n_not_seen,
    )
