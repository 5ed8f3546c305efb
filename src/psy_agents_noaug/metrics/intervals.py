"""Intervals of the classification metrics, by the method of `metrics.jackknife`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.classification import (
    PairPredictions,
    count_outcomes,
    criterion_cutoffs,
    criterion_index,
    pair_outcomes,
)
from psy_agents_noaug.metrics.jackknife import (
    effective_groups,
    intervals,
    jackknife_blocks,
    jackknife_weights,
    leave_blocks_out,
)
from psy_agents_noaug.metrics.ratios import divide, f1_score
from psy_agents_noaug.metrics.values import Floats, Ints, Metrics

OVERALL = (
    "f1_macro",
    "f1_micro",
    "accuracy",
    "auroc_macro",
    "auroc_micro",
    "average_precision_macro",
    "average_precision_micro",
)
PER_CRITERION = (
    "f1",
    "auroc",
    "average_precision",
    "recall",
    "specificity",
    "precision",
    "npv",
)
_CHUNK_CELLS = 2**22  # pairs times samples in memory at once: 32 MiB per array


@dataclass(frozen=True)
class Samples:
    """Figures of the whole split and without each block of groups, see `metrics.jackknife`.

    Attributes:
        values: `[1 + blocks]` by key; NaN if undefined.
        shares: the figures that are shares, each with the number of groups that it is about.
        ratios: the other ratios of sums, each with its effective number of groups.
    """

    values: Mapping[str, Floats]
    shares: Mapping[str, int]
    ratios: Mapping[str, float]

    def only(self, keys: Sequence[str]) -> "Samples":
        """Return the samples of these figures."""
        return replace(self, values={key: self.values[key] for key in keys})

    def intervals(self, *, confidence: float = 0.95) -> Metrics:
        """Return `<key>_ci_low` and `<key>_ci_high` of each figure."""
        return intervals(self.values, shares=self.shares, ratios=self.ratios, confidence=confidence)


def classification_samples(
    predictions: PairPredictions, *, criteria: Sequence[str], thresholds: Mapping[str, float]
) -> Samples:
    """Return the figures behind the intervals of a split's metrics. Thresholds are fixed.

    Samples are scored by the rules of `metrics.classification`, with one exception: a macro average is
    over the criteria of the whole split, so that it has no interval if a criterion's positives are all
    of one group. The result does not depend on the order of rows.

    Args:
        predictions: labels and probabilities of one split.
        criteria: as for `classification_metrics`.
        thresholds: as for `classification_metrics`.

    Returns:
        The keys in `OVERALL`, and `per_criterion/<id>/<key>` with the keys in `PER_CRITERION`.

    Raises:
        ValueError: as for `classification_metrics`.
    """
    cutoffs = criterion_cutoffs(criteria, thresholds)
    decisions = predictions.probabilities >= cutoffs[criterion_index(predictions, criteria)]
    return decided_samples(predictions, decisions, criteria=criteria)


def decided_samples(
    predictions: PairPredictions,
    decisions: NDArray[np.bool_],
    *,
    criteria: Sequence[str],
    folds: Ints | None = None,
) -> Samples:
    """Return the figures of `classification_samples` of pairs that are decided already.

    Scores of different folds are of different models and not comparable. So AUROC and average precision
    are computed within each fold and averaged, while decisions are counted over all folds: Forman and
    Scholz 2010, "Apples-to-apples in cross-validation studies" (AUC_avg and F_tp,fp). Both rankings are
    means over met pairs, so a fold has the weight of its met pairs; theirs have equal weights, which
    differ where a criterion is rare.

    Args:
        predictions: labels and probabilities.
        decisions: whether each pair is decided met, `[pairs]`.
        criteria: as for `classification_metrics`.
        folds: the fold of each pair, `[pairs]`; None: all are of one.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    index = criterion_index(predictions, criteria)
    folds = np.zeros(len(labels), dtype=np.int64) if folds is None else folds
    blocks, n_blocks = jackknife_blocks(predictions.group_ids)
    counts = count_outcomes(
        index * n_blocks + blocks, pair_outcomes(labels, decisions), len(criteria) * n_blocks
    ).astype(np.float64)
    confusion = leave_blocks_out(counts.reshape(len(criteria), n_blocks, 4))
    of_criteria = [index == position for position in range(len(criteria))]
    pooled, *rankings = [
        _rankings_within(folds[of], labels[of], probabilities[of], blocks[of], n_blocks)
        for of in (np.ones(len(labels), dtype=bool), *of_criteria)
    ]
    values = _overall(confusion, pooled, rankings)
    shares = {"accuracy": len(np.unique(predictions.group_ids))}
    for position, (criterion, of) in enumerate(zip(criteria, of_criteria, strict=True)):
        prefix = f"per_criterion/{criterion}/"
        figures = _decision_figures(confusion[position])
        figures["auroc"], figures["average_precision"] = rankings[position]
        values |= {f"{prefix}{name}": figures[name] for name in PER_CRITERION}
        cases = {
            "recall": labels[of] == 1,
            "specificity": labels[of] == 0,
            "precision": decisions[of],
            "npv": ~decisions[of],
        }
        groups = predictions.group_ids[of]
        shares |= {f"{prefix}{name}": len(set(groups[rows])) for name, rows in cases.items()}
    n_effective = effective_groups(predictions.group_ids)
    f1 = [f"per_criterion/{criterion}/f1" for criterion in criteria]
    return Samples(values, shares, ratios=dict.fromkeys(["f1_macro", "f1_micro", *f1], n_effective))


