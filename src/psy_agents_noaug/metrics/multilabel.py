"""Figures of multi-label decisions, defined as in scikit-learn.

They are those of `precision_recall_fscore_support` with `zero_division=0`, for each label and with
`average` micro, macro, weighted and samples; and `accuracy_score`, the share of texts whose labels are
all right. Unlike the macro averages of `metrics.classification`, a label without a gold item stays in
the macro average with 0, so figures of two corpora may be means over labels of unequal difficulty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from psy_agents_noaug.metrics.intervals import Samples
from psy_agents_noaug.metrics.jackknife import (
    effective_groups,
    jackknife_blocks,
    leave_blocks_out,
)
from psy_agents_noaug.metrics.posts import PostDecisions
from psy_agents_noaug.metrics.ratios import divide, f1_score
from psy_agents_noaug.metrics.values import Floats, Ints, Metrics, ValueOrReason, metrics_of

AVERAGES = ("micro", "macro", "weighted", "samples")
_SCORES = ("precision", "recall", "f1")
# That of weighted F1 is too wide where labels are rare: `benchmarks/interval_coverage.py` found 97.4 %.
_WITH_INTERVAL = ("f1_micro", "f1_macro", "f1_samples", "subset_accuracy")
_NO_TEXTS = "no text was judged by every criterion"


def with_none_label(texts: PostDecisions) -> PostDecisions:
    """Return the texts with one more label, the last: no other one applies.

    Args:
        texts: labels and decisions, `[texts, labels]`.
    """
    labels, decisions = (
        np.concatenate([own, own.max(axis=1, initial=0, keepdims=True) == 0], axis=1).astype(
            np.int64
        )
        for own in (texts.labels, texts.decisions)
    )
    return replace(texts, labels=labels, decisions=decisions)


def multilabel_metrics(texts: PostDecisions, *, names: Sequence[str]) -> Metrics:
    """Return the figures of the texts, with intervals for F1 (but weighted F1) and the subset accuracy.

    Keys: `n_texts`, `n_labels`; `{precision,recall,f1}_{micro,macro,weighted,samples}`;
    `subset_accuracy`; `per_label/<name>/{precision,recall,f1,support}`.

    Args:
        texts: posts, or sentences, `[texts, labels]`.
        names: of the labels.

    Raises:
        ValueError: there are not as many names as labels.
    """
    if len(names) != texts.labels.shape[1]:
        raise ValueError(f"`names` must be {texts.labels.shape[1]}, but are {len(names)} instead.")
    sizes: dict[str, ValueOrReason] = {"n_texts": len(texts.labels), "n_labels": len(names)}
    if not len(texts.labels):
        undefined = [f"{score}_{average}" for score in _SCORES for average in AVERAGES]
        return metrics_of(sizes | dict.fromkeys([*undefined, "subset_accuracy"], _NO_TEXTS))
    counts = _counts_of_labels(texts)
    averaged = _averaged(counts, texts)
    values = sizes | {key: float(own[0]) for key, own in averaged.items()}
    for name, own, count in zip(names, np.stack(_scores(counts))[:, :, 0].T, counts, strict=True):
        scores = dict(zip(_SCORES, own.tolist(), strict=True))
        values |= {f"per_label/{name}/{score}": value for score, value in scores.items()}
        values[f"per_label/{name}/support"] = int(count[0, 2])
    found = _samples(averaged, texts).intervals()
    point = metrics_of(values)
    return Metrics(point.values | found.values, point.undefined | found.undefined)


def multilabel_samples(texts: PostDecisions) -> Samples:
    """Return the figures behind the intervals.

    Args:
        texts: one at least, `[texts, labels]`.
    """
    return _samples(_averaged(_counts_of_labels(texts), texts), texts)


def _samples(averaged: Mapping[str, Floats], texts: PostDecisions) -> Samples:
    n_effective = effective_groups(texts.group_ids)
    return Samples(
        {key: averaged[key] for key in _WITH_INTERVAL},
        shares={},
        ratios=dict.fromkeys(_WITH_INTERVAL, n_effective),
    )


def _counts_of_labels(texts: PostDecisions) -> Floats:
    """Return true positives, predicted and gold of each label, `[labels, 1 + blocks, 3]`."""
    blocks, n_blocks = jackknife_blocks(texts.group_ids)
    counts = np.zeros((n_blocks, texts.labels.shape[1], 3))
    np.add.at(counts, blocks, _cells(texts))
    return leave_blocks_out(counts.transpose(1, 0, 2))


def _cells(texts: PostDecisions) -> Ints:
    """Return true positive, predicted and gold of each text and label, `[texts, labels, 3]`."""
    labels, decisions = texts.labels, texts.decisions
    return np.stack([labels * decisions, decisions, labels], axis=-1)


def _scores(counts: Floats) -> tuple[Floats, Floats, Floats]:
    """Return precision, recall and F1, `[...]`, of `[..., 3]`; 0 where the denominator is 0."""
    found, predicted, gold = np.moveaxis(counts, -1, 0)
    return (
        _or_0(divide(found, predicted)),
        _or_0(divide(found, gold)),
        _or_0(f1_score(found, predicted, gold)),
    )


def _or_0(values: Floats) -> Floats:
    zeroed: Floats = np.nan_to_num(values)
    return zeroed


def _averaged(counts: Floats, texts: PostDecisions) -> dict[str, Floats]:
    """Return the figures over all labels, each `[1 + blocks]`.

    A macro average is over the labels of the whole split. Without a block that has all gold items of a
    label it is NaN: the sample cannot tell how it would vary.
    """
    gold = counts[..., 2]
    lost = ((gold == 0) & (gold[:, :1] > 0)).any(axis=0)
    figures = {}
    for score, own in zip(_SCORES, _scores(counts), strict=True):
        figures[f"{score}_macro"] = np.where(lost, np.nan, own.mean(axis=0))
        figures[f"{score}_weighted"] = _or_0(divide((own * gold).sum(axis=0), gold.sum(axis=0)))
    for score, own in zip(_SCORES, _scores(counts.sum(axis=0)), strict=True):
        figures[f"{score}_micro"] = own
    of_texts = _scores(_cells(texts).sum(axis=1).astype(np.float64))
    right = (texts.labels == texts.decisions).all(axis=1).astype(np.float64)
    names = [*(f"{score}_samples" for score in _SCORES), "subset_accuracy"]
    return figures | dict(zip(names, _means([*of_texts, right], texts), strict=True))


def _means(values: Sequence[Floats], texts: PostDecisions) -> Floats:
    """Return the means over texts, `[values, 1 + blocks]`, of values of each text."""
    blocks, n_blocks = jackknife_blocks(texts.group_ids)
    sums = np.zeros((n_blocks, len(values) + 1))
    np.add.at(sums, blocks, np.stack([*values, np.ones(len(blocks))], axis=1))
    *totals, n_texts = np.moveaxis(leave_blocks_out(sums), -1, 0)
    return np.stack([divide(total, n_texts) for total in totals])
