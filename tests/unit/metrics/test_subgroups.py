import numpy as np
import pytest

from psy_agents_noaug.metrics.classification import PairPredictions, classification_metrics
from psy_agents_noaug.metrics.subgroups import length_groups, met_groups, subgroup_metrics

SCORED = {"criteria": ["A.1"], "thresholds": {"A.1": 0.5}}


def drawn(n=60):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=n)
    return PairPredictions(
        labels=labels,
        probabilities=np.clip(0.3 + 0.4 * labels + 0.3 * rng.normal(size=n), 0, 1),
        criterion_ids=np.full(n, "A.1"),
        group_ids=np.array([f"p{k}" for k in range(n)]),
    )


def test_a_subgroup_has_the_figures_of_its_pairs_alone():
    pairs = drawn()
    values = np.array(["women", "men", "men"] * 20)
    found = subgroup_metrics(pairs, values, **SCORED).values
    own = classification_metrics(pairs.take(values == "men"), **SCORED).values
    assert found["men/n_pairs"] == 40
    assert found["men/f1_micro"] == own["f1_micro"]
    assert found["men/f1_micro_ci_low"] < own["f1_micro"] < found["men/f1_micro_ci_high"]
    assert found["women/n_groups"] == 20


def test_values_that_look_alike_stay_apart():
    found = subgroup_metrics(drawn(), np.array(["<30", ">30", ">30"] * 20), **SCORED).values
    assert (found["<30/n_pairs"], found[">30/n_pairs"]) == (20, 40)


def test_a_single_subgroup_is_the_whole_split_and_not_reported():
    assert subgroup_metrics(drawn(), np.full(60, "all"), **SCORED).values == {}


def test_words_of_chinese_are_counted_singly():
    assert length_groups(["我睡不好" * 15]).tolist() == ["51-100 words"]


@pytest.mark.parametrize(
    ("n_words", "name"),
    [(1, "1-50 words"), (50, "1-50 words"), (51, "51-100 words"), (401, "over 400 words")],
)
def test_texts_are_grouped_by_their_words(n_words, name):
    assert length_groups([" ".join(["word"] * n_words)]).tolist() == [name]


def test_posts_are_grouped_by_their_met_criteria():
    found = met_groups(np.array([0, 1, 2, 3, 4, 9]))
    assert found.tolist() == ["none met", "1 met", "2-3 met", "2-3 met", *["4 or more met"] * 2]
