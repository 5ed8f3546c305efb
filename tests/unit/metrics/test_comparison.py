import numpy as np
import pytest
from scipy import stats

from psy_agents_noaug.metrics.comparison import compare, difference_of, holm, mean_interval
from psy_agents_noaug.metrics.jackknife import jackknife
from psy_agents_noaug.metrics.lines import comparable_metrics


def line(post, criterion, *, label=0, decision=0, evidence=None, gold=()):
    own = {
        "example_id": f"{post}/{criterion}",
        "post_id": post,
        "criterion_id": criterion,
        "label": label,
        "decision": decision,
    }
    if evidence is not None:
        own["evidence"] = [{"right": right} for right in evidence]
        own["gold_evidence"] = [{"found": found} for found in gold]
    return own


def decisions(rng, *, accuracy, n_posts=40):
    """A label a pair, the same for all systems, and decisions that are right so often."""
    labels = np.random.default_rng(0).integers(0, 2, size=(n_posts, 2))
    right = rng.random((n_posts, 2)) < accuracy
    return [
        line(
            f"p{post}",
            f"A.{c}",
            label=int(labels[post, c]),
            decision=int(labels[post, c] == right[post, c]),
        )
        for post in range(n_posts)
        for c in range(2)
    ]


def trainings(seed, *, accuracy, n=3):
    rng = np.random.default_rng(seed)
    return [decisions(rng, accuracy=accuracy) for _ in range(n)]


def f1_macro(lines):
    from sklearn.metrics import f1_score

    criteria = sorted({one["criterion_id"] for one in lines})
    own = [[one for one in lines if one["criterion_id"] == name] for name in criteria]
    return np.mean([f1_score([x["label"] for x in o], [x["decision"] for x in o]) for o in own])


def test_figures_are_the_means_over_trainings_of_what_scikit_learn_says():
    first, second = trainings(1, accuracy=0.8), trainings(2, accuracy=0.7)
    found = compare("f1_macro", first, second, n_samples=200, seed=0)
    assert found.first == pytest.approx(np.mean([f1_macro(lines) for lines in first]))
    assert found.second == pytest.approx(np.mean([f1_macro(lines) for lines in second]))
    assert found.difference == pytest.approx(found.first - found.second)
    assert found.n_posts == 40


def test_lines_of_held_out_criteria_are_in_no_comparison():
    first, second = trainings(1, accuracy=0.8), trainings(2, accuracy=0.7)
    extra = [line("p1", "A.8", label=1, decision=1) | {"held_out": True}]
    longer = [lines + extra for lines in first]
    options = {"n_samples": 50, "seed": 0}
    assert compare("f1_macro", longer, second, **options) == compare(
        "f1_macro", first, second, **options
    )
    assert mean_interval("f1_macro", longer) == mean_interval("f1_macro", first)


def test_a_system_does_not_differ_from_itself():
    same = trainings(1, accuracy=0.8)
    found = compare("f1_macro", same, same, n_samples=200, seed=0)
    assert (found.difference, found.p_value_of_these_weights) == (0.0, 1.0)
    assert found.p_value == 1.0
    assert found.ci_low == -found.ci_high < 0


def test_a_large_difference_is_significant_and_its_interval_excludes_zero():
    found = compare(
        "f1_macro", trainings(1, accuracy=0.95), trainings(2, accuracy=0.6), n_samples=500, seed=0
    )
    assert found.p_value_of_these_weights == pytest.approx(1 / 501)
    assert found.p_value < 0.001
    assert 0 < found.ci_low < found.difference < found.ci_high


def test_the_test_is_symmetric():
    first, second = trainings(1, accuracy=0.8), trainings(2, accuracy=0.75)
    one = compare("f1_macro", first, second, n_samples=300, seed=0)
    other = compare("f1_macro", second, first, n_samples=300, seed=0)
    assert one.difference == -other.difference
    assert one.p_value == other.p_value
    assert one.p_value_of_these_weights == pytest.approx(other.p_value_of_these_weights)
    assert one.ci_low == -other.ci_high


