import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from psy_agents_noaug.metrics.baselines import (
    majority_probabilities,
    tfidf_lr_probabilities,
    tfidf_similarities,
    tfidf_words,
)

# Synthetic: six posts, two criteria each.
TEXTS = ["cannot sleep at night", "awake all night", "lost all joy", "no joy in music"]
TEXTS += ["cannot sleep and no joy", "a sunny day with friends"]
SLEEP, JOY = [1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0]
TRAIN = {
    "train_texts": [text for text in TEXTS for _ in range(2)],
    "train_labels": [label for post in zip(SLEEP, JOY, strict=True) for label in post],
    "train_criterion_ids": ["A.4", "A.2"] * 6,
}


def test_the_majority_baseline_is_each_criterions_share_in_train():
    probabilities = majority_probabilities(
        train_labels=[1, 1, 0, 0, 0, 1],
        train_criterion_ids=["A.1", "A.1", "A.1", "A.2", "A.2", "A.9"],
        criterion_ids=["A.2", "A.1", "A.3", "A.1"],
    )
    assert probabilities == pytest.approx([0, 2 / 3, 0, 2 / 3])
    assert probabilities.dtype == np.float64


def test_the_baselines_of_nothing_are_nothing():
    nothing = {"train_labels": [], "train_criterion_ids": []}
    assert majority_probabilities(**nothing, criterion_ids=[]).shape == (0,)
    assert majority_probabilities(**nothing, criterion_ids=["A.1"]).tolist() == [0]
    options = {"criterion_ids": [], "texts": [], "seed": 0}
    assert tfidf_lr_probabilities(train_texts=[], **nothing, **options).shape == (0,)
    assert tfidf_lr_probabilities(**TRAIN, **options).shape == (0,)


def test_the_tfidf_baseline_is_scikit_learns_on_the_distinct_training_texts():
    texts = ["no sleep this night", "joy with friends", "no sleep this night"]
    probabilities = tfidf_lr_probabilities(
        **TRAIN, texts=texts, criterion_ids=["A.4", "A.2", "A.2"], seed=0
    )
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    features = vectorizer.fit_transform(TEXTS)
    models = [
        LogisticRegression(class_weight="balanced", max_iter=1000).fit(features, labels)
        for labels in (SLEEP, JOY)
    ]
    sleep, joy = (model.predict_proba(vectorizer.transform(texts))[:, 1] for model in models)
    assert probabilities == pytest.approx([sleep[0], joy[1], joy[2]])
    assert sleep[0] > 0.5 > joy[2]


def test_the_tfidf_baseline_learns_nothing_from_the_texts_it_judges():
    options = {"seed": 0, **TRAIN}
    alone = tfidf_lr_probabilities(texts=["no sleep"], criterion_ids=["A.4"], **options)
    others = ["no sleep", "sleep sleep sleep", "entirely different words"]
    beside = tfidf_lr_probabilities(texts=others, criterion_ids=["A.4"] * 3, **options)
    assert beside[0] == alone[0]


def test_a_criterion_of_one_class_or_without_training_pairs_gets_its_prior():
    probabilities = tfidf_lr_probabilities(
        train_texts=[*TEXTS, *TEXTS, *TEXTS],
        train_labels=[*SLEEP, *[0] * 6, *[1] * 6],
        train_criterion_ids=["A.4"] * 6 + ["A.1"] * 6 + ["A.3"] * 6,
        texts=["cannot sleep"] * 4,
        criterion_ids=["A.1", "A.3", "A.5", "A.4"],
        seed=0,
    )
    assert probabilities[:3].tolist() == [0, 1, 0]
    assert 0.5 < probabilities[3] < 1


def test_texts_that_share_no_word_are_fitted_on_the_words_of_one():
    probabilities = tfidf_lr_probabilities(
        train_texts=["awake", "joyful"],
        train_labels=[1, 0],
        train_criterion_ids=["A.4", "A.4"],
        texts=["awake", "joyful", "neither"],
        criterion_ids=["A.4"] * 3,
        seed=0,
    )
    assert probabilities[0] > 0.5 > probabilities[1]
    assert probabilities[2] == pytest.approx(0.5)


