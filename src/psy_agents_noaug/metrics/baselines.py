"""Baselines that a fine-tuned encoder has to beat.

The majority class and a linear TF-IDF model are fitted on the training pairs alone and return
probabilities, which the same functions score as the model's; a criterion without training pairs gets
probability 0. TF-IDF similarity needs no label, so that it can judge a criterion without training pairs.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from psy_agents_noaug.metrics.classification import check_labels
from psy_agents_noaug.utils.words import has_unspaced_script, split_words

Floats = NDArray[np.float64]
_NGRAMS = (1, 2)
_WORD = re.compile(r"\b\w+\b")
_MIN_DOCUMENTS = 2  # a term of a single training text is mostly a name or a typo


def majority_probabilities(
    *, train_labels: ArrayLike, train_criterion_ids: ArrayLike, criterion_ids: ArrayLike
) -> Floats:
    """Return the share of positives among the training pairs of each pair's criterion.

    At threshold 0.5 this predicts the majority class; a share of exactly 0.5 predicts positive.

    Args:
        train_labels: 0 or 1, shape [train pairs].
        train_criterion_ids: shape [train pairs].
        criterion_ids: shape [pairs].

    Returns:
        p(met), float64, shape [pairs].

    Raises:
        ValueError: a label is not 0 or 1, or the two training arrays differ in length.
    """
    labels = check_labels(train_labels, name="train_labels")
    train_ids, ids = np.asarray(train_criterion_ids), np.asarray(criterion_ids)
    _check_lengths(train_labels=len(labels), train_criterion_ids=len(train_ids))
    probabilities = np.zeros(len(ids))
    for criterion in set(ids.tolist()) & set(train_ids.tolist()):
        probabilities[ids == criterion] = labels[train_ids == criterion].mean()
    return probabilities


def tfidf_lr_probabilities(
    *,
    train_texts: Sequence[str],
    train_labels: ArrayLike,
    train_criterion_ids: ArrayLike,
    texts: Sequence[str],
    criterion_ids: ArrayLike,
    seed: int,
) -> Floats:
    """Return probabilities of a balanced logistic regression per criterion on TF-IDF features.

    Features are words and word pairs. Vocabulary and document frequencies come from the distinct
    training texts; terms of a single text are left out unless there are no others. A criterion
    whose training labels are all equal gets its share of positives (0 or 1), and so does every
    criterion if no training text holds a word. The balanced fit makes probabilities suitable for
    ranking, but higher than the prior of a rare criterion.

    Args:
        train_texts: shape [train pairs].
        train_labels: 0 or 1, shape [train pairs].
        train_criterion_ids: shape [train pairs].
        texts: shape [pairs].
        criterion_ids: shape [pairs].
        seed: random state of the regression; its solver (L-BFGS) does not use it.

    Returns:
        p(met), float64, shape [pairs].

    Raises:
        ValueError: a label is not 0 or 1, or arrays of the same pairs differ in length.
    """
    # Imported here because the import takes most of a second and training does not need it.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    labels = check_labels(train_labels, name="train_labels")
    train_ids, ids = np.asarray(train_criterion_ids), np.asarray(criterion_ids)
    _check_lengths(
        train_texts=len(train_texts), train_labels=len(labels), train_criterion_ids=len(train_ids)
    )
    _check_lengths(texts=len(texts), criterion_ids=len(ids))
    probabilities = majority_probabilities(
        train_labels=labels, train_criterion_ids=train_ids, criterion_ids=ids
    )
    train_rows, distinct_train = _distinct(train_texts)
    analyze = TfidfVectorizer(
        ngram_range=_NGRAMS, tokenizer=tfidf_words, token_pattern=None
    ).build_analyzer()
    n_documents = Counter(term for text in distinct_train for term in set(analyze(text)))
    fitted = [
        criterion
        for criterion in sorted(set(ids.tolist()))
        if len(np.unique(labels[train_ids == criterion])) == 2
    ]
    if not n_documents or not fitted:
        return probabilities

    vectorizer = TfidfVectorizer(
        ngram_range=_NGRAMS,
        tokenizer=tfidf_words,
        token_pattern=None,
        sublinear_tf=True,
        min_df=min(_MIN_DOCUMENTS, max(n_documents.values())),
    )
    train_features = vectorizer.fit_transform(distinct_train)
    rows, distinct = _distinct(texts)
    features = vectorizer.transform(distinct)
    for criterion in fitted:
        own_train, own = train_ids == criterion, ids == criterion
        model = LogisticRegression(class_weight="balanced", max_iter=1000, random_state=seed)
        model.fit(train_features[train_rows[own_train]], labels[own_train])
        probabilities[own] = model.predict_proba(features[rows[own]])[:, 1]
    return probabilities


def tfidf_similarities(
    *,
    train_texts: Sequence[str],
    criterion_texts: Mapping[str, str],
    texts: Sequence[str],
    criterion_ids: Sequence[str],
) -> Floats:
    """Return the cosine of the TF-IDF vectors of each pair's criterion and text.

    Args:
        train_texts: among whose distinct texts, and the criteria, document frequencies are counted.
        criterion_texts: by criterion id.
        texts: shape [pairs].
        criterion_ids: shape [pairs].

    Returns:
        Cosines in [0, 1], float64, shape [pairs].

    Raises:
        ValueError: `texts` and `criterion_ids` differ in length.
    """
    _check_lengths(texts=len(texts), criterion_ids=len(criterion_ids))
    vectorizer = similarity_vectorizer([*criterion_texts.values(), *dict.fromkeys(train_texts)])
    if vectorizer is None or not texts:
        return np.zeros(len(texts))
    rows, distinct = _distinct(texts)
    columns = {name: column for column, name in enumerate(criterion_texts)}
    criteria = vectorizer.transform(criterion_texts.values())
    cosines: Floats = (vectorizer.transform(distinct) @ criteria.T).toarray()
    return np.minimum(cosines[rows, [columns[name] for name in criterion_ids]], 1.0)


def similarity_vectorizer(texts: Sequence[str]) -> Any:
    """Return scikit-learn's TF-IDF of words without stop words, fitted; None if there is no word."""
    # Imported here, because the import takes most of a second and training does not need it.
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        sublinear_tf=True, stop_words="english", tokenizer=tfidf_words, token_pattern=None
    )
    analyze = vectorizer.build_analyzer()
    return vectorizer.fit(texts) if any(analyze(text) for text in texts) else None


def tfidf_words(text: str) -> list[str]:
    """Return scikit-learn's words, of two letters or more, and the words of scripts without spaces."""
    return [
        word
        for run in _WORD.findall(text)
        if len(run) > 1 or has_unspaced_script(run)
        for word in split_words(run)
    ]


def _distinct(texts: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Return the distinct texts in order of first occurrence, after each text's row in them, [texts]."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    return np.array([rows[text] for text in texts], dtype=np.int64), list(rows)


def _check_lengths(**lengths: int) -> None:
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arrays of the same pairs must have the same length, but have {lengths}.")