def test_equal_systems_are_found_different_as_often_as_chance_says():
    values = [
        compare(
            "f1_macro",
            trainings(2 * k + 1, accuracy=0.75),
            trainings(2 * k + 2, accuracy=0.75),
            n_samples=100,
            seed=k,
        ).p_value_of_these_weights
        for k in range(60)
    ]
    assert 0.0 <= np.mean(np.asarray(values) <= 0.1) <= 0.22
    assert 0.35 <= np.mean(values) <= 0.65


def test_the_standard_error_is_of_posts_and_of_the_seeds_of_both():
    """Welch's test of the seeds alone, where all posts agree and seeds do not."""
    rng = np.random.default_rng(3)
    first, second = (
        [decisions(rng, accuracy=accuracy) for accuracy in accuracies]
        for accuracies in ((0.95, 0.8, 0.9), (0.7, 0.75, 0.6))
    )
    found = compare("f1_macro", first, second, n_samples=10, seed=0)
    values = [[f1_macro(lines) for lines in system] for system in (first, second)]
    samples = [[_mean_without(system, post) for system in (first, second)] for post in range(40)]
    without = np.array([one - other for one, other in samples])
    posts = 39 / 40 * ((without - without.mean()) ** 2).sum()
    seeds = sum(np.var(own, ddof=1) / 3 for own in values)
    total = posts + seeds
    squares = (without - without.mean()) ** 2
    spread = (squares**2).sum() - squares.sum() ** 2 / 40
    df_of_posts = min(max(2 * squares.sum() ** 2 / spread, 4), 39)
    parts = [(posts, df_of_posts), *((np.var(own, ddof=1) / 3, 2) for own in values)]
    df = total**2 / sum(variance**2 / own for variance, own in parts)
    half_width = stats.t.ppf(0.975, df) * np.sqrt(total)
    assert (found.ci_high - found.ci_low) / 2 == pytest.approx(half_width)
    assert found.p_value == pytest.approx(2 * stats.t.sf(found.difference / np.sqrt(total), df))


def _mean_without(system, post):
    return np.mean([f1_macro([x for x in lines if x["post_id"] != f"p{post}"]) for lines in system])


def test_a_sample_in_which_nothing_varies_has_no_p_value():
    """Three posts, all right against all wrong: the smallest p-value of their swaps is 1/4."""
    good = [line(f"p{k}", "A.1", label=k % 2, decision=k % 2) for k in range(3)]
    bad = [line(f"p{k}", "A.1", label=k % 2, decision=0) for k in range(3)]
    found = compare("f1_macro", [good, good], [bad, bad], n_samples=200, seed=0)
    assert (found.ci_low, found.ci_high, found.p_value) == (None, None, None)


def test_lines_without_an_author_make_posts_the_unit_of_all():
    first, second = trainings(1, accuracy=0.8), trainings(2, accuracy=0.75)
    expected = compare("f1_macro", first, second, n_samples=10, seed=0)
    for lines in first:
        for one in lines:
            one["group_id"] = "author"
    assert compare("f1_macro", first, second, n_samples=10, seed=0) == expected


def test_authors_are_the_unit_where_they_are_known():
    first, second = trainings(1, accuracy=0.8), trainings(2, accuracy=0.75)
    by_post = compare("f1_macro", first, second, n_samples=10, seed=0)
    for lines in (*first, *second):
        for one in lines:
            one["group_id"] = f"author {int(one['post_id'][1:]) // 10}"
    by_author = compare("f1_macro", first, second, n_samples=10, seed=0)
    assert (by_post.n_groups, by_author.n_groups, by_author.n_posts) == (40, 4, 40)
    assert by_author.p_value != by_post.p_value


def test_the_interval_of_a_mean_needs_three_trainings_and_stays_inside_its_range():
    systems = trainings(1, accuracy=0.97, n=3)
    low, high = mean_interval("f1_macro", systems)
    assert 0 < low < np.mean([f1_macro(lines) for lines in systems]) < high < 1
    assert mean_interval("f1_macro", systems[:2]) is None


