"""Figures of whole posts whose sentences are judged."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from psy_agents_noaug.metrics.classification import PairPredictions, classification_metrics
from psy_agents_noaug.metrics.intervals import Samples, classification_samples
from psy_agents_noaug.metrics.posts import pairs_of_posts
from psy_agents_noaug.tasks.base import DecisionRule, MetricValues, flat_metrics
from psy_agents_noaug.tasks.criteria.pairs import pair_cutoffs

_REPORTED = (
    "n_p",  # n_pairs, n_positive
    "n_criteria_in_macro",
    "f1_",
    "auroc_macro",
    "average_precision_macro",
    "per_criterion/",
)


class WholePosts(NamedTuple):
    """Posts, by the most probable of their sentences.

    Args:
        pairs: of posts and criteria.
        post_ids: of each pair.
        decided: whether each pair is decided met.
        samples: what is behind the intervals.
        figures: metrics and their intervals.
    """

    pairs: PairPredictions
    post_ids: np.ndarray
    decided: np.ndarray
    samples: Samples
    figures: MetricValues


def whole_posts(
    pairs: PairPredictions, post_ids: np.ndarray, *, rule: DecisionRule, criteria: Sequence[str]
) -> WholePosts:
    """Judge posts by their sentences.

    Args:
        pairs: of sentences.
        post_ids: of each pair, `[pairs]`.
        rule: of posts, see `CriteriaEvaluation`.
        criteria: every criterion, including those without pairs.
    """
    posts, own_ids = pairs_of_posts(pairs, post_ids)
    scored = classification_metrics(posts, criteria=criteria, thresholds=rule["thresholds"])
    samples = classification_samples(posts, criteria=criteria, thresholds=rule["thresholds"])
    all_figures = flat_metrics(scored) | flat_metrics(samples.intervals())
    figures = {key: value for key, value in all_figures.items() if key.startswith(_REPORTED)}
    decided = posts.probabilities >= pair_cutoffs(posts, rule)
    return WholePosts(posts, own_ids, decided, samples, figures)
