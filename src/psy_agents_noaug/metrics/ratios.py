"""Ratios of counts, elementwise: the only implementation of F1."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def divide(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    """Return numerator / denominator in the numerator's shape; NaN where the denominator is 0."""
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    ratio = np.full(above.shape, np.nan)
    np.divide(above, below, out=ratio, where=below > 0)
    return ratio


def harmonic_mean(precision: ArrayLike, recall: ArrayLike) -> NDArray[np.float64]:
    """Return the harmonic mean of two ratios, 0 where both are 0."""
    both = np.asarray(precision) + np.asarray(recall)
    return np.nan_to_num(divide(2 * np.asarray(precision) * np.asarray(recall), both))


def f1_score(
    true_positives: ArrayLike,
    predicted: ArrayLike,
    gold: ArrayLike,
    *,
    found: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Return F1, the harmonic mean of precision and recall.

    Without `found` it is 2 TP / (predicted + gold), which rounds once. With `found` it is computed
    from the two ratios, because a predicted span and a gold span need not match one to one.

    Args:
        true_positives: right predictions.
        predicted: all predictions.
        gold: all gold items.
        found: gold items that some prediction matches; recall is `found` / `gold`.

    Returns:
        The shape of `true_positives`; 0 where nothing is right, NaN where `gold` is 0.
    """
    if found is None:
        f1 = divide(2 * np.asarray(true_positives), np.asarray(predicted) + np.asarray(gold))
    else:
        precision = np.nan_to_num(divide(true_positives, predicted))
        recall = np.nan_to_num(divide(found, gold))
        f1 = harmonic_mean(precision, recall)
    return np.where(np.asarray(gold) > 0, f1, np.nan)