def test_the_smallest_p_value_of_few_posts_is_that_of_their_swaps():
    """Two posts can be swapped in four ways, of which two are as extreme."""
    unmet = line("p2", "A.1")
    good = [line(f"p{k}", "A.1", label=1, decision=1) for k in range(2)] + [unmet]
    bad = [line(f"p{k}", "A.1", label=1, decision=0) for k in range(2)] + [unmet]
    found = compare("f1_macro", [good], [bad], n_samples=4000, seed=0)
    assert found.p_value_of_these_weights == pytest.approx(0.5, abs=0.05)


def test_evidence_is_compared_by_the_counts_of_the_lines():
    """By hand: precision 2/3 and recall 1/2 make 4/7; the other finds nothing."""
    gold = [
        line("p1", "A.1", evidence=[True, True], gold=[True]),
        line("p2", "A.1", evidence=[False], gold=[False]),
    ]
    nothing = [
        line("p1", "A.1", evidence=[], gold=[False]),
        line("p2", "A.1", evidence=[], gold=[False]),
    ]
    found = compare("evidence_iou_f1", [gold], [nothing], n_samples=100, seed=0)
    assert found.first == pytest.approx(4 / 7)
    assert found.second == 0.0


def test_a_criterion_whose_labels_are_all_met_is_in_no_mean():
    """As in an evaluation: whoever always says "met" would have 1."""
    lines = trainings(1, accuracy=0.8, n=1)[0]
    always = [line(f"p{k}", "A.9", label=1, decision=1) for k in range(40)]
    options = {"n_samples": 10, "seed": 0}
    expected = compare("f1_macro", [lines], [lines], **options).first
    found = compare("f1_macro", [lines + always], [lines + always], **options)
    assert found.first == expected


def test_holm_multiplies_the_smallest_by_all_and_keeps_the_order():
    """Worked by hand: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, and none is below the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_counts_a_test_that_cannot_be_made():
    assert holm([None, 0.01, None]) == [None, pytest.approx(0.03), None]


def test_systems_may_be_trained_unequally_often():
    """Only the variance over seeds that is known counts, and the posts of both are paired."""
    rng = np.random.default_rng(0)
    one, other = rng.random((5, 31)) / 10 + 0.5, rng.random((1, 31)) / 10 + 0.5
    found = difference_of(one, other)
    assert found.difference == pytest.approx(one[:, 0].mean() - other[0, 0])
    posts = jackknife(one.mean(axis=0) - other[0])
    total = posts.variance + one[:, 0].var(ddof=1) / 5
    df = total**2 / (
        posts.variance**2 / posts.degrees_of_freedom + (one[:, 0].var(ddof=1) / 5) ** 2 / 4
    )
    half_width = stats.t.ppf(0.975, df) * np.sqrt(total)
    assert found.ci_high - found.difference == pytest.approx(half_width)
    assert difference_of(one, np.full((1, 31), np.nan)) is None


def test_pairs_of_unknown_evidence_do_not_count():
    lines = [line("p1", "A.1", evidence=[True], gold=[True]), line("p2", "A.1", evidence=[])]
    lines[1] |= {"evidence": [{"right": None}], "gold_evidence": None}
    assert compare("evidence_iou_f1", [lines], [lines], n_samples=100, seed=0).first == 1.0


def test_figures_are_those_that_the_lines_have():
    assert comparable_metrics(line("p", "A.1")) == ["f1_macro"]
    assert comparable_metrics(line("p", "A.1", evidence=[])) == [
        "f1_macro",
        "evidence_iou_f1",
        "joint_score",
    ]


def test_predictions_of_other_pairs_and_other_numbers_of_trainings_are_refused():
    lines = trainings(1, accuracy=0.8, n=2)
    with pytest.raises(ValueError, match="same pairs"):
        compare("f1_macro", lines, [lines[0], lines[1][::-1]], n_samples=100, seed=0)
    with pytest.raises(ValueError, match="equally often"):
        compare("f1_macro", lines, lines[:1], n_samples=100, seed=0)


def test_a_figure_that_is_undefined_is_not_compared():
    lines = [line("p1", "A.1"), line("p2", "A.1")]
    assert compare("f1_macro", [lines], [lines], n_samples=100, seed=0) is None
