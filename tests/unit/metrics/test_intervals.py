import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from psy_agents_noaug.metrics.classification import PairPredictions, classification_metrics
from psy_agents_noaug.metrics.intervals import (
    OVERALL,
    PER_CRITERION,
    classification_samples,
    decided_samples,
)

CRITERIA = ("A.1", "A.2", "A.3")
HALF = dict.fromkeys(CRITERIA, 0.5)


def pairs(rows, groups=None):
    """Predictions from (criterion, label, probability) rows; each its own post unless said."""
    return PairPredictions(
        labels=np.array([row[1] for row in rows], dtype=np.int64),
        probabilities=np.array([row[2] for row in rows], dtype=np.float64),
        criterion_ids=np.array([row[0] for row in rows], dtype=object),
        group_ids=np.array(groups or [f"p{i}" for i in range(len(rows))], dtype=object),
    )


def random_pairs(seed, *, n_posts=30, decimals=1):
    rng = np.random.default_rng(seed)
    labels = rng.random((n_posts, 3)) < (0.3, 0.5, 0.1)
    noisy = np.clip(rng.normal(0.35 + 0.3 * labels, 0.2), 0, 1).round(decimals)
    rows = [
        (criterion, int(labels[post, column]), noisy[post, column])
        for post, (column, criterion) in itertools.product(range(n_posts), enumerate(CRITERIA))
    ]
    return pairs(rows, [f"p{i // 3}" for i in range(len(rows))])


def take(predictions, rows):
    return PairPredictions(**{name: array[rows] for name, array in vars(predictions).items()})


# Few distinct scores, so that ties and single-class criteria are common.
ROW = st.tuples(
    st.sampled_from(CRITERIA),
    st.integers(0, 1),
    st.sampled_from((0.0, 0.1, 0.25, 0.5, 0.7, 1.0)) | st.floats(0, 1),
)


def intervals(predictions, *, criteria=CRITERIA, thresholds=HALF, **options):
    samples = classification_samples(predictions, criteria=criteria, thresholds=thresholds)
    return samples.intervals(**options)


def naive_samples(predictions, *, thresholds):
    """Scores every split without one group as a split of its own.

    A macro figure of one that lacks a criterion of the whole split is left out.
    """
    scored = {"criteria": CRITERIA, "thresholds": thresholds}
    whole = classification_metrics(predictions, **scored).values
    keys = [*OVERALL, *(f"per_criterion/{c}/{key}" for c in CRITERIA for key in PER_CRITERION)]
    groups = np.unique(predictions.group_ids)
    samples = {key: [whole[key]] for key in keys}
    for group in groups:
        kept = take(predictions, predictions.group_ids != group)
        values = classification_metrics(kept, **scored).values
        for key in keys:
            own = [f"per_criterion/{c}/{key.removesuffix('_macro')}" for c in CRITERIA]
            lacks = key.endswith("_macro") and any(
                values[k] is None and whole[k] is not None for k in own
            )
            samples[key].append(None if lacks else values[key])
    return {key: np.array(values, dtype=float) for key, values in samples.items()}


@pytest.mark.parametrize("decimals", [1, 2, 17])
@pytest.mark.parametrize("n_posts", [2, 5, 30])
def test_a_sample_is_scored_as_the_split_without_the_group(n_posts, decimals):
    for seed in range(3):
        predictions = random_pairs(seed, n_posts=n_posts, decimals=decimals)
        predictions = take(predictions, slice(0, -1))  # posts of unequal size
        thresholds = {"A.1": 0.4, "A.2": 0.5, "A.3": 0.6}
        fast = classification_samples(predictions, criteria=CRITERIA, thresholds=thresholds)
        slow = naive_samples(predictions, thresholds=thresholds)
        assert fast.values.keys() == slow.keys()
        for key, values in slow.items():
            np.testing.assert_allclose(fast.values[key], values, atol=1e-12, err_msg=key)


