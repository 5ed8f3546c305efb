"""Curves agree with scikit-learn, and their bands with the intervals of the metrics."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from psy_agents_noaug.metrics.classification import PairPredictions, classification_metrics
from psy_agents_noaug.metrics.curves import (
    Ranking,
    band,
    macro_f1_at,
    operating_points,
    reliability,
)
from psy_agents_noaug.metrics.intervals import classification_samples


@pytest.fixture
def pairs():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 400) * rng.integers(0, 2, 400)
    scores = np.round(np.clip(rng.normal(0.3 + 0.3 * labels, 0.2), 0, 1), 2)  # with ties
    criteria = np.array(["A.1", "A.2"])[rng.integers(0, 2, 400)]
    groups = np.array([f"g{k}" for k in rng.integers(0, 60, 400)])
    return PairPredictions(labels, scores, criteria, groups)


def ranking(pairs):
    return Ranking(pairs.labels, pairs.probabilities, pairs.group_ids)


def test_the_area_under_the_curves_is_that_of_the_metrics(pairs):
    points = operating_points(ranking(pairs))
    area = np.trapezoid(np.append(0, points.recall), np.append(0, points.false_positive_rate))
    assert area == pytest.approx(roc_auc_score(pairs.labels, pairs.probabilities), abs=1e-12)
    steps = (np.diff(points.recall, prepend=0) * points.precision).sum()
    assert steps == pytest.approx(
        average_precision_score(pairs.labels, pairs.probabilities), abs=1e-12
    )
    assert (points.recall[-1], points.false_positive_rate[-1]) == (1, 1)


def test_fewer_points_keep_the_ends_and_lie_on_the_curve(pairs):
    every, few = (operating_points(ranking(pairs), max_points=n) for n in (None, 10))
    assert len(few.thresholds) <= 10
    assert few.recall[-1] == 1
    assert few.thresholds[0] == every.thresholds[0]
    assert set(zip(few.recall, few.precision, strict=True)) <= set(
        zip(every.recall, every.precision, strict=True)
    )


def test_a_band_has_the_intervals_of_the_metrics_at_the_threshold_of_a_point(pairs):
    of = pairs.take(pairs.criterion_ids == "A.1")
    found = band(ranking(of), max_points=8)
    for point, threshold in enumerate(found.points.thresholds):
        samples = classification_samples(
            of, criteria=["A.1"], thresholds={"A.1": float(threshold)}
        ).intervals()
        for name, ends in (("recall", found.recall), ("precision", found.precision)):
            for end, value in zip(("low", "high"), ends[:, point], strict=True):
                expected = samples.values[f"per_criterion/A.1/{name}_ci_{end}"]
                assert np.isnan(value) if expected is None else value == pytest.approx(expected)


def test_macro_f1_at_a_threshold_is_that_of_the_metrics(pairs):
    thresholds = np.array([0.2, 0.45, 0.9, 2.0])
    found = macro_f1_at(pairs, criteria=["A.1", "A.2", "A.3"], thresholds=thresholds)
    for threshold, value in zip(thresholds, found, strict=True):
        metrics = classification_metrics(
            pairs,
            criteria=["A.1", "A.2", "A.3"],
            thresholds=dict.fromkeys(["A.1", "A.2", "A.3"], threshold),
        )
        assert value == pytest.approx(metrics.values["f1_macro"])


def test_the_bins_of_reliability_make_up_the_calibration_error(pairs):
    found = reliability(pairs)
    assert found.n_pairs.sum() == 400
    error = (found.n_pairs * np.abs(found.share - found.probability)).sum() / 400
    metrics = classification_metrics(
        pairs, criteria=["A.1", "A.2"], thresholds={"A.1": 0.5, "A.2": 0.5}
    )
    assert error == pytest.approx(metrics.values["ece"])
    inside = (found.interval[0] <= found.share) & (found.share <= found.interval[1])
    assert (inside | np.isnan(found.interval[0])).all()


def test_one_class_alone_has_no_curve():
    ones = np.ones(3, dtype=np.int64)
    assert not Ranking(ones, ones.astype(float), np.array(["a", "b", "c"])).has_both_classes
