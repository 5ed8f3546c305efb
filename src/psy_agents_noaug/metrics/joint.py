"""Metrics that ask for the label and its evidence together.

Supported figures and consistency are over the pairs whose evidence is known.

- `supported_*`: precision, recall and F1 of "met", where a positive decision is right only if the label
  is met and a predicted span is right (IOU >= 0.5 with a gold one, as in `metrics.spans`). Means over
  the criteria with a met pair, and `_micro` over all pairs.
- `positive_without_evidence`: share of the positive decisions for which no evidence is predicted.
- `evidence_without_positive`: share of the pairs with predicted evidence that are decided unmet.
- `joint_score`: the mean of `f1_macro` and `evidence_iou_f1`.
- `comprehensiveness`, `sufficiency` (ERASER, DeYoung et al. 2020): mean fall of p(met) when the
  predicted spans are taken out of the post, and when they alone are left; over the pairs that are
  decided met with evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.classification import NO_PAIRS, Figure, Floats, Metrics, metrics_of
from psy_agents_noaug.metrics.intervals import draw_group_counts, macro, percentile_intervals
from psy_agents_noaug.metrics.ratios import divide, f1_score

Flags = NDArray[np.bool_]
_CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class JointDecisions:
    """What was decided of each pair; all arrays have shape [pairs].

    labels, decisions: met or not; predicted: evidence is predicted; right: one of its spans is right;
    criterion_ids, group_ids: strings.
    """

    labels: Flags
    decisions: Flags
    predicted: Flags
    right: Flags
    criterion_ids: NDArray[Any]
    group_ids: NDArray[Any]


def joint_metrics(
    decisions: JointDecisions, *, criteria: Sequence[str], n_resamples: int | None, seed: int
) -> Metrics:
    """Return supported F1 and the consistency; with `n_resamples`, an interval over resampled posts."""
    ids, groups = np.unique(decisions.group_ids, return_inverse=True)
    index = np.array([criteria.index(name) for name in decisions.criterion_ids], dtype=np.int64)
    counts = np.zeros((len(criteria), len(ids), 3))  # supported, decided met, met
    supported = decisions.labels & decisions.decisions & decisions.right
    np.add.at(
        counts,
        (index, groups),
        np.stack([supported, decisions.decisions, decisions.labels], axis=1).astype(float),
    )
    whole = counts.sum(axis=1, keepdims=True)
    figures: dict[str, Figure] = {}
    reason = "no met pair" if len(ids) else NO_PAIRS
    for name, values in _supported(whole).items():
        figures[name] = _figure(macro(np.where(whole[..., 2] > 0, values, np.nan))[0], reason)
    for name, values in _supported(whole.sum(axis=0, keepdims=True)).items():
        figures[f"{name}_micro"] = _figure(values[0, 0], reason)
    for position, criterion in enumerate(criteria):
        value = _supported(whole)["supported_f1"][position, 0]
        figures[f"per_criterion/{criterion}/supported_f1"] = _figure(value, reason)
    decided, predicted = decisions.decisions, decisions.predicted
    figures["positive_without_evidence"] = (
        float((decided & ~predicted).sum() / decided.sum())
        if decided.any()
        else "nothing decided met"
    )
    figures["evidence_without_positive"] = (
        float((predicted & ~decided).sum() / predicted.sum())
        if predicted.any()
        else "no evidence predicted"
    )
    metrics = metrics_of(figures)
    if n_resamples is None:
        return metrics
    if len(ids) > 1:
        draws = draw_group_counts(
            np.random.default_rng(seed), n_groups=len(ids), n_resamples=n_resamples
        )
        weights = np.concatenate([np.ones((len(ids), 1)), draws], axis=1)
        resampled = _supported(np.einsum("cgk,gr->crk", counts, weights, optimize=True))
        samples = {"supported_f1": macro(resampled["supported_f1"])[1:]}
        interval = percentile_intervals(samples, confidence=_CONFIDENCE)
        return Metrics(metrics.values | interval.values, metrics.undefined | interval.undefined)
    reasons = {f"supported_f1_ci_{end}": "fewer than two posts" for end in ("low", "high")}
    return Metrics(metrics.values | dict.fromkeys(reasons), metrics.undefined | reasons)


def faithfulness(full: Floats, without: Floats, alone: Floats) -> Metrics:
    """Comprehensiveness and sufficiency from p(met) `[pairs]`: full post, without spans, spans alone."""
    if not len(full):
        reason = "no pair is decided met with evidence"
        return metrics_of({"comprehensiveness": reason, "sufficiency": reason, "n_faithfulness": 0})
    return metrics_of(
        {
            "comprehensiveness": float((full - without).mean()),
            "sufficiency": float((full - alone).mean()),
            "n_faithfulness": len(full),
        }
    )


def _supported(counts: Floats) -> dict[str, Floats]:
    """From [criteria, resamples, 3] to [criteria, resamples]; NaN for criteria that are never met."""
    supported, decided, met = np.moveaxis(counts, -1, 0)
    precision = np.nan_to_num(divide(supported, decided))
    return {
        "supported_precision": np.where(met > 0, precision, np.nan),
        "supported_recall": divide(supported, met),
        "supported_f1": f1_score(supported, decided, met),
    }


def _figure(value: float, reason: str) -> Figure:
    return reason if np.isnan(value) else float(value)