def test_samples_are_the_same_whether_computed_at_once_or_in_chunks(monkeypatch):
    at_once = intervals(random_pairs(1))
    monkeypatch.setattr("psy_agents_noaug.metrics.intervals._CHUNK_CELLS", 3 * 90)
    assert intervals(random_pairs(1)) == at_once


def test_the_interval_holds_the_figure():
    predictions = random_pairs(2, n_posts=60)
    point = classification_metrics(predictions, criteria=CRITERIA, thresholds=HALF).values
    found = intervals(predictions).values
    for key in OVERALL:
        assert found[f"{key}_ci_low"] < point[key] < found[f"{key}_ci_high"]


def test_the_same_pairs_in_fewer_groups_and_more_confidence_widen_the_interval():
    # Ten pairs a group that agree with each other: a tenth of the information.
    rng = np.random.default_rng(0)
    hits = rng.random(40) < 0.7
    rows = [("A.1", i % 2, float((i % 2) == hit)) for hit in hits for i in range(10)]

    def width(groups, confidence=0.95):
        values = intervals(pairs(rows, groups), confidence=confidence).values
        return values["accuracy_ci_high"] - values["accuracy_ci_low"]

    by_author = [f"p{i // 10}" for i in range(400)]
    assert width(by_author) > 2.5 * width(None)
    assert width(by_author, confidence=0.99) > width(by_author) > width(by_author, confidence=0.5)


def test_one_group_has_no_interval_and_says_why():
    predictions = pairs([("A.1", 1, 0.9), ("A.1", 0, 0.1), ("A.1", 0, 0.7)], ["p"] * 3)
    metrics = intervals(predictions)
    assert metrics.undefined["f1_macro_ci_low"] == "too few: all items are of one group"
    # The exact interval of a share of one group: 1 of 1.
    assert metrics.values["per_criterion/A.1/recall_ci_low"] == pytest.approx(0.025)
    assert set(intervals(pairs([])).undefined.values()) == {"the figure is undefined"}


def test_a_criterion_with_one_positive_has_too_few_for_a_macro_figure():
    rows = [("A.1", 1, 0.9), ("A.1", 0, 0.8), ("A.1", 0, 0.2), ("A.1", 0, 0.3)]
    found = intervals(pairs(rows))
    assert found.undefined["f1_macro_ci_high"].startswith("too few: without one of 1 groups")


@pytest.mark.parametrize(("probability", "figure"), [(0.9, 1.0), (0.1, 0.0)])
def test_all_or_none_of_five_found_is_no_interval_of_width_zero(probability, figure):
    rows = [("A.1", 1, probability)] * 5 + [("A.1", 0, 0.3)] * 5
    found = intervals(pairs(rows))
    assert found.undefined["per_criterion/A.1/f1_ci_low"].startswith("too few")
    # Clopper and Pearson: 0.025 ** (1 / 5).
    low, high = (found.values[f"per_criterion/A.1/recall_ci_{end}"] for end in ("low", "high"))
    expected = (0.025**0.2, 1.0) if figure else (0.0, 1 - 0.025**0.2)
    assert (low, high) == pytest.approx(expected)


def test_the_order_of_rows_changes_no_bit_of_any_interval():
    predictions = random_pairs(3, n_posts=2000, decimals=17)  # more groups than blocks
    shuffled = take(predictions, np.random.default_rng(4).permutation(6000))
    assert intervals(shuffled) == intervals(predictions)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(ROW, max_size=6), n_posts=st.integers(1, 4))
def test_none_goes_with_a_reason_and_nan_never_comes_out(rows, n_posts):
    metrics = intervals(pairs(rows, [f"p{i % n_posts}" for i in range(len(rows))]))
    defined = {key: value for key, value in metrics.values.items() if value is not None}
    assert metrics.values.keys() - defined.keys() == metrics.undefined.keys()
    assert all(metrics.undefined.values())
    assert all(type(v) is float and 0 <= v <= 1 and math.isfinite(v) for v in defined.values())


