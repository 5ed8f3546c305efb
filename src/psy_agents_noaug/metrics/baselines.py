"""Baselines that a fine-tuned encoder has to beat: the majority class, and a linear TF-IDF model.

Both learn from the training pairs alone and return probabilities, to be scored by the same
functions as the model's. A criterion without training pairs gets probability 0.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from psy_agents_noaug.metrics.classification import check_labels

Floats = NDArray[np.float64]
_NGRAMS = (1, 2)
_MIN_DOCUMENTS = 2  # a term of one training text only is mostly a name or a typo


def majority_probabilities(
    *, train_labels: ArrayLike, train_criterion_ids: ArrayLike, criterion_ids: ArrayLike
) -> Floats:
    """The share of positives among each criterion's training pairs, as its every probability.

    At threshold 0.5 that decides for the majority; a share of exactly one half decides positive.

    Args:
        train_labels, train_criterion_ids: shape [train pairs].
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
    """TF-IDF of words and word pairs, and a balanced logistic regression for each criterion.

    The vocabulary and document frequencies are those of the distinct training texts; terms of a
    single text are left out unless there are no others. A criterion whose training labels are of
    one class gets that class's probability, as does every criterion its share of positives if no
    training text holds a word. Probabilities are of a balanced fit: they rank, but sit above the
    prior of a rare criterion.

    Args:
        train_texts, train_labels, train_criterion_ids: shape [train pairs].
        texts, criterion_ids: shape [pairs].
        seed: the regression's random state; its default solver (L-BFGS) draws nothing.

    Returns:
        p(met), float64, shape [pairs].

    Raises:
        ValueError: a label is not 0 or 1, or arrays of the same pairs differ in length.
    """
    # Imported late: it takes most of a second, which a training need not wait for.
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
    analyze = TfidfVectorizer(ngram_range=_NGRAMS).build_analyzer()
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
        sublinear_tf=True,
        min_df=min(_MIN_DOCUMENTS, max(n_documents.values())),
    )
    train_features = vectorizer.fit_transform(distinct_train)
    rows, distinct = _distinct(texts)
    features = vectorizer.transform(distinct)
    for criterion in fitted:
        train, here = train_ids == criterion, ids == criterion
        model = LogisticRegression(class_weight="balanced", max_iter=1000, random_state=seed)
        model.fit(train_features[train_rows[train]], labels[train])
        probabilities[here] = model.predict_proba(features[rows[here]])[:, 1]
    return probabilities


def _distinct(texts: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Each text's row among the distinct ones, [texts], and these, in order of first sight."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    return np.array([rows[text] for text in texts], dtype=np.int64), list(rows)


def _check_lengths(**lengths: int) -> None:
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arrays of the same pairs must be of one length, but are {lengths}.")
