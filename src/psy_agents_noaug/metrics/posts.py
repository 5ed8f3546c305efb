"""Figures of whole posts: how many criteria are met, and whether they make a depressive episode.

A post counts if every criterion was judged in all of it. If its sentences are judged, a criterion is met
in the post if it is met in one of them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.classification import PairPredictions, classification_metrics
from psy_agents_noaug.metrics.intervals import PER_CRITERION, classification_samples
from psy_agents_noaug.metrics.jackknife import intervals, jackknife_blocks, leave_blocks_out
from psy_agents_noaug.metrics.ratios import divide
from psy_agents_noaug.metrics.values import Floats, Ints, Metrics, ValueOrReason, metrics_of

# DSM-5: a major depressive episode has at least five of the nine criteria, one of these two among them.
EPISODE_COUNT = 5
EPISODE_CORE = ("A.1", "A.2")
NOT_JUDGED = "no post was judged by every criterion"
_EPISODE = "episode"
_NO_RANKING = ("auroc", "average_precision")  # an episode is a decision without a score


@dataclass(frozen=True, eq=False)
class PostDecisions:
    """Labels and decisions of posts.

    Attributes:
        labels: 1 met, 0 not met, `[posts, criteria]`.
        decisions: likewise.
        group_ids: strings, the author (or post) of each post, `[posts]`.
    """

    labels: Ints
    decisions: Ints
    group_ids: NDArray[Any]


def by_post(
    pairs: PairPredictions,
    *,
    decisions: NDArray[np.bool_],
    post_ids: NDArray[Any],
    criteria: list[str],
) -> PostDecisions:
    """Return the posts in which every criterion was judged.

    Args:
        pairs: labels, criteria and groups.
        decisions: of each pair, `[pairs]`.
        post_ids: of each pair, `[pairs]`.
        criteria: every criterion, in the order of the result.
    """
    ids, first, posts = np.unique(post_ids, return_index=True, return_inverse=True)
    columns = np.array([criteria.index(name) for name in pairs.criterion_ids], dtype=np.int64)
    labels = np.zeros((len(ids), len(criteria)), dtype=np.int64)
    decided = np.zeros_like(labels)
    n_judged = np.zeros_like(labels)
    np.maximum.at(labels, (posts, columns), pairs.labels)
    np.maximum.at(decided, (posts, columns), decisions.astype(np.int64))
    np.add.at(n_judged, (posts, columns), 1)
    # A criterion with fewer judged sentences than the others has some of unknown label.
    whole = (n_judged == n_judged.max(axis=1, keepdims=True)).all(axis=1)
    return PostDecisions(labels[whole], decided[whole], pairs.group_ids[first][whole])


def pairs_of_posts(
    pairs: PairPredictions, post_ids: NDArray[Any]
) -> tuple[PairPredictions, NDArray[Any]]:
    """Return the pairs of posts and criteria, from those of the posts' sentences.

    A pair is met if one of its sentences is, and its probability is that of the most probable one. A
    pair with fewer judged sentences than others of its post is left out: its label is not known.

    Args:
        pairs: of sentences.
        post_ids: of each pair, `[pairs]`.

    Returns:
        The pairs, sorted by post and criterion, and the post of each.
    """
    posts, post = np.unique(post_ids, return_inverse=True)
    criteria, criterion = np.unique(pairs.criterion_ids, return_inverse=True)
    keys, first, index = np.unique(
        post * len(criteria) + criterion, return_index=True, return_inverse=True
    )
    labels = np.zeros(len(keys), dtype=np.int64)
    probabilities = np.zeros(len(keys))
    np.maximum.at(labels, index, pairs.labels)
    np.maximum.at(probabilities, index, pairs.probabilities)
    n_judged = np.bincount(index, minlength=len(keys))
    most = np.zeros(len(posts), dtype=np.int64)
    np.maximum.at(most, post[first], n_judged)
    found = PairPredictions(
        labels, probabilities, pairs.criterion_ids[first], pairs.group_ids[first]
    )
    whole = n_judged == most[post[first]]
    return found.take(whole), post_ids[first][whole]


def post_metrics(posts: PostDecisions, *, episode: tuple[str, ...] | None) -> Metrics:
    """Return the figures of posts with their intervals.

    Keys: `n_judged`; `n_met_mae` and `n_met_bias`, the mean absolute and the mean error of the number
    of criteria met; `episode/...`, the figures of the rule's decision.

    Args:
        posts: labels and decisions.
        episode: the ids of the nine criteria, if the rule of the major depressive episode applies.
    """
    metrics: dict[str, ValueOrReason] = {"n_judged": len(posts.labels)}
    samples = count_error_samples(posts) if len(posts.labels) else {}
    metrics |= {
        key: float(samples[key][0]) if samples else NOT_JUDGED
        for key in ("n_met_mae", "n_met_bias")
    }
    found = metrics_of(metrics)
    values, undefined = dict(found.values), dict(found.undefined)
    if samples:
        own = intervals(samples, bounded=False)
        values |= own.values
        undefined |= own.undefined
        if (low := values["n_met_mae_ci_low"]) is not None:
            values["n_met_mae_ci_low"] = max(low, 0.0)
    if episode is not None:
        own = _episode_metrics(posts, episode)
        values |= own.values
        undefined |= own.undefined
    return Metrics(values, undefined)


def count_error_samples(posts: PostDecisions) -> dict[str, Floats]:
    """Return the mean absolute and the mean error of the number of criteria met, `[1 + blocks]` each.

    Args:
        posts: at least one.
    """
    errors = (posts.decisions - posts.labels).sum(axis=1).astype(np.float64)
    blocks, n_blocks = jackknife_blocks(posts.group_ids)
    sums = np.zeros((n_blocks, 3))
    rows = np.stack([np.abs(errors), errors, np.ones_like(errors)], axis=1)
    np.add.at(sums, blocks, rows)
    absolute, signed, count = np.moveaxis(leave_blocks_out(sums), -1, 0)
    return {"n_met_mae": divide(absolute, count), "n_met_bias": divide(signed, count)}


def has_episode(met: Ints, criteria: tuple[str, ...]) -> NDArray[np.bool_]:
    """Return whether the met criteria make an episode: at least five, with A.1 or A.2 among them.

    Args:
        met: 0 or 1, `[posts, criteria]`.
        criteria: the ids of the columns.
    """
    core = [criteria.index(name) for name in EPISODE_CORE]
    enough: NDArray[np.bool_] = met.sum(axis=1) >= EPISODE_COUNT
    return enough & met[:, core].any(axis=1)


def _episode_metrics(posts: PostDecisions, criteria: tuple[str, ...]) -> Metrics:
    pairs = PairPredictions(
        labels=has_episode(posts.labels, criteria).astype(np.int64),
        probabilities=has_episode(posts.decisions, criteria).astype(np.float64),
        criterion_ids=np.full(len(posts.labels), _EPISODE),
        group_ids=posts.group_ids,
    )
    scored: dict[str, Any] = {"criteria": [_EPISODE], "thresholds": {_EPISODE: 0.5}}
    point = classification_metrics(pairs, **scored)
    samples = classification_samples(pairs, **scored).intervals()
    prefix = f"per_criterion/{_EPISODE}/"
    names = [name for name in PER_CRITERION if name not in _NO_RANKING]
    keys = [f"{prefix}{name}" for name in (*names, "n_positive", "n_pairs")]
    keys += [f"{prefix}{name}_ci_{end}" for name in names for end in ("low", "high")]
    values = point.values | samples.values
    undefined = point.undefined | samples.undefined
    return Metrics(
        {f"episode/{key.removeprefix(prefix)}": values[key] for key in keys},
        {f"episode/{key.removeprefix(prefix)}": undefined[key] for key in keys if key in undefined},
    )
