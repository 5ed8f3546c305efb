import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psy_agents_noaug.metrics.classification import PairPredictions, classification_metrics
from psy_agents_noaug.metrics.intervals import (
    BOOTSTRAPPED,
    bootstrap_intervals,
    draw_group_counts,
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


def naive_intervals(predictions, *, thresholds, n_resamples, seed):
    """Rebuilds the arrays of every resample and scores them as a split of its own.

    A macro figure of a resample that lacks a criterion of the whole split is left out.
    """
    scored = {"criteria": CRITERIA, "thresholds": thresholds}
    whole = classification_metrics(predictions, **scored).values
    posts = np.unique(predictions.group_ids)
    rng = np.random.default_rng(seed)
    counts = draw_group_counts(rng, n_groups=len(posts), n_resamples=n_resamples)
    keys = [*BOOTSTRAPPED, *(f"per_criterion/{c}/f1" for c in CRITERIA)]
    sampled = {key: [] for key in keys}
    for draw in counts.T:
        times = dict(zip(posts, draw, strict=True))
        repeats = [times[post] for post in predictions.group_ids]
        resample = take(predictions, np.repeat(np.arange(len(repeats)), repeats))
        values = classification_metrics(resample, **scored).values
        for key in keys:
            own = [f"per_criterion/{c}/{key.removesuffix('_macro')}" for c in CRITERIA]
            lacks = key.endswith("_macro") and any(
                values[k] is None and whole[k] is not None for k in own
            )
            sampled[key].append(None if lacks else values[key])
    out = {}
    for key, sample in sampled.items():
        defined = [value for value in sample if value is not None]
        for end, quantile in (("low", 0.025), ("high", 0.975)):
            enough = 2 * len(defined) >= n_resamples
            out[f"{key}_ci_{end}"] = np.quantile(defined, quantile) if enough else None
    return out


@pytest.mark.parametrize("decimals", [1, 2, 17])
@pytest.mark.parametrize("n_posts", [2, 5, 30])
def test_the_bootstrap_is_the_one_that_rebuilds_every_resample(n_posts, decimals):
    for seed in range(3):
        predictions = random_pairs(seed, n_posts=n_posts, decimals=decimals)
        predictions = take(predictions, slice(0, -1))  # posts of unequal size
        options = {"thresholds": {"A.1": 0.4, "A.2": 0.5, "A.3": 0.6}, "n_resamples": 20}
        fast = bootstrap_intervals(predictions, criteria=CRITERIA, seed=seed, **options)
        slow = naive_intervals(predictions, seed=seed, **options)
        assert fast.values == pytest.approx(slow, abs=1e-12)


def test_the_bootstrap_is_the_same_whether_done_at_once_or_in_chunks(monkeypatch):
    options = {"criteria": CRITERIA, "thresholds": HALF, "n_resamples": 20, "seed": 1}
    at_once = bootstrap_intervals(random_pairs(1), **options)
    monkeypatch.setattr("psy_agents_noaug.metrics.intervals._CHUNK_CELLS", 3 * 90)
    assert bootstrap_intervals(random_pairs(1), **options) == at_once


def test_the_interval_depends_on_the_seed_and_holds_the_figure():
    predictions = random_pairs(2, n_posts=60)
    options = {"criteria": CRITERIA, "thresholds": HALF}
    point = classification_metrics(predictions, **options).values
    first = bootstrap_intervals(predictions, n_resamples=200, seed=0, **options).values
    second = bootstrap_intervals(predictions, n_resamples=200, seed=1, **options).values
    assert first != second
    for key in BOOTSTRAPPED:
        assert first[f"{key}_ci_low"] < point[key] < first[f"{key}_ci_high"]


def test_the_same_pairs_in_fewer_posts_and_more_confidence_widen_the_interval():
    # Ten pairs a post that agree with each other: a tenth of the information.
    rng = np.random.default_rng(0)
    hits = rng.random(40) < 0.7
    rows = [("A.1", 1, 0.9 if hit else 0.1) for hit in hits for _ in range(10)]

    def width(groups, confidence=0.95):
        predictions = pairs(rows, groups)
        options = {"criteria": CRITERIA, "thresholds": HALF, "n_resamples": 300, "seed": 0}
        values = bootstrap_intervals(predictions, confidence=confidence, **options).values
        return values["accuracy_ci_high"] - values["accuracy_ci_low"]

    by_post = [f"p{i // 10}" for i in range(400)]
    assert width(by_post) > 2.5 * width(None)
    assert width(by_post, confidence=0.99) > width(by_post) > width(by_post, confidence=0.5)


def test_one_post_has_no_interval_and_says_why():
    predictions = pairs([("A.1", 1, 0.9), ("A.1", 0, 0.1)], ["p", "p"])
    options = {"criteria": CRITERIA, "thresholds": HALF, "n_resamples": 10, "seed": 0}
    metrics = bootstrap_intervals(predictions, **options)
    assert set(metrics.values.values()) == {None}
    assert set(metrics.undefined.values()) == {"all pairs are of one post"}
    assert set(bootstrap_intervals(pairs([]), **options).undefined.values()) == {"no pairs"}


def test_an_interval_needs_its_figure_in_half_of_the_resamples():
    predictions = pairs([("A.1", 1, 0.9), ("A.1", 0, 0.1)])
    rngs = map(np.random.default_rng, range(99))
    draws = (draw_group_counts(rng, n_groups=2, n_resamples=2)[0] for rng in rngs)
    n_defined = [int((of_positive > 0).sum()) for of_positive in draws]
    options = {"criteria": ["A.1"], "thresholds": HALF, "n_resamples": 2}
    half = bootstrap_intervals(predictions, seed=n_defined.index(1), **options)
    assert half.values["per_criterion/A.1/f1_ci_low"] == 1.0
    none = bootstrap_intervals(predictions, seed=n_defined.index(0), **options)
    assert none.undefined["f1_macro_ci_high"] == "undefined in 2 of 2 resamples"


def test_the_order_of_rows_changes_no_bit_of_any_interval():
    predictions = random_pairs(3, n_posts=400, decimals=17)
    options = {"criteria": CRITERIA, "thresholds": HALF, "n_resamples": 50, "seed": 4}
    shuffled = take(predictions, np.random.default_rng(4).permutation(1200))
    assert bootstrap_intervals(shuffled, **options) == bootstrap_intervals(predictions, **options)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(ROW, max_size=6), n_posts=st.integers(1, 4))
def test_none_goes_with_a_reason_and_nan_never_comes_out(rows, n_posts):
    predictions = pairs(rows, [f"p{i % n_posts}" for i in range(len(rows))])
    options = {"criteria": CRITERIA, "thresholds": HALF, "n_resamples": 7, "seed": 0}
    metrics = bootstrap_intervals(predictions, **options)
    defined = {key: value for key, value in metrics.values.items() if value is not None}
    assert metrics.values.keys() - defined.keys() == metrics.undefined.keys()
    assert all(metrics.undefined.values())
    assert all(type(v) is float and math.isfinite(v) for v in defined.values())


def test_bad_options_are_refused_by_name():
    known = pairs([("A.1", 1, 0.9)])
    options = {"criteria": CRITERIA, "thresholds": HALF, "seed": 0}
    with pytest.raises(ValueError, match="`n_resamples` must be"):
        bootstrap_intervals(known, n_resamples=0, **options)
    with pytest.raises(ValueError, match="`confidence` must be"):
        bootstrap_intervals(known, n_resamples=1, confidence=95, **options)
