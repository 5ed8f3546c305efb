"""The intervals to expect before there is a model, against what a simulation of whole splits gives."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import f1_score, roc_auc_score

from psy_agents_noaug.metrics.expected import (
    best_cutoff,
    draw_scores,
    expected_intervals,
    separation_of,
)

CRITERIA = [f"A.{number}" for number in range(1, 10)]
AUROC = 0.85


def expected(labels, **more):
    """The expected intervals of posts with nine criteria; `labels` are [posts, criteria]."""
    posts = np.array([f"p{number}" for number in range(len(labels))])
    return expected_intervals(
        labels.ravel(),
        np.tile(CRITERIA, len(labels)),
        np.repeat(posts, len(CRITERIA)),
        **{"prevalences": dict.fromkeys(CRITERIA, float(labels.mean())), "auroc": AUROC, **more},
    )


def labels_of(n_posts, n_met):
    labels = np.zeros((n_posts, len(CRITERIA)), dtype=np.int64)
    for seed, column in enumerate(labels.T):
        column[np.random.default_rng(seed).permutation(n_posts)[:n_met]] = 1
    return labels


@pytest.mark.parametrize(("n_posts", "n_met"), [(57, 12), (222, 12), (600, 60)])
def test_the_width_is_the_spread_of_macro_f1_over_new_splits(n_posts, n_met):
    """Whole splits are drawn, labels too, by code of the test's own, and scored by scikit-learn."""
    rng = np.random.default_rng(1)
    prevalence, shift = n_met / n_posts, np.sqrt(2) * norm.ppf(AUROC)
    grid = np.linspace(-2, 5, 141)
    found = prevalence * norm.sf(grid - shift)
    decided = found + (1 - prevalence) * norm.sf(grid)
    cutoff = grid[np.argmax(2 * found / (prevalence + decided))]
    figures = []
    for _ in range(300):
        labels = rng.random((n_posts, 9)) < prevalence
        noise = np.sqrt(0.3) * rng.normal(size=(n_posts, 1)) + np.sqrt(0.7) * rng.normal(
            size=(n_posts, 9)
        )
        figures.append(f1_score(labels, shift * labels + noise > cutoff, average="macro"))
    half = np.subtract(*np.percentile(figures, [97.5, 2.5])) / 2
    interval = expected(labels_of(n_posts, n_met))["f1_macro"]
    assert interval.half_width == pytest.approx(half, rel=0.2)
    assert interval.value == pytest.approx(np.mean(figures), abs=0.04)


def test_drawn_scores_have_the_auroc_that_is_assumed():
    labels = np.repeat([0, 1], 20_000)
    scores = draw_scores(
        np.random.default_rng(0), labels, np.arange(len(labels)), separation=separation_of(AUROC)
    )
    assert roc_auc_score(labels, scores) == pytest.approx(AUROC, abs=0.01)


def test_the_threshold_rises_as_a_criterion_gets_rare():
    common, rarer, rarest = (best_cutoff(share, separation_of(AUROC)) for share in (0.5, 0.1, 0.01))
    assert common < rarer < rarest


def test_four_times_the_posts_halve_the_width():
    small, large = (expected(labels_of(n, n // 10))["f1_macro"].half_width for n in (150, 600))
    assert small / large == pytest.approx(2, rel=0.2)


def test_posts_of_few_authors_say_less_than_as_many_of_different_ones():
    labels = labels_of(200, 30)
    authors = np.repeat(np.arange(200) // 20, len(CRITERIA)).astype(str)
    few = expected_intervals(
        labels.ravel(),
        np.tile(CRITERIA, len(labels)),
        authors,
        prevalences=dict.fromkeys(CRITERIA, float(labels.mean())),
        auroc=AUROC,
    )
    assert few["f1_macro"].half_width > 1.3 * expected(labels)["f1_macro"].half_width


def test_a_criterion_with_a_single_met_pair_has_no_interval_and_nor_has_the_macro_average():
    labels = labels_of(60, 12)
    labels[:, 0] = 0
    labels[0, 0] = 1
    found = expected(labels)
    assert found["per_criterion/A.1/f1"].half_width is None
    assert found["f1_macro"].half_width is None
    assert found["f1_micro"].half_width is not None