def test_bad_options_are_refused_by_name():
    with pytest.raises(ValueError, match="`confidence` must be"):
        intervals(pairs([("A.1", 1, 0.9)]), confidence=95)


def test_six_authors_with_fifteen_posts_each_tell_what_six_tell_not_what_ninety_do():
    """The bootstrap over the same units is the independent implementation."""
    right = [15, 15, 8, 15, 12, 12]  # of each author's posts; the first three authors' are met
    labels = np.repeat([1, 1, 1, 0, 0, 0], 15)
    decisions = np.concatenate(
        [
            np.where(np.arange(15) < n, own, 1 - own)
            for n, own in zip(right, labels[::15], strict=True)
        ]
    )
    authors, posts = np.repeat(np.arange(6), 15), np.arange(90)

    def bootstrap(units):
        rng = np.random.default_rng(0)
        members = [np.flatnonzero(units == unit) for unit in np.unique(units)]
        figures = []
        for _ in range(500):
            drawn = rng.integers(len(members), size=len(members))
            rows = np.concatenate([members[unit] for unit in drawn])
            figures.append(f1_score(labels[rows], decisions[rows], zero_division=0.0))
        return np.quantile(figures, [0.025, 0.975])

    def found(units):
        rows = [("A.1", *pair) for pair in zip(labels, decisions.astype(float), strict=True)]
        values = intervals(
            pairs(rows, units.astype(str).tolist()), criteria=["A.1"], thresholds={"A.1": 0.5}
        )
        return values.values["f1_macro_ci_low"], values.values["f1_macro_ci_high"]

    assert found(posts) == pytest.approx(bootstrap(posts), abs=0.02)
    low, high = found(authors)
    assert low < bootstrap(authors)[0] < 0.5
    assert high > bootstrap(authors)[1] > 0.95


def test_scores_of_different_folds_are_not_ranked_against_each_other():
    # Each fold ranks its met pairs first, but all scores of the second are higher.
    labels = np.array([1, 0, 0, 1, 0, 0] * 4)
    folds = np.array([0, 0, 0, 1, 1, 1] * 4)
    pairs = PairPredictions(
        labels=labels,
        probabilities=np.array([0.3, 0.2, 0.1, 0.9, 0.8, 0.7] * 4),
        criterion_ids=np.full(24, "A.1"),
        group_ids=np.array([f"u{number // 3}" for number in range(24)]),
    )
    decided = labels == 1
    apart = decided_samples(pairs, decided, criteria=["A.1"], folds=folds).values
    mixed = decided_samples(pairs, decided, criteria=["A.1"]).values
    assert apart["per_criterion/A.1/auroc"][0] == apart["average_precision_macro"][0] == 1.0
    assert mixed["per_criterion/A.1/auroc"][0] == 0.75
    assert apart["f1_macro"][0] == mixed["f1_macro"][0] == 1.0


def test_rankings_of_folds_are_averaged_by_their_met_pairs_without_each_author_too():
    rng = np.random.default_rng(0)
    folds = rng.integers(3, size=60)
    pairs = PairPredictions(
        labels=rng.integers(2, size=60),
        probabilities=rng.random(60),
        criterion_ids=np.full(60, "A.1"),
        group_ids=np.array([f"u{number % 20}" for number in range(60)]),
    )

    def expected(rows: np.ndarray) -> float:
        own = [rows & (folds == fold) for fold in range(3)]
        aurocs = [roc_auc_score(pairs.labels[of], pairs.probabilities[of]) for of in own]
        return float(np.average(aurocs, weights=[pairs.labels[of].sum() for of in own]))

    found = decided_samples(pairs, pairs.labels == 1, criteria=["A.1"], folds=folds)
    values = found.values["per_criterion/A.1/auroc"]
    assert values[0] == pytest.approx(expected(np.ones(60, dtype=bool)))
    without_first = expected(pairs.group_ids != "u0")
    assert values[1] == pytest.approx(without_first)
