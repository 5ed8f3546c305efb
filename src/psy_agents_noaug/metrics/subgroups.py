"""Figures of subgroups: is the model as good on long posts, or for each group of authors?"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.classification import PairPredictions, classification_metrics
from psy_agents_noaug.metrics.intervals import classification_samples
from psy_agents_noaug.metrics.values import Metrics
from psy_agents_noaug.utils.words import split_words

FIGURES = ("f1_macro", "f1_micro", "auroc_micro")
_COUNTS = ("n_groups", "n_pairs", "n_positive")
_WORD_LIMITS = (50, 100, 200, 400)


def subgroup_metrics(
    predictions: PairPredictions,
    values: NDArray[Any],
    *,
    criteria: Sequence[str],
    thresholds: Mapping[str, float],
) -> Metrics:
    """Return the figures of each subgroup: `<value>/<figure>`, with their intervals and counts.

    One subgroup alone is the whole split, and has no figures of its own.

    Args:
        predictions: of one split.
        values: the subgroup of each pair, `[pairs]`.
        criteria: as for `classification_metrics`.
        thresholds: as for `classification_metrics`.
    """
    found: dict[str, float | int | None] = {}
    reasons: dict[str, str] = {}
    distinct = np.unique(values).tolist()
    for name in distinct if len(distinct) > 1 else []:
        own = predictions.take(values == name)
        point = classification_metrics(own, criteria=criteria, thresholds=thresholds)
        samples = classification_samples(own, criteria=criteria, thresholds=thresholds)
        ends = samples.only(FIGURES).intervals()
        keys = [*_COUNTS, *FIGURES]
        found |= {f"{name}/{key}": point.values[key] for key in keys}
        reasons |= {f"{name}/{k}": point.undefined[k] for k in keys if k in point.undefined}
        found |= {f"{name}/{key}": end for key, end in ends.values.items()}
        reasons |= {f"{name}/{key}": reason for key, reason in ends.undefined.items()}
    return Metrics(found, reasons)


def length_groups(texts: Sequence[str]) -> NDArray[Any]:
    """Return the subgroup of each text by its number of words, `[texts]`."""
    edges = (0, *_WORD_LIMITS)
    names = [
        *(f"{low + 1}-{high} words" for low, high in itertools.pairwise(edges)),
        f"over {_WORD_LIMITS[-1]} words",
    ]
    counts = [len(split_words(text)) for text in texts]
    return np.array(names)[np.searchsorted(_WORD_LIMITS, counts, side="left")]


def met_groups(n_met: NDArray[np.int64]) -> NDArray[Any]:
    """Return the subgroup of each post by the number of its met criteria."""
    return np.select(
        [n_met == 0, n_met == 1, n_met <= 3], ["none met", "1 met", "2-3 met"], "4 or more met"
    )
