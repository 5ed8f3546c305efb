"""What evidence extraction has to beat: rules that need no encoder.

Those that answer do so for every pair, with one span and a score, so that whether it counts is decided
for them as for the model, by a threshold fitted on val.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from psy_agents_noaug.data.alignment import Span
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.sentences import sentences
from psy_agents_noaug.tasks.evidence.decoding import NO_SPAN, SpanCandidates


def no_evidence(examples: Sequence[Example]) -> SpanCandidates:
    """No span at all, which is right for most pairs where evidence is rare."""
    shape = (len(examples), 1)
    return SpanCandidates(np.full(shape, NO_SPAN), np.full(shape, NO_SPAN), np.full(shape, -np.inf))


def whole_post(examples: Sequence[Example]) -> SpanCandidates:
    """The whole post, always with score 0."""
    return _answers([Span(0, len(example.text)) for example in examples], np.zeros(len(examples)))


def first_sentence(examples: Sequence[Example]) -> SpanCandidates:
    """The first sentence, always with score 0."""
    return _answers([_sentences(example)[0] for example in examples], np.zeros(len(examples)))


def similar_sentence(
    examples: Sequence[Example], *, train: Sequence[Example], reads: Mapping[str, str]
) -> SpanCandidates:
    """The sentence whose TF-IDF vector is nearest to the criterion's; the score is their cosine.

    Document frequencies are those of the criteria (`reads`: text by criterion id) and of the sentences
    of the training posts. Of equally near sentences the first counts.
    """
    # Imported late: it takes most of a second, which a training need not wait for.
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted_on = dict.fromkeys(
        example.text[slice(*span)]
        for example in {e.post_id: e for e in train}.values()
        for span in map(_borders, _sentences(example))
    )
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    vectorizer.fit([*reads.values(), *fitted_on])
    criteria = {name: vectorizer.transform([text]) for name, text in reads.items()}
    posts = {example.post_id: example for example in examples}
    divided = {post_id: _sentences(example) for post_id, example in posts.items()}
    vectors = {
        post_id: vectorizer.transform(
            [posts[post_id].text[slice(*_borders(span))] for span in spans]
        )
        for post_id, spans in divided.items()
    }
    spans, scores = [], []
    for example in examples:
        cosines = (vectors[example.post_id] @ criteria[example.criterion_id].T).toarray()[:, 0]
        best = int(np.argmax(cosines))
        spans.append(divided[example.post_id][best])
        scores.append(float(cosines[best]))
    return _answers(spans, np.asarray(scores))


def _sentences(example: Example) -> list[Span]:
    return sentences(example.text) or [Span(0, len(example.text))]


def _borders(span: Span) -> tuple[int, int]:
    return span.start_char, span.end_char


def _answers(spans: Sequence[Span], scores: np.ndarray) -> SpanCandidates:
    borders = np.asarray([_borders(span) for span in spans], dtype=np.int64).reshape(-1, 2)
    return SpanCandidates(borders[:, :1], borders[:, 1:], scores[:, None])
