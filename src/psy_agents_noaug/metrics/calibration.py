"""Calibration of probabilities: do 7 of 10 pairs with probability 0.7 have the label 1?

The measures are those of Van Calster et al. 2019, "Calibration: the Achilles heel of predictive
analytics": the slope (1 is right, below 1 the probabilities are too extreme) and the intercept (0 is
right, above 0 they are too low). Beside them stand the Brier score, its skill against a reference, and
the expected calibration error (ECE) with the value that it would have, in a sample of this size, if the
probabilities were exact.

The model is Platt's (1999): a logistic regression on the log-odds, with his smoothed targets. All
criteria share the slope; each has an intercept of its own, with a normal prior of unit variance around
the common one, so that a rare criterion is not fitted to a few labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.classification import (
    PairPredictions,
    brier_score,
    criterion_index,
    expected_calibration_error,
)
from psy_agents_noaug.metrics.values import NO_PAIRS, NO_TRAINING_PAIRS, Floats, Ints, ValueOrReason

_N_FOLDS = 5
_TOLERANCE = 1e-8
_N_DRAWS = 500
_EPSILON = 1e-7  # probabilities are kept this far from 0 and 1 where their log-odds are needed
_SLOPE_SCALE = 10.0  # makes the slope's prior flat
_COX = ("calibration_slope", "calibration_intercept")
CALIBRATION_METRICS = ("brier", "brier_skill", "ece", "ece_if_calibrated", *_COX)
_MIN_EVENTS = 10  # labels of each class that a slope needs


@dataclass(frozen=True)
class Calibration:
    """Calibrated log-odds are `slope` times the log-odds, plus the criterion's intercept.

    Attributes:
        slope: above 0, so that ranks are kept.
        intercepts: by criterion.
    """

    slope: float
    intercepts: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain containers, for a checkpoint."""
        return asdict(self)

    def apply(self, predictions: PairPredictions) -> PairPredictions:
        """Return the predictions with calibrated probabilities."""
        intercepts = np.array([self.intercepts[name] for name in predictions.criterion_ids])
        odds = self.slope * _log_odds(predictions.probabilities) + intercepts.astype(np.float64)
        return replace(predictions, probabilities=_from_log_odds(odds))