def test_texts_without_a_word_leave_the_prior():
    probabilities = tfidf_lr_probabilities(
        train_texts=["", "?", "!"],
        train_labels=[1, 0, 0],
        train_criterion_ids=["A.4"] * 3,
        texts=["awake"],
        criterion_ids=["A.4"],
        seed=0,
    )
    assert probabilities == pytest.approx([1 / 3])


def test_bad_arrays_are_refused_by_name_and_without_their_text():
    with pytest.raises(ValueError, match="'train_labels': 1, 'train_criterion_ids': 2"):
        majority_probabilities(
            train_labels=[1], train_criterion_ids=["A.1", "A.1"], criterion_ids=[]
        )
    with pytest.raises(ValueError, match="`train_labels` must be 0 or 1"):
        majority_probabilities(train_labels=[3], train_criterion_ids=["A.1"], criterion_ids=[])
    with pytest.raises(ValueError, match="'texts': 1, 'criterion_ids': 2") as caught:
        tfidf_lr_probabilities(**TRAIN, texts=["secret"], criterion_ids=["A.4", "A.4"], seed=0)
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="'train_texts': 12, 'train_labels': 1"):
        tfidf_lr_probabilities(**TRAIN | {"train_labels": [1]}, texts=[], criterion_ids=[], seed=0)


def test_words_are_scikit_learns_and_those_of_scripts_without_spaces():
    text = "I can't sleep, a 3.50 é_x at-all 한국어"
    assert tfidf_words(text) == TfidfVectorizer(lowercase=False).build_tokenizer()(text)
    assert tfidf_words("我 sad睡不着 a") == ["我", "sad", "睡", "不", "着"]


CRITERION_TEXTS = {"A.4": "insomnia: poor sleep, awake nights", "A.2": "lost interest and joy"}


def test_the_similarity_is_the_cosine_of_scikit_learns_vectors():
    texts = ["awake, no sleep", "a song of joy", "awake, no sleep", "the of and", "unknown words"]
    found = tfidf_similarities(
        train_texts=TRAIN["train_texts"],
        criterion_texts=CRITERION_TEXTS,
        texts=texts,
        criterion_ids=["A.4", "A.2", "A.2", "A.4", "A.4"],
    )
    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    vectorizer.fit([*CRITERION_TEXTS.values(), *TEXTS])
    ours, theirs = (vectorizer.transform(of).toarray() for of in (texts, CRITERION_TEXTS.values()))
    rows = [0, 1, 1, 0, 0]
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs[rows], axis=1)
    expected = (ours * theirs[rows]).sum(axis=1) / np.where(norms > 0, norms, 1)
    assert found == pytest.approx(expected)
    assert found[0] > 0 < found[1]
    assert found[2:].tolist() == [0, 0, 0]


def test_a_text_that_is_the_criterions_own_has_similarity_1_and_texts_without_words_have_0():
    same = {"texts": list(CRITERION_TEXTS.values()), "criterion_ids": list(CRITERION_TEXTS)}
    options = {"train_texts": TEXTS, "criterion_texts": CRITERION_TEXTS}
    found = tfidf_similarities(**options, **same)
    assert found == pytest.approx([1, 1])
    assert found.max() <= 1
    wordless = {"train_texts": ["the", "?"], "criterion_texts": {"A.4": "!"}}
    assert tfidf_similarities(**wordless, texts=["sleep"], criterion_ids=["A.4"]).tolist() == [0]
    assert tfidf_similarities(**options, texts=[], criterion_ids=[]).shape == (0,)
    with pytest.raises(ValueError, match="'texts': 1, 'criterion_ids': 0"):
        tfidf_similarities(**options, texts=["sleep"], criterion_ids=[])
