from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from psy_agents_noaug.metrics.jackknife import (
    MAX_BLOCKS,
    Estimate,
    add_variances,
    effective_groups,
    intervals,
    jackknife,
    jackknife_blocks,
    leave_blocks_out,
    logit_interval,
    share_interval,
    student_interval,
)


def means_without_one(values):
    total, n = values.sum(), len(values)
    return np.concatenate([[total / n], (total - values) / (n - 1)])


def test_the_variance_of_a_mean_is_the_textbook_one_and_its_bias_is_nothing():
    values = np.random.default_rng(0).random(25)
    found = jackknife(means_without_one(values))
    assert (found.value, found.corrected) == pytest.approx((values.mean(),) * 2)
    assert found.variance == pytest.approx(values.var(ddof=1) / 25)


def test_the_bias_of_the_plug_in_variance_is_removed_exactly():
    values = np.random.default_rng(1).random(12)
    without = [np.delete(values, k).var() for k in range(12)]
    found = jackknife(np.array([values.var(), *without]))
    assert found.corrected == pytest.approx(values.var(ddof=1))


def test_the_interval_of_a_mean_without_bounds_is_students():
    values = np.random.default_rng(2).normal(size=400)
    found = student_interval(jackknife(means_without_one(values)))
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-3)


def test_degrees_of_freedom_are_those_of_the_groups_that_matter():
    """Of 400 groups 8 carry all the variance: their count is what is uncertain."""
    values = np.zeros(400)
    values[:8] = 1.0
    few = jackknife(means_without_one(values))
    many = jackknife(means_without_one(np.random.default_rng(3).normal(size=400)))
    assert 4 < few.degrees_of_freedom < 20 < 200 < many.degrees_of_freedom
    assert jackknife(means_without_one(np.array([0.0, 1.0]))).degrees_of_freedom == 1


def test_groups_of_unequal_size_tell_as_much_as_fewer_equal_ones():
    assert effective_groups(np.repeat(["a", "b", "c"], 5)) == 3
    assert effective_groups(np.repeat(["a", "b", "c"], [8, 1, 1])) == pytest.approx(100 / 66)
    assert effective_groups(np.array([])) == 0
    assert effective_groups(np.arange(2000)) == MAX_BLOCKS


def test_a_ratio_has_one_degree_of_freedom_less_than_there_are_equal_groups():
    samples = np.array([0.6, 0.5, 0.7, 0.6, 0.65, 0.2])
    ratio = intervals({"f1": samples}, ratios={"f1": 5.0}).values
    expected = logit_interval(replace(jackknife(samples), degrees_of_freedom=4.0))
    assert (ratio["f1_ci_low"], ratio["f1_ci_high"]) == expected
    skewed = intervals({"f1": samples}, ratios={"f1": 2.5}).values
    assert skewed["f1_ci_low"] < ratio["f1_ci_low"] < ratio["f1_ci_high"] < skewed["f1_ci_high"]


def test_sums_of_variances_have_the_degrees_of_freedom_of_welch():
    one, other = np.random.default_rng(4).normal(size=(2, 6)) * [[1.0], [3.0]]
    welch = stats.ttest_ind(one, other[:4], equal_var=False)
    total, df = add_variances([(one.var(ddof=1) / 6, 5), (other[:4].var(ddof=1) / 4, 3)])
    assert df == pytest.approx(welch.df)
    assert (one.mean() - other[:4].mean()) / total**0.5 == pytest.approx(welch.statistic)
    assert add_variances([(0.0, 3), (1.0, 7)]) == (1.0, 7.0)


def test_the_logit_interval_is_centred_on_the_corrected_figure_and_stays_inside():
    estimate = Estimate(value=0.5, corrected=0.4, variance=0.01, degrees_of_freedom=1e9)
    low, high = logit_interval(estimate)
    logits = np.log(np.array([low, 0.4, high]) / (1 - np.array([low, 0.4, high])))
    half_width = 1.959964 * 0.1 / (0.4 * 0.6)
    np.testing.assert_allclose(np.diff(logits), half_width, rtol=1e-5)
    low, high = logit_interval(Estimate(0.98, 1.3, 0.05, 3.0))
    assert 0 <= low < 0.98 < high <= 1


def test_an_interval_holds_its_figure_even_where_the_bias_is_large():
    low, high = logit_interval(Estimate(0.119, 0.09, 1e-5, 50.0))
    assert low < 0.09 < high == 0.119


def test_a_figure_at_the_end_of_its_range_or_without_variation_has_too_few():
    assert str(logit_interval(Estimate(1.0, 1.0, 0.0, 9.0))).startswith("too few")
    assert str(logit_interval(Estimate(0.5, 0.5, 0.0, 9.0))).startswith("too few")
    assert str(student_interval(Estimate(0.5, 0.5, 0.0, 9.0))).startswith("too few")
    assert str(jackknife(np.array([0.5, np.nan, 0.4]))).startswith("too few: without one of 1")
    assert jackknife(np.array([np.nan, 0.5, 0.4])) == "the figure is undefined"


def share(found, n):
    """A share of one item a group."""
    return means_without_one(np.repeat([1.0, 0.0], [found, n - found]))


def test_the_interval_of_a_share_at_its_ends_is_clopper_and_pearsons():
    assert share_interval(np.array([1.0]), 1) == pytest.approx((0.025, 1.0))
    assert share_interval(share(0, 20), 20) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    found = intervals({"share": np.array([1.0, 1.0, 1.0])}, shares={"share": 2}).values
    assert found["share_ci_low"] == pytest.approx(0.025**0.5)


@pytest.mark.parametrize(("found", "n"), [(199, 200), (39, 40), (11, 12), (1, 57), (30, 60)])
def test_the_interval_of_a_share_of_independent_items_is_close_to_the_exact_one(found, n):
    exact = stats.binomtest(found, n).proportion_ci(0.95, method="exact")
    low, high = share_interval(share(found, n), n)
    # A little wider, as the variance is estimated.
    assert exact.low - 0.08 < low <= exact.low + 0.002
    assert exact.high - 0.002 <= high < exact.high + 0.08


def test_the_interval_of_a_share_counts_alike_items_of_a_group_once():
    groups = np.repeat([1.0, 0.0], [12, 8])
    alone = share_interval(means_without_one(groups), 20)
    # Ten alike items a group change neither the share nor its spread over groups.
    tenfold = share_interval(means_without_one(groups.repeat(10).reshape(20, 10).mean(axis=1)), 20)
    assert tenfold == pytest.approx(alone)


def test_every_group_is_a_block_until_there_are_too_many():
    ids = np.array(["b", "a", "b", "c"])
    blocks, n = jackknife_blocks(ids)
    assert n == 3
    assert blocks[0] == blocks[2]
    many = np.array([f"p{k}" for k in range(3 * MAX_BLOCKS) for _ in range(2)])
    blocks, n = jackknife_blocks(many)
    assert n == MAX_BLOCKS
    assert set(np.bincount(blocks)) == {6}
    assert (blocks[::2] == blocks[1::2]).all()


def test_sums_without_a_block_are_those_of_the_others():
    counts = np.arange(12.0).reshape(1, 4, 3)
    found = leave_blocks_out(counts)
    np.testing.assert_array_equal(found[0, 0], counts[0].sum(axis=0))
    np.testing.assert_array_equal(found[0, 2], counts[0, [0, 2, 3]].sum(axis=0))
