"""Whole posts in the lines of a cross-validation, against those of an evaluation."""

import numpy as np
import pytest

from psy_agents_noaug.metrics.classification import PairPredictions
from psy_agents_noaug.metrics.pooled_posts import judged_posts, post_figures, post_gains
from psy_agents_noaug.tasks.criteria.whole_posts import whole_posts

CRITERIA = ("A.1", "A.2")
THRESHOLDS = {1: {"A.1": 0.5, "A.2": 0.7}, 2: {"A.1": 0.8, "A.2": 0.6}}


def lines(seed, *, fold=None):
    """Three sentences in each of 20 posts; the labels are always the same."""
    labels = np.random.default_rng(0).random((20, 3, 2)) < 0.2
    chance = np.random.default_rng(seed).normal(size=labels.shape)
    probabilities = 1 / (1 + np.exp(-(3 * labels - 1.5 + chance)))
    return [
        {
            "example_id": f"p{post}/{criterion}/{sentence}",
            "post_id": f"p{post}",
            "group_id": f"p{post}",
            "criterion_id": criterion,
            "label": int(labels[post, sentence, column]),
            "probability": float(probabilities[post, sentence, column]),
            "decision": int(probabilities[post, sentence, column] >= 0.5),
            "fold": 1 + post % 2 if fold is None else fold,
        }
        for post in range(20)
        for sentence in range(3)
        for column, criterion in enumerate(CRITERIA)
    ]


def test_of_one_fold_the_figures_are_those_of_an_evaluation():
    own = lines(1, fold=1)
    pairs = PairPredictions(
        *(np.array([ln[key] for ln in own]) for key in ("label", "probability")),
        *(np.array([ln[key] for ln in own]) for key in ("criterion_id", "group_id")),
    )
    post_ids = np.array([line["post_id"] for line in own])
    rule = {"thresholds": THRESHOLDS[1]}
    expected = whole_posts(pairs, post_ids, rule=rule, criteria=CRITERIA).figures
    found = post_figures([judged_posts(own, THRESHOLDS)], of_sentences=True).values
    for key in ("f1_macro", "auroc_macro", "per_criterion/A.2/f1", "n_positive", "n_pairs"):
        assert found[key] == pytest.approx(expected[key])


def test_a_post_is_decided_by_the_thresholds_of_its_own_fold():
    own = lines(1)
    expected = {}
    for line in own:
        pair = line["post_id"], line["criterion_id"]
        decided = line["probability"] >= THRESHOLDS[line["fold"]][line["criterion_id"]]
        expected[pair] = expected.get(pair, False) or decided
    posts = judged_posts(own, THRESHOLDS)
    names = zip(posts.post_ids.tolist(), posts.pairs.criterion_ids.tolist(), strict=True)
    assert dict(zip(names, posts.decisions.tolist(), strict=True)) == expected


def test_figures_are_means_over_trainings_and_gains_their_difference_to_the_baseline():
    trainings = [judged_posts(lines(seed), THRESHOLDS) for seed in (1, 2)]
    each = [post_figures([one], of_sentences=True).values for one in trainings]
    found = post_figures(trainings, of_sentences=True).values
    for key in ("f1_macro", "n_met_mae", "n_met_bias"):
        assert found[key] == pytest.approx((each[0][key] + each[1][key]) / 2)
    baseline = judged_posts(lines(3), THRESHOLDS)
    gains = post_gains(trainings, baseline).values
    own = post_figures([baseline], of_sentences=True).values["f1_macro"]
    assert gains["f1_macro"] == pytest.approx(own)
    assert gains["f1_macro_gain"] == pytest.approx(found["f1_macro"] - own)
    assert gains["f1_macro_gain_ci_low"] < gains["f1_macro_gain"] < gains["f1_macro_gain_ci_high"]


def test_posts_that_are_judged_themselves_have_the_counts_of_criteria_alone():
    own = [line for line in lines(1) if line["example_id"].endswith("/0")]
    found = post_figures([judged_posts(own, None)], of_sentences=False).values
    errors = [
        sum(x["decision"] - x["label"] for x in own if x["post_id"] == f"p{n}") for n in range(20)
    ]
    assert found["n_met_mae"] == pytest.approx(np.abs(errors).mean())
    assert found["n_met_bias"] == pytest.approx(np.mean(errors))
    assert "f1_macro" not in found
