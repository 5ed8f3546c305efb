from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from psy_agents_noaug.metrics.jackknife import jackknife, logit_interval
from psy_agents_noaug.metrics.joint import (
    JointDecisions,
    ReducedProbabilities,
    faithfulness,
    joint_metrics,
)


def make(rows, criteria=None, posts=None) -> JointDecisions:
    """From (label, decision, evidence predicted, evidence right) a pair."""
    columns = np.asarray(rows, dtype=bool).reshape(-1, 4).T
    names = criteria or ["A"] * len(rows)
    groups = posts or [f"p{at}" for at in range(len(rows))]
    return JointDecisions(*columns, np.asarray(names), np.asarray(groups))


def judge(decisions: JointDecisions, criteria=("A",)):
    return joint_metrics(decisions, criteria=list(criteria), with_interval=True)


WORKED = [
    (1, 1, 1, 1),  # right label, right evidence
    (1, 1, 1, 0),  # right label, wrong evidence
    (1, 1, 0, 0),  # right label, no evidence
    (1, 0, 1, 1),  # missed label, right evidence
    (0, 1, 1, 0),
    (0, 0, 1, 0),
    (0, 0, 0, 0),
]


def test_a_positive_counts_only_with_right_label_and_right_evidence():
    values = judge(make(WORKED)).values
    assert values["supported_precision"] == pytest.approx(1 / 4)
    assert values["supported_recall"] == pytest.approx(1 / 4)
    assert values["supported_f1"] == pytest.approx(2 / 8)
    assert values["positive_without_evidence"] == pytest.approx(1 / 4)
    assert values["evidence_without_positive"] == pytest.approx(2 / 5)


def test_means_are_over_criteria_with_a_met_pair():
    rows = [*WORKED, (1, 1, 1, 1), (0, 1, 1, 0)]
    metrics = judge(make(rows, criteria=[*"AAAAAAA", "B", "C"]), "ABC")
    assert metrics.values["supported_f1"] == pytest.approx((2 / 8 + 1) / 2)
    assert metrics.values["supported_f1_micro"] == pytest.approx(2 * 2 / (6 + 5))
    assert metrics.values["per_criterion/C/supported_f1"] is None
    assert metrics.undefined["per_criterion/C/supported_f1"] == "no met pair"


def test_shares_of_nothing_are_undefined_with_a_reason():
    metrics = judge(make([(0, 0, 0, 0), (0, 0, 0, 0)]))
    for name in ("supported_f1", "positive_without_evidence", "evidence_without_positive"):
        assert metrics.values[name] is None
        assert metrics.undefined[name]


def test_the_interval_is_that_of_the_figures_without_each_author():
    rng = np.random.default_rng(2)
    rows = [tuple(rng.random(4) < (0.6, 0.6, 0.8, 0.7)) for _ in range(40)]
    authors = [f"p{at // 2:02d}" for at in range(40)]
    got = judge(make(rows, posts=authors)).values
    values = [got["supported_f1"]]
    for name in np.unique(authors):
        kept = [row for row, author in zip(rows, authors, strict=True) if author != name]
        values.append(judge(make(kept)).values["supported_f1"])
    expected = logit_interval(replace(jackknife(np.array(values)), degrees_of_freedom=19))
    found = got["supported_f1_ci_low"], got["supported_f1_ci_high"]
    assert found == pytest.approx(expected)
    assert found[0] < got["supported_f1"] < found[1]


def reduced(full, without, alone, *, without_random=None, random_alone=None):
    n = len(full)
    arrays = {
        "full": full,
        "without": without,
        "alone": alone,
        "without_random": full if without_random is None else without_random,
        "random_alone": full if random_alone is None else random_alone,
    }
    return ReducedProbabilities(
        **{name: np.asarray(values, dtype=float) for name, values in arrays.items()},
        group_ids=np.array([f"p{at}" for at in range(n)]),
    )


def test_faithfulness_is_the_mean_fall_of_the_probability():
    values = faithfulness(reduced([0.9, 0.7], [0.3, 0.5], [0.8, 0.9])).values
    assert values["comprehensiveness"] == pytest.approx(0.4)
    assert values["sufficiency"] == pytest.approx(-0.05)
    nothing = faithfulness(reduced([], [], []))
    assert nothing.values["comprehensiveness"] is None
    assert "no pair" in nothing.undefined["sufficiency_ci_low"]


def test_faithfulness_is_measured_against_random_spans_and_its_interval_is_students():
    rng = np.random.default_rng(0)
    full, without = 0.9 - 0.1 * rng.random(30), 0.4 + 0.2 * rng.random(30)
    found = reduced(full, without, full, without_random=full - 0.1)
    values = faithfulness(found).values
    assert values["comprehensiveness_random"] == pytest.approx(0.1)
    gain = full - without - 0.1
    assert values["comprehensiveness_gain"] == pytest.approx(gain.mean())
    expected = stats.ttest_1samp(gain, 0.0).confidence_interval(0.95)
    low, high = (values[f"comprehensiveness_gain_ci_{end}"] for end in ("low", "high"))
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=0.02)
