"""Baselines of evidence extraction, without an encoder.

All but `no_evidence` predict spans with a score for every pair. As for the model, a threshold fitted on
val decides which of them count.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.sentences import sentences
from psy_agents_noaug.data.span import Span
from psy_agents_noaug.metrics.baselines import similarity_vectorizer, tfidf_lr_probabilities
from psy_agents_noaug.tasks.evidence.decoding import NO_SPAN, SpanCandidates

_MAX_SENTENCES = 5
_EPSILON = 1e-12


def no_evidence(examples: Sequence[Example]) -> SpanCandidates:
    """Predict no span, which is correct for most pairs if evidence is rare."""
    shape = (len(examples), 1)
    return SpanCandidates(np.full(shape, NO_SPAN), np.full(shape, NO_SPAN), np.full(shape, -np.inf))


def whole_post(examples: Sequence[Example]) -> SpanCandidates:
    """Predict the whole post, with score 0."""
    return _one_span_per_pair(
        [Span(0, len(example.text)) for example in examples], np.zeros(len(examples))
    )


def first_sentence(examples: Sequence[Example]) -> SpanCandidates:
    """Predict the first sentence, with score 0."""
    return _one_span_per_pair(
        [_sentences(example)[0] for example in examples], np.zeros(len(examples))
    )


def classified_sentences(
    examples: Sequence[Example], *, train: Sequence[Example], seed: int
) -> SpanCandidates:
    """Predict the sentences that a classifier finds to be evidence, at most `_MAX_SENTENCES` of a pair.

    It is the baseline of the criteria task (TF-IDF and logistic regression), trained on the sentences
    of the training posts; one that overlaps an evidence span is positive. The score is the log-odds.

    Args:
        examples: the pairs.
        train: the training pairs.
        seed: random state of the regression.
    """
    train_rows = [(example, span) for example in train for span in _sentences(example)]
    rows = [(example, span) for example in examples for span in _sentences(example)]
    probabilities = tfidf_lr_probabilities(
        train_texts=[example.text[slice(*_borders(span))] for example, span in train_rows],
        train_labels=[
            int(any(_overlap(span, gold) for gold in example.evidence))
            for example, span in train_rows
        ],
        train_criterion_ids=[example.criterion_id for example, _ in train_rows],
        texts=[example.text[slice(*_borders(span))] for example, span in rows],
        criterion_ids=[example.criterion_id for example, _ in rows],
        seed=seed,
    )
    inside = np.clip(probabilities, _EPSILON, 1 - _EPSILON)
    scores = np.log(inside) - np.log1p(-inside)
    shape = (len(examples), _MAX_SENTENCES)
    found = SpanCandidates(
        np.full(shape, NO_SPAN), np.full(shape, NO_SPAN), np.full(shape, -np.inf)
    )
    at = 0
    for row, example in enumerate(examples):
        spans = _sentences(example)
        own = scores[at : at + len(spans)]
        at += len(spans)
        for column, best in enumerate(np.argsort(-own, kind="stable")[:_MAX_SENTENCES].tolist()):
            found.starts[row, column], found.ends[row, column] = _borders(spans[best])
            found.scores[row, column] = own[best]
    return found


def similar_sentence(
    examples: Sequence[Example], *, train: Sequence[Example], criterion_texts: Mapping[str, str]
) -> SpanCandidates:
    """Predict the sentence whose TF-IDF vector is most similar to that of the criterion.

    The score is the cosine of both. Of equally similar sentences the first is predicted. Document
    frequencies are counted over the criteria and the sentences of the training posts.

    Args:
        examples: the pairs.
        train: the training pairs.
        criterion_texts: by criterion id.
    """
    train_sentences = dict.fromkeys(
        example.text[slice(*span)]
        for example in {e.post_id: e for e in train}.values()
        for span in map(_borders, _sentences(example))
    )
    vectorizer = similarity_vectorizer([*criterion_texts.values(), *train_sentences])
    if vectorizer is None:
        return first_sentence(examples)
    criteria = {name: vectorizer.transform([text]) for name, text in criterion_texts.items()}
    posts = {example.post_id: example for example in examples}
    sentences_by_post = {post_id: _sentences(example) for post_id, example in posts.items()}
    vectors = {
        post_id: vectorizer.transform(
            [posts[post_id].text[slice(*_borders(span))] for span in spans]
        )
        for post_id, spans in sentences_by_post.items()
    }
    spans, scores = [], []
    for example in examples:
        cosines = (vectors[example.post_id] @ criteria[example.criterion_id].T).toarray()[:, 0]
        best = int(np.argmax(cosines))
        spans.append(sentences_by_post[example.post_id][best])
        scores.append(float(cosines[best]))
    return _one_span_per_pair(spans, np.asarray(scores))


def _sentences(example: Example) -> list[Span]:
    """Return the sentences of the post, or the whole post if it has none."""
    return sentences(example.text) or [Span(0, len(example.text))]


def _overlap(one: Span, other: Span) -> bool:
    return one.start_char < other.end_char and other.start_char < one.end_char


def _borders(span: Span) -> tuple[int, int]:
    return span.start_char, span.end_char


def _one_span_per_pair(spans: Sequence[Span], scores: np.ndarray) -> SpanCandidates:
    borders = np.asarray([_borders(span) for span in spans], dtype=np.int64).reshape(-1, 2)
    return SpanCandidates(borders[:, :1], borders[:, 1:], scores[:, None])
