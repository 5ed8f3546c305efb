"""Figures of whole posts in the lines of several trainings, as an evaluation has them of one."""

from collections.abc import Mapping, Sequence

import numpy as np

from psy_agents_noaug.metrics.lines import DecidedPosts, Line, decided_posts, label_pairs
from psy_agents_noaug.metrics.pooled import (
    Samples,
    means,
    pair_counts,
    pooled_gains,
    pooled_metrics,
    stacked,
)
from psy_agents_noaug.metrics.posts import NOT_JUDGED, PostDecisions, by_post, count_error_samples
from psy_agents_noaug.metrics.values import Metrics

_OF_SENTENCES = ("f1_", "auroc_macro", "average_precision_macro", "per_criterion/")

PostThresholds = Mapping[int, Mapping[str, float]]  # by fold and criterion, see `decided_posts`


def judged_posts(lines: Sequence[Line], thresholds: PostThresholds | None) -> DecidedPosts:
    """Return the decisions on posts in the lines of one training.

    Args:
        lines: of labels, of trained criteria.
        thresholds: of whole posts whose sentences are judged; None: posts are judged themselves.
    """
    if thresholds is not None:
        return decided_posts(lines, thresholds)
    return DecidedPosts(
        label_pairs(lines),
        np.asarray([line["decision"] for line in lines]) == 1,
        np.asarray([line["post_id"] for line in lines]),
        np.asarray([line.get("fold", 0) for line in lines], dtype=np.int64),
    )


def by_criteria(judged: DecidedPosts) -> PostDecisions:
    """Return the posts in which every criterion was judged."""
    return by_post(
        judged.pairs,
        decisions=judged.decisions,
        post_ids=judged.post_ids,
        criteria=np.unique(judged.pairs.criterion_ids).tolist(),
    )


def post_figures(trainings: Sequence[DecidedPosts], *, of_sentences: bool) -> Metrics:
    """Return the figures of posts, in the mean over trainings.

    Keys: `n_judged`, `n_met_mae` and `n_met_bias`, as of `metrics.posts.post_metrics`. Of posts whose
    sentences are judged also counts of pairs, F1, AUROC and average precision.

    Args:
        trainings: from `judged_posts`, about the same posts.
        of_sentences: whether sentences are judged.
    """
    posts = [by_criteria(one) for one in trainings]
    values: dict[str, float | int | None] = {"n_judged": len(posts[0].labels)}
    undefined: dict[str, str] = {}
    if not len(posts[0].labels):
        values |= dict.fromkeys(("n_met_mae", "n_met_bias"))
        undefined |= dict.fromkeys(("n_met_mae", "n_met_bias"), NOT_JUDGED)
    else:
        errors = means(stacked([count_error_samples(one) for one in posts]), bounded=False)
        values |= errors.values
        undefined |= errors.undefined
        if (low := values["n_met_mae_ci_low"]) is not None:
            values["n_met_mae_ci_low"] = max(low, 0.0)
    if of_sentences:
        pairs = trainings[0].pairs
        found = pooled_metrics(_samples(trainings))
        values |= pair_counts(pairs.criterion_ids.tolist(), pairs.labels.tolist()) | found.values
        undefined |= found.undefined
    return Metrics(values, undefined)


def post_gains(trainings: Sequence[DecidedPosts], baseline: DecidedPosts) -> Metrics:
    """Return the figures of a baseline on posts whose sentences are judged, and the model's minus them.

    Args:
        trainings: from `judged_posts`.
        baseline: likewise, about the same posts.
    """
    own = {key: values for key, values in _samples([baseline]).items() if "/" not in key}
    figures, gains = pooled_metrics(own), pooled_gains(_samples(trainings), own)
    return Metrics(figures.values | gains.values, figures.undefined | gains.undefined)


def _samples(trainings: Sequence[DecidedPosts]) -> Samples:
    found = [one.samples().values for one in trainings]
    kept = [key for key in found[0] if key.startswith(_OF_SENTENCES)]
    return stacked([{key: values[key] for key in kept} for values in found])