def fit_calibration(predictions: PairPredictions, *, criteria: Sequence[str]) -> Calibration:
    """Fit the calibration on the predictions of val.

    Without labels of both classes, or if probabilities would have to be turned around, it changes
    nothing.

    Args:
        predictions: of val.
        criteria: every criterion, including those without pairs.
    """
    from sklearn.linear_model import LogisticRegression

    labels = predictions.labels
    identity = Calibration(1.0, dict.fromkeys(criteria, 0.0))
    n_positive = int(labels.sum())
    n_negative = len(labels) - n_positive
    if not n_positive or not n_negative:
        return identity
    index = criterion_index(predictions, criteria)
    features = np.zeros((len(labels), 1 + len(criteria)))
    features[:, 0] = _SLOPE_SCALE * _log_odds(predictions.probabilities)
    features[np.arange(len(labels)), 1 + index] = 1.0
    # Platt's targets: a pair counts as positive with this weight, and as negative with the rest.
    targets = np.where(labels == 1, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    model = LogisticRegression(solver="newton-cholesky", tol=_TOLERANCE).fit(
        np.concatenate([features, features]),
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    slope, own = float(model.coef_[0, 0]) * _SLOPE_SCALE, model.coef_[0, 1:]
    if slope <= 0:
        return identity
    common = float(model.intercept_[0])
    return Calibration(
        slope, {c: common + float(own[position]) for position, c in enumerate(criteria)}
    )


def at_prevalence(probabilities: Floats, *, fitted: Floats, wanted: Floats) -> Floats:
    """Return calibrated probabilities as they are where a criterion is met more or less often.

    The odds are multiplied by the ratio of the prior odds: Saerens, Latinne & Decaestecker 2002,
    "Adjusting the outputs of a classifier to new a priori probabilities", eq. 2.4. It supposes that
    posts that meet a criterion are alike in both places, and so are those that do not.

    Args:
        probabilities: calibrated where the criterion's prevalence is `fitted`, `[pairs]`.
        fitted: the prevalence there, `[pairs]`.
        wanted: the prevalence here, `[pairs]`.
    """
    shift = _log_odds(wanted) - _log_odds(fitted)
    return _from_log_odds(_log_odds(probabilities) + shift)


def cross_fitted(
    predictions: PairPredictions, *, criteria: Sequence[str]
) -> PairPredictions | None:
    """Return the predictions, those of each fold calibrated by what the other folds say.

    The folds keep groups together. So the calibration of val can be judged on val. None if there is one
    group alone.
    """
    folds = group_folds(predictions.group_ids)
    if folds is None:
        return None
    probabilities = predictions.probabilities.copy()
    for fold in np.unique(folds):
        own = folds == fold
        calibration = fit_calibration(predictions.take(~own), criteria=criteria)
        probabilities[own] = calibration.apply(predictions.take(own)).probabilities
    return replace(predictions, probabilities=probabilities)


def group_folds(group_ids: NDArray[Any]) -> Ints | None:
    """Return the fold of each pair, `[pairs]`, which keeps groups together; None of one group alone."""
    ids, groups = np.unique(group_ids, return_inverse=True)
    if len(ids) < 2:
        return None
    folds: Ints = (np.random.default_rng(0).permutation(len(ids)) % _N_FOLDS)[groups]
    return folds


def by_folds(
    group_ids: NDArray[Any], predict: Callable[[Ints, Ints], Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Return predictions of each fold of `group_folds` by what learns from the other folds.

    Args:
        group_ids: of each pair, `[pairs]`; of two groups or more.
        predict: returns arrays, `[own]` or `[own, n]`, by name, of the pairs `own` (indices) by what has
            learned the pairs `others`; called as `predict(own, others)`.
    """
    folds = group_folds(group_ids)
    assert folds is not None
    found: dict[str, NDArray[Any]] = {}
    for fold in np.unique(folds):
        own, others = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        for name, values in predict(own, others).items():
            whole = found.setdefault(name, np.zeros((len(folds), *values.shape[1:]), values.dtype))
            whole[own] = values
    return found


def calibration_metrics(
    predictions: PairPredictions, *, reference: Floats | None
) -> dict[str, ValueOrReason]:
    """Return the measures of this module's docstring.

    Keys: `brier`, `brier_skill`, `ece`, `ece_if_calibrated`, `calibration_slope`,
    `calibration_intercept`.

    Args:
        predictions: of one split.
        reference: p(met) of the reference whose Brier score the skill is measured against, `[pairs]`;
            None where there is none.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    if not len(labels):
        return dict.fromkeys(CALIBRATION_METRICS, NO_PAIRS)
    brier = brier_score(labels, probabilities)
    skill: ValueOrReason = NO_TRAINING_PAIRS
    if reference is not None:
        worst = brier_score(labels, reference)
        skill = 1 - brier / worst if worst else "the reference is never wrong"
    return {
        "brier": brier,
        "brier_skill": skill,
        "ece": expected_calibration_error(labels, probabilities),
        "ece_if_calibrated": _ece_if_calibrated(probabilities),
        **_slope_and_intercept(labels, probabilities),
    }


def _ece_if_calibrated(probabilities: Floats) -> float:
    """Return the mean ECE of labels that are drawn with exactly these probabilities."""
    ordered = np.sort(probabilities)
    rng = np.random.default_rng(0)
    return fmean(
        expected_calibration_error((rng.random(len(ordered)) < ordered).astype(np.int64), ordered)
        for _ in range(_N_DRAWS)
    )


def _slope_and_intercept(labels: Ints, probabilities: Floats) -> dict[str, ValueOrReason]:
    """Return Cox's slope and intercept (1958); the intercept is at the slope 1."""
    from scipy.optimize import brentq
    from sklearn.linear_model import LogisticRegression

    n_fewer = min(int(labels.sum()), int((1 - labels).sum()))
    if n_fewer < _MIN_EVENTS:
        reason = f"too few: {n_fewer} labels of the rarer class, below {_MIN_EVENTS}"
        return dict.fromkeys(_COX, reason)
    order = np.lexsort((labels, probabilities))  # the sums below depend on no order of rows
    odds, labels = _log_odds(probabilities[order]), labels[order]
    if np.ptp(odds) == 0:
        slope: ValueOrReason = "all probabilities are equal"
    else:
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=_TOLERANCE).fit(
            odds[:, None], labels
        )
        slope = float(model.coef_[0, 0])
    bound = float(np.abs(odds).max()) + 2 * np.log(len(odds)) + 1
    intercept = brentq(
        lambda shift: float((_from_log_odds(odds + shift) - labels).sum()), -bound, bound
    )
    return dict(zip(_COX, (slope, float(intercept)), strict=True))


def _log_odds(probabilities: Floats) -> Floats:
    inside = np.clip(probabilities, _EPSILON, 1 - _EPSILON)
    odds: Floats = np.log(inside) - np.log1p(-inside)
    return odds


def _from_log_odds(odds: Floats) -> Floats:
    from scipy.special import expit

    probabilities: Floats = expit(odds)
    return probabilities
