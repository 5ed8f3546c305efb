"""Agreement of annotators, against the libraries that have it and by hand."""

import numpy as np
import pytest

from psy_agents_noaug.metrics.agreement import AnnotatedPairs, agreement_metrics, cohen_kappas

SEEN = 0.6


def pairs_of(labels, *, groups=None, evidence=()) -> AnnotatedPairs:
    labels = np.asarray(labels, dtype=np.int64)
    groups = [f"g{row}" for row in range(len(labels))] if groups is None else groups
    return AnnotatedPairs(labels, np.array(["A.1"] * len(labels)), np.array(groups), evidence)


def figures(labels, **more):
    found = agreement_metrics(pairs_of(labels, **more), criteria=["A.1"])
    return {key.removeprefix("per_criterion/A.1/"): value for key, value in found.values.items()}


def random_labels(seed, *, annotators=4, complete=False):
    rng = np.random.default_rng(seed)
    truth = rng.random(60) < 0.3
    flipped = rng.random((60, annotators)) < 0.2
    labels = (truth[:, None] ^ flipped).astype(np.int64)
    return labels if complete else np.where(rng.random(labels.shape) < SEEN, labels, -1)


@pytest.mark.parametrize("seed", range(5))
def test_alpha_with_missing_labels_is_that_of_krippendorff(seed):
    library = pytest.importorskip("krippendorff")
    labels = random_labels(seed)
    data = np.where(labels < 0, np.nan, labels).T
    expected = library.alpha(data, level_of_measurement="nominal")
    assert figures(labels)["alpha"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("annotators", [2, 3, 5])
def test_fleiss_kappa_is_that_of_statsmodels(annotators):
    library = pytest.importorskip("statsmodels.stats.inter_rater")
    labels = random_labels(7, annotators=annotators, complete=True)
    table, _ = library.aggregate_raters(labels)
    expected = library.fleiss_kappa(table)
    assert figures(labels)["fleiss_kappa"] == pytest.approx(expected, abs=1e-12)


def test_cohen_kappa_is_the_mean_of_scikit_learns_over_what_both_have_seen():
    from sklearn.metrics import cohen_kappa_score

    labels = random_labels(3, annotators=3)
    expected = []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        both = (labels[:, one] >= 0) & (labels[:, other] >= 0)
        expected.append(cohen_kappa_score(labels[both, one], labels[both, other]))
        found = cohen_kappas(pairs_of(labels), n_annotators=3)[one, other]
        assert found == (both.sum(), pytest.approx(expected[-1]))
    assert figures(labels)["cohen_kappa"] == pytest.approx(np.mean(expected))


def test_the_example_of_the_guide_worked_by_hand():
    # Ten posts, two annotators; the second has not seen the last two.
    first = [1, 1, 1, 0, 0, 0, 0, 0, 1, 0]
    second = [1, 1, 0, 1, 0, 0, 0, 0, -1, -1]
    found = figures(list(zip(first, second, strict=True)))
    assert (found["n_pairs"], found["n_disagreements"]) == (8, 2)
    assert found["agreement"] == pytest.approx(6 / 8)
    assert found["positive_agreement"] == pytest.approx(2 * 2 / 6)
    # Both say met of 3 of 8: chance agrees on (3/8)^2 + (5/8)^2 = 34/64.
    assert found["cohen_kappa"] == pytest.approx((6 / 8 - 34 / 64) / (1 - 34 / 64))
    assert found["fleiss_kappa"] == pytest.approx((6 / 8 - 34 / 64) / (1 - 34 / 64))
    # 16 labels, 6 met and 10 not: 2 pairs disagree, so 1 - 4 * 15 / (2 * 6 * 10).
    assert found["alpha"] == pytest.approx(0.5)


def test_pairs_that_one_annotator_alone_has_seen_count_for_nothing():
    labels = random_labels(1)
    alone = np.full((20, 4), -1)
    alone[:, 2] = 1
    before, after = figures(labels), figures(np.concatenate([labels, alone]))
    assert before == pytest.approx(after, nan_ok=True)


def test_fleiss_kappa_is_over_the_pairs_with_the_most_common_number_of_labels():
    three = random_labels(2, annotators=3, complete=True)
    two = three[:10].copy()
    two[:, 0] = -1
    found = figures(np.concatenate([three, two]))
    assert (found["fleiss_n_annotators"], found["fleiss_n_pairs"]) == (3, 60)
    assert found["fleiss_kappa"] == pytest.approx(figures(three)["fleiss_kappa"])


@pytest.mark.parametrize(
    ("labels", "reason"),
    [([[0, 0], [0, 0]], "all labels are the same"), ([[1, -1], [-1, 0]], "no pair was seen")],
)
def test_what_is_undefined_has_a_reason(labels, reason):
    found = agreement_metrics(pairs_of(labels), criteria=["A.1"])
    for name in ("alpha", "cohen_kappa", "fleiss_kappa"):
        assert found.values[f"per_criterion/A.1/{name}"] is None
        assert found.undefined[f"per_criterion/A.1/{name}"].startswith(reason)
    assert found.values["alpha"] is None


def test_evidence_is_compared_in_characters_and_in_whole_spans():
    evidence = [{0: [(0, 10)], 1: [(5, 15)]}, {0: [(0, 4), (8, 12)], 1: [(8, 12)]}, {0: [(0, 3)]}]
    found = figures([[1, 1], [1, 1], [1, 1]], evidence=evidence)
    # Shared 5 of 20 characters, then 4 of 12; one exact span of five.
    assert found["evidence_char_f1"] == pytest.approx(2 * 9 / 32)
    assert found["evidence_exact_f1"] == pytest.approx(2 * 1 / 5)
    assert found["evidence_n"] == 2


def test_the_interval_of_alpha_ends_where_alpha_can():
    few = figures([[1, 1], [1, 0], [0, 0]])
    assert few["alpha_ci_low"] == -1
    assert few["alpha"] < few["alpha_ci_high"] <= 1


def test_the_interval_of_alpha_is_over_groups_and_holds_the_figure():
    labels = random_labels(4, annotators=3)
    single = figures(labels)
    assert single["alpha_ci_low"] < single["alpha"] < single["alpha_ci_high"] <= 1
    # The same pairs twice in each group tell no more than once.
    names = [f"g{row}" for row in range(len(labels))]
    twice = figures(np.concatenate([labels, labels]), groups=[*names, *names])
    width = single["alpha_ci_high"] - single["alpha_ci_low"]
    assert twice["alpha_ci_high"] - twice["alpha_ci_low"] == pytest.approx(width, rel=0.05)
