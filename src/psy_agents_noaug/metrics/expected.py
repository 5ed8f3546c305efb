"""The intervals that figures will have on a split, before there is a model.

Predictions of a model of a given AUROC are drawn for the pairs as they are, with their labels and
groups, and given the intervals of `metrics.intervals`. Scores are binormal (Dorfman and Alf 1969,
"Maximum-likelihood estimation of parameters of signal-detection theory"): normal with variance 1, and
higher by sqrt(2) times the normal quantile of the AUROC for met pairs. Each criterion is decided by the
threshold that has the highest expected F1. Of the variance, `SHARED` is common to the pairs of a group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.classification import PairPredictions
from psy_agents_noaug.metrics.intervals import classification_samples
from psy_agents_noaug.metrics.values import Floats, Ints

SHARED = 0.3
_MIN_DRAWS, _MAX_DRAWS, _PAIRS_DRAWN = 3, 20, 20_000


@dataclass(frozen=True)
class ExpectedInterval:
    """The interval that a figure will have.

    Args:
        value: mean of the drawn figures; None: the figure is undefined.
        half_width: half of the mean width of their intervals; None: most draws have too few met pairs
            for one.
    """

    value: float | None
    half_width: float | None


def expected_intervals(
    labels: Ints,
    criterion_ids: NDArray[Any],
    group_ids: NDArray[Any],
    *,
    prevalences: Mapping[str, float],
    auroc: float,
    seed: int = 0,
) -> dict[str, ExpectedInterval]:
    """Return `f1_macro`, `f1_micro` and `per_criterion/<id>/f1` of a split of these pairs.

    Args:
        labels: 0 or 1, `[pairs]`.
        criterion_ids: `[pairs]`.
        group_ids: author or post, `[pairs]`.
        prevalences: the share of met pairs of each criterion, for its threshold; above 0, below 1.
        auroc: of the model, within each criterion.
        seed: of the draws.
    """
    from scipy.special import expit

    rng = np.random.default_rng(seed)
    separation = separation_of(auroc)
    cutoffs = {one: best_cutoff(share, separation) for one, share in prevalences.items()}
    thresholds = {one: float(expit(cutoff)) for one, cutoff in cutoffs.items()}
    criteria = list(prevalences)
    keys = ["f1_macro", "f1_micro", *(f"per_criterion/{one}/f1" for one in criteria)]
    _, groups = np.unique(group_ids, return_inverse=True)
    n_draws = int(np.clip(_PAIRS_DRAWN // max(len(labels), 1), _MIN_DRAWS, _MAX_DRAWS))
    drawn: list[tuple[list[float], list[float | None]]] = []
    for _ in range(n_draws):
        scores = draw_scores(rng, labels, groups, separation=separation)
        predictions = PairPredictions(labels, expit(scores), criterion_ids, group_ids)
        samples = classification_samples(predictions, criteria=criteria, thresholds=thresholds)
        own = samples.only(keys)
        ends = own.intervals().values
        widths = [
            None if (low := ends[f"{key}_ci_low"]) is None else float(ends[f"{key}_ci_high"]) - low  # type: ignore[arg-type]
            for key in keys
        ]
        drawn.append(([float(own.values[key][0]) for key in keys], widths))
    return {
        key: _expected([values[n] for values, _ in drawn], [widths[n] for _, widths in drawn])
        for n, key in enumerate(keys)
    }


def draw_scores(
    rng: np.random.Generator, labels: Ints, groups: Ints, *, separation: float
) -> Floats:
    """Return a score for each pair, `[pairs]`; `groups` are numbers from 0."""
    n_groups = int(groups.max()) + 1 if len(groups) else 0
    common = rng.normal(size=n_groups)[groups]
    own = rng.normal(size=len(labels))
    noise: Floats = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own
    return separation * labels + noise


def separation_of(auroc: float) -> float:
    """Return how much higher met pairs score, in standard deviations."""
    from scipy.stats import norm

    return float(np.sqrt(2) * norm.ppf(auroc))


def best_cutoff(prevalence: float, separation: float) -> float:
    """Return the score from which to decide met, for the highest F1 in a large population."""
    from scipy.stats import norm

    cutoffs = np.linspace(-4, 8, 241)
    found = prevalence * norm.sf(cutoffs - separation)
    decided = found + (1 - prevalence) * norm.sf(cutoffs)
    return float(cutoffs[np.argmax(2 * found / (prevalence + decided))])


def _expected(values: Sequence[float], widths: Sequence[float | None]) -> ExpectedInterval:
    known = [width for width in widths if width is not None]
    half = float(np.mean(known)) / 2 if 2 * len(known) > len(widths) else None
    defined = [value for value in values if not np.isnan(value)]
    return ExpectedInterval(float(np.mean(defined)) if defined else None, half)
