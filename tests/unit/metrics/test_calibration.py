import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from psy_agents_noaug.metrics.calibration import (
    Calibration,
    calibration_metrics,
    cross_fitted,
    fit_calibration,
)
from psy_agents_noaug.metrics.classification import PairPredictions

CRITERIA = ("A.1", "A.2")


def drawn(n, *, slope=1.0, shift=(0.0, 0.0), seed=0):
    """Pairs whose true log-odds are `slope` times those of the probabilities, plus the shift."""
    rng = np.random.default_rng(seed)
    column = np.arange(n) % 2
    odds = rng.normal(-1.5, 1.5, size=n)
    labels = rng.random(n) < expit(slope * odds + np.asarray(shift)[column])
    return PairPredictions(
        labels=labels.astype(np.int64),
        probabilities=expit(odds),
        criterion_ids=np.array(CRITERIA)[column],
        group_ids=np.array([f"p{k // 4}" for k in range(n)]),
    )


def test_a_known_distortion_is_found_for_each_criterion():
    found = fit_calibration(drawn(20000, slope=0.5, shift=(-1.0, 1.0)), criteria=CRITERIA)
    assert found.slope == pytest.approx(0.5, abs=0.03)
    assert found.intercepts["A.1"] == pytest.approx(-1.0, abs=0.1)
    assert found.intercepts["A.2"] == pytest.approx(1.0, abs=0.1)


def test_the_fit_is_the_maximum_of_its_penalised_likelihood():
    pairs = drawn(60, slope=0.7)
    found = fit_calibration(pairs, criteria=CRITERIA)
    odds, column = logit(pairs.probabilities), np.array([c == "A.2" for c in pairs.criterion_ids])
    n_met, n_unmet = pairs.labels.sum(), (1 - pairs.labels).sum()
    target = np.where(pairs.labels == 1, (n_met + 1) / (n_met + 2), 1 / (n_unmet + 2))

    def loss(values):
        slope, common, own = values[0], values[1], values[2:]
        z = slope * odds + common + own[column.astype(int)]
        likelihood = target * np.logaddexp(0, -z) + (1 - target) * np.logaddexp(0, z)
        return likelihood.sum() + (own**2).sum() / 2 + (slope / 10) ** 2 / 2

    best = minimize(loss, [1.0, 0.0, 0.0, 0.0], tol=1e-12).x
    assert found.slope == pytest.approx(best[0], abs=1e-4)
    assert found.intercepts["A.1"] == pytest.approx(best[1] + best[2], abs=1e-4)


def test_calibrated_probabilities_keep_their_ranks_and_are_better():
    val, test = (drawn(4000, slope=0.4, shift=(1.0, -1.0), seed=seed) for seed in (1, 2))
    calibrated = fit_calibration(val, criteria=CRITERIA).apply(test)
    own = test.criterion_ids == "A.1"
    order = np.argsort(test.probabilities[own])
    assert (np.diff(calibrated.probabilities[own][order]) >= 0).all()
    prevalence = np.full(4000, test.labels.mean())
    before, after = (calibration_metrics(p, reference=prevalence) for p in (test, calibrated))
    assert after["brier"] < before["brier"]
    assert after["brier_skill"] > 0 > before["brier_skill"]
    assert abs(after["calibration_slope"] - 1) < 0.1 < abs(before["calibration_slope"] - 1)
    assert after["ece"] < before["ece"]


def test_one_class_or_reversed_ranks_are_left_as_they_are():
    pairs = drawn(50)
    identity = Calibration(1.0, {"A.1": 0.0, "A.2": 0.0})
    for labels in (np.zeros(50, int), np.ones(50, int), (pairs.probabilities < 0.2).astype(int)):
        other = PairPredictions(labels, pairs.probabilities, pairs.criterion_ids, pairs.group_ids)
        assert fit_calibration(other, criteria=CRITERIA) == identity
    np.testing.assert_allclose(identity.apply(pairs).probabilities, pairs.probabilities)


def test_slope_and_intercept_are_those_of_the_maximum_likelihood():
    pairs = drawn(300, slope=0.6, shift=(0.5, 0.5), seed=3)
    found = calibration_metrics(pairs, reference=np.full(300, 0.5))
    odds, labels = logit(pairs.probabilities), pairs.labels

    def loss(z):
        return (np.logaddexp(0, z) - labels * z).sum()

    both = minimize(lambda v: loss(v[0] * odds + v[1]), [1.0, 0.0], tol=1e-12).x
    shift = minimize(lambda v: loss(odds + v[0]), [0.0], tol=1e-12).x
    assert found["calibration_slope"] == pytest.approx(both[0], abs=1e-4)
    assert found["calibration_intercept"] == pytest.approx(shift[0], abs=1e-4)


def test_exact_probabilities_have_the_error_that_is_expected_of_them():
    found = [
        calibration_metrics(drawn(200, seed=seed), reference=np.full(200, 0.2))
        for seed in range(40)
    ]
    measured = np.mean([one["ece"] for one in found])
    expected = np.mean([one["ece_if_calibrated"] for one in found])
    assert measured == pytest.approx(expected, rel=0.1)
    assert expected > 0.03  # of a sample of this size even exact probabilities have an error


def test_too_few_events_have_no_slope_and_no_pairs_no_figure():
    pairs = drawn(12)
    metrics = calibration_metrics(pairs, reference=np.full(12, 0.2))
    assert str(metrics["calibration_slope"]).startswith("too few")
    empty = PairPredictions(*(np.array([]) for _ in range(4)))
    assert set(calibration_metrics(empty, reference=np.array([])).values()) == {"no pairs"}


def test_one_group_alone_cannot_be_cross_fitted():
    pairs = drawn(40)
    alone = PairPredictions(
        pairs.labels, pairs.probabilities, pairs.criterion_ids, np.full(40, "author")
    )
    assert cross_fitted(alone, criteria=CRITERIA) is None


def test_cross_fitted_probabilities_do_not_know_their_own_labels():
    """Labels of one group are turned around: its own probabilities must not follow."""
    pairs = drawn(80, seed=5)
    group = pairs.group_ids == pairs.group_ids[0]
    turned = PairPredictions(
        np.where(group, 1 - pairs.labels, pairs.labels),
        pairs.probabilities,
        pairs.criterion_ids,
        pairs.group_ids,
    )
    one, other = (cross_fitted(p, criteria=CRITERIA).probabilities for p in (pairs, turned))
    np.testing.assert_array_equal(one[group], other[group])
    assert (one[~group] != other[~group]).any()
