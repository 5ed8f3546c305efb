import numpy as np
import pytest

from psy_agents_noaug.metrics.classification import PairPredictions
from psy_agents_noaug.metrics.posts import (
    PostDecisions,
    by_post,
    has_episode,
    pairs_of_posts,
    post_metrics,
)

NINE = tuple(f"A.{k}" for k in range(1, 10))


def decided(labels, decisions, groups=None):
    n = len(labels)
    return PostDecisions(
        np.asarray(labels), np.asarray(decisions), np.asarray(groups or [f"p{k}" for k in range(n)])
    )


def test_an_episode_needs_five_criteria_with_one_of_the_first_two():
    five_with_mood = [1, 0, 1, 1, 1, 1, 0, 0, 0]
    five_without = [0, 0, 1, 1, 1, 1, 1, 0, 0]
    four = [1, 1, 1, 1, 0, 0, 0, 0, 0]
    found = has_episode(np.array([five_with_mood, five_without, four]), NINE)
    assert found.tolist() == [True, False, False]


def test_errors_of_the_count_are_those_by_hand():
    labels = [[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1]]
    decisions = [[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]]
    found = post_metrics(decided(labels, decisions), episode=None).values
    assert found["n_judged"] == 4
    assert found["n_met_mae"] == pytest.approx(3 / 4)
    assert found["n_met_bias"] == pytest.approx(1 / 4)
    assert found["n_met_bias_ci_low"] < 1 / 4 < found["n_met_bias_ci_high"]
    assert not any(key.startswith("episode") for key in found)


def test_the_figures_of_the_rule_are_those_by_hand():
    met, unmet = [1] * 9, [0] * 9
    found = post_metrics(
        decided([met, met, unmet, unmet], [met, unmet, unmet, met]), episode=NINE
    ).values
    for name in ("recall", "specificity", "precision", "npv", "f1"):
        assert found[f"episode/{name}"] == 0.5
    assert (found["episode/n_positive"], found["episode/n_pairs"]) == (2, 4)
    assert "episode/auroc" not in found


def test_a_post_counts_if_all_criteria_were_judged_and_a_sentence_is_enough():
    rows = [("p1", "A", 1, True), ("p1", "B", 0, False), ("p2", "A", 0, False)]
    rows += [("p1", "A", 0, False), ("p1", "B", 0, True)]
    pairs = PairPredictions(
        labels=np.array([row[2] for row in rows]),
        probabilities=np.zeros(5),
        criterion_ids=np.array([row[1] for row in rows]),
        group_ids=np.array([f"author of {row[0]}" for row in rows]),
    )
    found = by_post(
        pairs,
        decisions=np.array([row[3] for row in rows]),
        post_ids=np.array([row[0] for row in rows]),
        criteria=["A", "B"],
    )
    assert found.labels.tolist() == [[1, 0]]
    assert found.decisions.tolist() == [[1, 1]]
    assert found.group_ids.tolist() == ["author of p1"]


def test_a_criterion_with_a_sentence_of_unknown_label_is_not_judged():
    """Both sentences of the post are judged by A; of B's one is left out."""
    pairs = PairPredictions(
        labels=np.array([0, 0, 0]),
        probabilities=np.zeros(3),
        criterion_ids=np.array(["A", "A", "B"]),
        group_ids=np.full(3, "p1"),
    )
    found = by_post(
        pairs, decisions=np.zeros(3, bool), post_ids=np.full(3, "p1"), criteria=["A", "B"]
    )
    assert len(found.labels) == 0


def test_no_post_judged_by_every_criterion_gives_reasons():
    empty = decided(np.zeros((0, 9), int), np.zeros((0, 9), int))
    found = post_metrics(empty, episode=NINE)
    assert found.values["n_judged"] == 0
    assert found.undefined["n_met_mae"] == "no post was judged by every criterion"
    assert found.undefined["episode/recall"] == "no pairs"


def test_a_pair_of_a_post_has_its_most_probable_sentence_and_is_met_if_one_is():
    rows = [("p2", "A", 0, 0.7), ("p1", "A", 0, 0.2), ("p1", "A", 1, 0.1), ("p1", "B", 0, 0.4)]
    rows += [("p2", "A", 0, 0.3), ("p2", "B", 0, 0.5)]  # a sentence of each post is unknown for B
    pairs = PairPredictions(
        labels=np.asarray([row[2] for row in rows]),
        probabilities=np.asarray([row[3] for row in rows]),
        criterion_ids=np.asarray([row[1] for row in rows]),
        group_ids=np.asarray([f"author of {row[0]}" for row in rows]),
    )
    found, post_ids = pairs_of_posts(pairs, np.asarray([row[0] for row in rows]))
    assert post_ids.tolist() == ["p1", "p2"]
    assert found.criterion_ids.tolist() == ["A", "A"]
    assert found.labels.tolist() == [1, 0]
    assert found.probabilities.tolist() == [0.2, 0.7]
    assert found.group_ids.tolist() == ["author of p1", "author of p2"]