def _rankings_within(
    folds: Ints, labels: Ints, probabilities: Floats, blocks: Ints, n_blocks: int
) -> Floats:
    """Return the mean of `_ranking_figures` over folds, weighted by their met pairs in each sample."""
    names = np.unique(folds)
    if len(names) <= 1:
        return _ranking_figures(labels, probabilities, blocks, n_blocks)
    sums, weights = np.zeros((2, 2, 1 + n_blocks))
    for own in (folds == name for name in names):
        figures = _ranking_figures(labels[own], probabilities[own], blocks[own], n_blocks)
        met = np.bincount(blocks[own], labels[own], minlength=n_blocks).astype(np.float64)
        n_met = leave_blocks_out(met[:, None])[:, 0] * ~np.isnan(figures)
        sums += np.nan_to_num(figures) * n_met
        weights += n_met
    return divide(sums, weights)


def _ranking_figures(labels: Ints, probabilities: Floats, blocks: Ints, n_blocks: int) -> Floats:
    """Return AUROC and average precision of each sample, `[2, 1 + n_blocks]`; NaN if undefined."""
    if not labels.any():
        return np.full((2, 1 + n_blocks), np.nan)
    ranking = _Ranking(labels, probabilities, blocks)
    weights = jackknife_weights(n_blocks)
    chunk = max(1, _CHUNK_CELLS // len(labels))
    parts = [
        np.stack(ranking.auroc_and_average_precision(weights[:, at : at + chunk]))
        for at in range(0, n_blocks + 1, chunk)
    ]
    return np.concatenate(parts, axis=1)


def _overall(confusion: Floats, pooled: Floats, rankings: Sequence[Floats]) -> dict[str, Floats]:
    """Return the figures over all criteria, each `[1 + blocks]`.

    Args:
        confusion: TP, FP, FN and TN, `[criteria, 1 + blocks, 4]`.
        pooled: AUROC and average precision of all pairs, `[2, 1 + blocks]`.
        rankings: AUROC and average precision of each criterion, likewise.
    """
    micro = _decision_figures(confusion.sum(axis=0))
    auroc, average_precision = np.stack(rankings, axis=1)
    return {
        "f1_macro": macro(_decision_figures(confusion)["f1"]),
        "f1_micro": micro["f1"],
        "accuracy": micro["accuracy"],
        "auroc_macro": macro(auroc),
        "auroc_micro": pooled[0],
        "average_precision_macro": macro(average_precision),
        "average_precision_micro": pooled[1],
    }


def _decision_figures(confusion: Floats) -> dict[str, Floats]:
    """Return the figures of decisions, `[...]`, from TP, FP, FN and TN, `[..., 4]`; NaN if undefined."""
    tp, fp, fn, tn = np.moveaxis(confusion, -1, 0)
    has_unmet = fp + tn > 0
    both_classes = has_unmet & (tp + fn > 0)
    return {
        "f1": np.where(has_unmet, f1_score(tp, tp + fp, tp + fn), np.nan),
        "accuracy": np.where(both_classes, divide(tp + tn, tp + fp + fn + tn), np.nan),
        "recall": divide(tp, tp + fn),
        "specificity": divide(tn, tn + fp),
        "precision": np.where(has_unmet, divide(tp, tp + fp), np.nan),
        "npv": divide(tn, tn + fn),
    }


class _Ranking:
    """Pairs sorted once by falling score, from which any number of samples are ranked.

    Pairs are counted in runs. Equal scores are one run. Neighbouring scores without a positive
    label are merged into one run: this changes neither metric and leaves at most 2 * positives + 1
    runs.
    """

    def __init__(self, labels: Ints, probabilities: Floats, groups: Ints) -> None:
        order = np.argsort(-probabilities, kind="stable")
        scores = probabilities[order]
        tie_starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
        has_positive = np.add.reduceat(labels[order], tie_starts) > 0
        starts_run = np.append(True, has_positive[1:] | has_positive[:-1])
        self.starts = tie_starts[starts_run]
        self.has_positive = has_positive[starts_run]
        self.groups = groups[order]
        positives = np.flatnonzero(labels[order])
        self.positive_groups = self.groups[positives]
        # The index among the positives of the first positive of each run that has any.
        runs = np.searchsorted(self.starts, positives, side="right")
        self.positive_starts = np.flatnonzero(np.append(True, runs[1:] != runs[:-1]))

    def auroc_and_average_precision(self, counts: Ints) -> tuple[Floats, Floats]:
        """Return both metrics of each sample, NaN where undefined; from [groups, samples]."""
        total = np.add.reduceat(counts[self.groups], self.starts, axis=0)  # [runs, samples]
        retrieved = total.cumsum(axis=0)  # pairs in a run and above
        n_pairs = retrieved[-1].astype(np.float64)
        total, retrieved = total[self.has_positive], retrieved[self.has_positive].astype(np.float64)
        positive = np.add.reduceat(counts[self.positive_groups], self.positive_starts, axis=0)
        found = positive.cumsum(axis=0)  # positives in a run and above
        n_positive = found[-1].astype(np.float64)
        n_negative = n_pairs - n_positive
        # Negatives ranked below a run, and half of those in it, which tie with its positives.
        below = n_negative - (retrieved - found) + (total - positive) / 2
        well_ordered = (positive * below).sum(axis=0)
        precision = np.divide(found, retrieved, out=np.zeros_like(retrieved), where=retrieved > 0)
        average_precision = divide((precision * positive).sum(axis=0), n_positive)
        average_precision = np.where(n_negative > 0, average_precision, np.nan)
        return divide(well_ordered, n_positive * n_negative), average_precision


def macro(values: Floats) -> Floats:
    """Return the mean over criteria, [columns], from [criteria, columns].

    The first column is the whole split. A criterion that is undefined there is left out.
    """
    defined = values[~np.isnan(values[:, 0])]
    return defined.mean(axis=0) if len(defined) else np.full(values.shape[1], np.nan)
