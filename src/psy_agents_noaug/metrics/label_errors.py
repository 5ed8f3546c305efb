"""Labels that are probably wrong, by predictions of a model that has not learned them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class LabelErrors(NamedTuple):
    """How far the labels of pairs can be trusted.

    Args:
        quality: the probability of the label that a pair has, in [0, 1], `[pairs]`; low is suspect.
        suspected: whether confident learning finds another label, bool `[pairs]`.
    """

    quality: NDArray[np.float64]
    suspected: NDArray[np.bool_]


def label_errors(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], criterion_ids: NDArray[np.str_]
) -> LabelErrors:
    """Rank binary labels, and find those that are suspected to be wrong, by criterion.

    The rank is self-confidence, the probability of the given label; with two labels the normalised
    margin is the same number. A pair is suspected where the other label's probability is at least the
    mean probability of that label among the pairs that have it, and its own label's is not, or is
    lower: it is counted off the diagonal of the confident joint. Of a criterion with one label only,
    none is suspected.

    Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels"
    (JAIR 2021), equations 1 and 2; Kuan and Mueller, "Model-agnostic label quality scoring to detect
    real-world label errors" (ICML DataPerf workshop 2022) for the rank.

    Args:
        labels: above 0 where the criterion is met, `[pairs]`.
        probabilities: that it is, of a model that was not trained on the pair, `[pairs]`.
        criterion_ids: of each pair, `[pairs]`.
    """
    met = labels > 0
    quality = np.where(met, probabilities, 1.0 - probabilities)
    suspected = np.zeros(len(labels), dtype=bool)
    for criterion_id in np.unique(criterion_ids):
        own = criterion_ids == criterion_id
        if met[own].all() or not met[own].any():
            continue
        mean_met, mean_not = quality[own & met].mean(), quality[own & ~met].mean()
        other = np.where(met, mean_not, mean_met)
        mine = np.where(met, mean_met, mean_not)
        is_likelier = (quality < mine) | (quality < 0.5)
        suspected |= own & (1.0 - quality >= other) & is_likelier
    return LabelErrors(quality, suspected)
