import numpy as np
import pytest
from sklearn.metrics import f1_score as sklearn_f1

from psy_agents_noaug.metrics.ratios import divide, f1_score


def test_f1_of_counts_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels, decisions = rng.integers(2, size=(2, 20, 30))

    found = f1_score((labels & decisions).sum(axis=1), decisions.sum(axis=1), labels.sum(axis=1))

    expected = [sklearn_f1(y, d) for y, d in zip(labels, decisions, strict=True)]
    assert found.tolist() == expected


def test_f1_with_found_gold_items_is_the_harmonic_mean_of_precision_and_recall():
    # Two of four predictions are right, and they match three of four gold spans.
    assert f1_score(2, 4, 4, found=3) == pytest.approx(2 * 0.5 * 0.75 / 1.25)


@pytest.mark.parametrize("found", [None, 0])
def test_f1_is_0_where_nothing_is_right_and_undefined_without_gold(found):
    assert f1_score(0, 0, 3, found=found) == f1_score(0, 2, 3, found=found) == 0
    assert np.isnan(f1_score(0, 2, 0, found=found))


def test_a_ratio_is_nan_where_the_denominator_is_0():
    np.testing.assert_array_equal(divide([[1, 2], [3, 4]], [[2], [0]]), [[0.5, 1], [np.nan] * 2])
