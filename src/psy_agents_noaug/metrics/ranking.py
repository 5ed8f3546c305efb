"""Figures of rankings, those of trec_eval (https://trec.nist.gov/trec_eval) but for the means' topics.

A topic (here a criterion) ranks documents (sentences) by falling score, and documents of equal score by
falling id; scores are single precision. What is ranked below `DEPTH` does not count. Average precision
(AP), R-precision and precision at 10 ask whether a gain is positive; NDCG (Järvelin and Kekäläinen 2002)
sums gains, each divided by the binary logarithm of its rank plus one.

Means are over the topics with a relevant document, as the others have no figures; trec_eval counts them
as 0. They differ where a corpus lacks a criterion. The qrels of eRisk have no such topic.

There are no intervals: with other sentences to rank the figures are others, and the jackknife's
intervals covered too little. `average_precision_macro` of `metrics.classification` has one.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from psy_agents_noaug.metrics.classification import PairPredictions
from psy_agents_noaug.metrics.values import Floats, Ints, Metrics, ValueOrReason, metrics_of

DEPTH = 1000  # of a ranking, as eRisk asks for
FIGURES = ("ap", "r_precision", "p_at_10", "ndcg_at_1000")
NO_RELEVANT = "no relevant document"


def trec_order(scores: ArrayLike, ids: NDArray[Any]) -> Ints:
    """Return the indices of documents in the order of their ranking.

    Args:
        scores: `[documents]`.
        ids: distinct strings, `[documents]`.
    """
    order: Ints = np.lexsort((ids, np.asarray(scores, dtype=np.float32)))[::-1]
    return order


def topic_figures(gains: Floats, relevant: Floats) -> dict[str, float]:
    """Return the `FIGURES` of a topic.

    Args:
        gains: of the ranked documents, in their order, `[ranked]`; 0 or less is not relevant.
        relevant: the positive gains of all relevant documents, ranked or not; one at least.
    """
    gains = np.maximum(gains[:DEPTH], 0.0)
    hits = gains > 0
    found = hits.cumsum()
    ranks = np.arange(1, len(gains) + 1)
    ideal = np.sort(relevant)[::-1][:DEPTH]
    return {
        "ap": float((found / ranks)[hits].sum() / len(relevant)),
        "r_precision": float(hits[: len(relevant)].sum() / len(relevant)),
        "p_at_10": float(hits[:10].sum() / 10),
        "ndcg_at_1000": _discounted(gains) / _discounted(ideal),
    }


def _discounted(gains: Floats) -> float:
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


def mean_figures(topics: Mapping[str, Mapping[str, float] | None]) -> Metrics:
    """Return each figure's mean over topics, and those of the topics; None: it has no relevant document.

    Keys: `n_topics`, `ap`, `r_precision`, `p_at_10`, `ndcg_at_1000`, and `per_label/<topic>/<figure>`.
    """
    defined = [own for own in topics.values() if own is not None]
    values: dict[str, ValueOrReason] = {"n_topics": len(defined)}
    for name in FIGURES:
        values[name] = fmean(own[name] for own in defined) if defined else NO_RELEVANT
        for topic, own in topics.items():
            values[f"per_label/{topic}/{name}"] = NO_RELEVANT if own is None else own[name]
    return metrics_of(values)


def ranking_metrics(
    pairs: PairPredictions, ids: NDArray[Any], *, criteria: Sequence[str]
) -> Metrics:
    """Return the figures of the sentences ranked for each criterion.

    Keys: those of `mean_figures`, and `per_label/<criterion>/support`, the relevant sentences.

    Args:
        pairs: labels and probabilities.
        ids: of the sentence of each pair, `[pairs]`.
        criteria: every criterion.
    """
    topics: dict[str, dict[str, float] | None] = {}
    support: dict[str, int] = {}
    for criterion in criteria:
        own = pairs.criterion_ids == criterion
        labels = pairs.labels[own].astype(np.float64)
        relevant = labels[labels > 0]
        order = trec_order(pairs.probabilities[own], ids[own])
        topics[criterion] = topic_figures(labels[order], relevant) if len(relevant) else None
        support[f"per_label/{criterion}/support"] = len(relevant)
    point = mean_figures(topics)
    return Metrics(point.values | support, point.undefined)
