"""Metrics of the label and its evidence together.

`supported_*` and the two shares below are over the pairs whose evidence is known.

- `supported_*`: precision, recall and F1 of "met", where a positive decision is right only if the label
  is met and a predicted span is right (IOU >= 0.5 with a gold span, as in `metrics.spans`). Plain keys
  are means over the criteria with a met pair; `_micro` pools all pairs.
- `positive_without_evidence`: share of the positive decisions for which no evidence is predicted.
- `evidence_without_positive`: share of the pairs with predicted evidence whose decision is negative.
- `joint_score`: the mean of `f1_macro` and `evidence_iou_f1`.
- `comprehensiveness`, `sufficiency` (ERASER, DeYoung et al. 2020): mean decrease of p(met) when the
  predicted spans are removed from the post, and when only they remain; over the positive decisions
  with predicted evidence. `_random`: the same for as many words at random places of the post, since
  any removal may lower p(met); `_gain`: the first minus the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psy_agents_noaug.metrics.intervals import macro
from psy_agents_noaug.metrics.jackknife import (
    effective_groups,
    intervals,
    jackknife_blocks,
    leave_blocks_out,
)
from psy_agents_noaug.metrics.ratios import divide, f1_score
from psy_agents_noaug.metrics.values import (
    NO_PAIRS,
    Floats,
    Metrics,
    ValueOrReason,
    metrics_of,
)

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class JointDecisions:
    """The decisions on each pair; all arrays have shape [pairs].

    Attributes:
        labels: whether the criterion is met.
        decisions: whether it is predicted as met.
        predicted: whether evidence is predicted.
        right: whether a predicted span is right.
        criterion_ids: strings.
        group_ids: strings, the author (or post) of each pair; the units of the interval.
    """

    labels: Flags
    decisions: Flags
    predicted: Flags
    right: Flags
    criterion_ids: NDArray[Any]
    group_ids: NDArray[Any]


def joint_metrics(
    decisions: JointDecisions, *, criteria: Sequence[str], with_interval: bool
) -> Metrics:
    """Return `supported_*`, `positive_without_evidence` and `evidence_without_positive`.

    Args:
        decisions: one entry per pair with known evidence.
        criteria: every criterion, including those without pairs.
        with_interval: add the interval of `supported_f1`, see `metrics.jackknife`.
    """
    blocks, n_blocks = jackknife_blocks(decisions.group_ids)
    index = np.array([criteria.index(name) for name in decisions.criterion_ids], dtype=np.int64)
    counts = np.zeros((len(criteria), n_blocks, 3))  # supported, predicted met, met
    supported = decisions.labels & decisions.decisions & decisions.right
    np.add.at(
        counts,
        (index, blocks),
        np.stack([supported, decisions.decisions, decisions.labels], axis=1).astype(float),
    )
    whole = counts.sum(axis=1, keepdims=True)
    metrics: dict[str, ValueOrReason] = {}
    reason = "no met pair" if n_blocks else NO_PAIRS
    for name, values in supported_figures(whole).items():
        metrics[name] = _value_or_reason(
            macro(np.where(whole[..., 2] > 0, values, np.nan))[0], reason
        )
    for name, values in supported_figures(whole.sum(axis=0, keepdims=True)).items():
        metrics[f"{name}_micro"] = _value_or_reason(values[0, 0], reason)
    for position, criterion in enumerate(criteria):
        value = supported_figures(whole)["supported_f1"][position, 0]
        metrics[f"per_criterion/{criterion}/supported_f1"] = _value_or_reason(value, reason)
    decided, predicted = decisions.decisions, decisions.predicted
    metrics["positive_without_evidence"] = (
        float((decided & ~predicted).sum() / decided.sum())
        if decided.any()
        else "no positive decisions"
    )
    metrics["evidence_without_positive"] = (
        float((predicted & ~decided).sum() / predicted.sum())
        if predicted.any()
        else "no evidence predicted"
    )
    point = metrics_of(metrics)
    if not with_interval:
        return point
    values = macro(supported_figures(leave_blocks_out(counts))["supported_f1"])
    ratios = {"supported_f1": effective_groups(decisions.group_ids)}
    interval = intervals({"supported_f1": values}, ratios=ratios)
    return Metrics(point.values | interval.values, point.undefined | interval.undefined)


@dataclass(frozen=True, eq=False)
class ReducedProbabilities:
    """p(met) of the pairs that are decided met with evidence; all arrays have shape [pairs].

    Attributes:
        full: of the whole post.
        without: without the predicted spans.
        alone: of the predicted spans alone.
        without_random: without as many words at random places.
        random_alone: of these words alone.
        group_ids: strings, the author (or post) of each pair.
    """

    full: Floats
    without: Floats
    alone: Floats
    without_random: Floats
    random_alone: Floats
    group_ids: NDArray[Any]


def faithfulness(found: ReducedProbabilities) -> Metrics:
    """Return comprehensiveness and sufficiency, beside random spans, with intervals."""
    names = ("comprehensiveness", "sufficiency")
    kinds = ("", "_random", "_gain")
    if not len(found.full):
        reason = "no pair with a positive decision and evidence"
        keys = [f"{name}{kind}" for name in names for kind in kinds]
        keys += [f"{key}_ci_{end}" for key in keys for end in ("low", "high")]
        return metrics_of({"n_faithfulness": 0, **dict.fromkeys(keys, reason)})
    falls = {
        "comprehensiveness": found.full - found.without,
        "sufficiency": found.full - found.alone,
        "comprehensiveness_random": found.full - found.without_random,
        "sufficiency_random": found.full - found.random_alone,
    }
    for name in names:
        falls[f"{name}_gain"] = falls[name] - falls[f"{name}_random"]
    blocks, n_blocks = jackknife_blocks(found.group_ids)
    sums = np.zeros((n_blocks, 1 + len(falls)))
    np.add.at(sums, blocks, np.stack([np.ones(len(found.full)), *falls.values()], axis=1))
    n, *totals = np.moveaxis(leave_blocks_out(sums), -1, 0)
    samples = {name: divide(total, n) for name, total in zip(falls, totals, strict=True)}
    ends = intervals(samples, bounded=False)
    values = {name: float(fall.mean()) for name, fall in falls.items()}
    return Metrics({"n_faithfulness": len(found.full), **values, **ends.values}, ends.undefined)


def supported_figures(counts: Floats) -> dict[str, Floats]:
    """Return metrics, [criteria, samples], from [criteria, samples, 3]; NaN without a met pair."""
    supported, predicted, met = np.moveaxis(counts, -1, 0)
    precision = np.nan_to_num(divide(supported, predicted))
    return {
        "supported_precision": np.where(met > 0, precision, np.nan),
        "supported_recall": divide(supported, met),
        "supported_f1": f1_score(supported, predicted, met),
    }


def _value_or_reason(value: float, reason: str) -> ValueOrReason:
    return reason if np.isnan(value) else float(value)
