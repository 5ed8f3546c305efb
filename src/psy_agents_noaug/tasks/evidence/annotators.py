"""How well annotators find each other's evidence: the IOU F1 that a model can be held against.

As in `tasks.criteria.annotators`, each annotator is judged against the merged evidence of others, and
the model against the same evidence of the same pairs. Left out is who says met without evidence, and
whose others do: what they mean is not known.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.merging import MergeRule, Vote
from psy_agents_noaug.metrics.jackknife import intervals
from psy_agents_noaug.metrics.spans import SpanPredictions, span_samples
from psy_agents_noaug.metrics.values import value_of
from psy_agents_noaug.tasks.base import MetricValues, flat_metrics
from psy_agents_noaug.tasks.evidence.decoding import NO_SPAN

_FIGURES = ("evidence_iou_f1", "evidence_char_f1")


def annotator_span_metrics(
    examples: Sequence[Example],
    model: SpanPredictions,
    *,
    threshold: float,
    rule: MergeRule,
    criteria: Sequence[str],
) -> MetricValues:
    """Return the F1 of the annotators' evidence, and that of the model against the same evidence.

    Args:
        examples: the pairs of a split.
        model: its predictions of the same pairs.
        threshold: of the model's spans.
        rule: by which labels are merged.
        criteria: ids, those of the averages.

    Returns:
        `annotators/evidence_n_votes`, judged against the others' evidence; `annotators/evidence_iou_f1`
        and `evidence_char_f1`; the same of the model after `annotators/model/`; and
        `annotators/evidence_iou_f1_gain`, the model's minus the annotators', paired; with intervals.
    """
    judged = [
        (index, vote, others)
        for index, example in enumerate(examples)
        for vote, others in rule.references(example.votes)
        if _is_known(vote) and _is_known(others)
    ]
    found: MetricValues = {"annotators/evidence_n_votes": len(judged)}
    if not judged:
        return found
    of_model = replace(
        model.take(np.asarray([index for index, _, _ in judged])),
        gold=[_borders(others) for _, _, others in judged],
    )
    starts, ends, scores = _as_predictions([_borders(vote) for _, vote, _ in judged])
    of_people = replace(of_model, starts=starts, ends=ends, scores=scores)
    people = span_samples(of_people, criteria=criteria, threshold=0.0).only(_FIGURES)
    own = span_samples(of_model, criteria=criteria, threshold=threshold).only(_FIGURES)
    for prefix, samples in (("annotators/", people), ("annotators/model/", own)):
        values = {key: value_of(figure) for key, figure in samples.values.items()}
        own_figures = {**values, **flat_metrics(samples.intervals())}
        found |= {f"{prefix}{key}": value for key, value in own_figures.items()}
    gain = own.values["evidence_iou_f1"] - people.values["evidence_iou_f1"]
    key = "annotators/evidence_iou_f1_gain"
    return {
        **found,
        key: value_of(gain),
        **flat_metrics(intervals({key: gain}, bounded=False)),
    }


def _is_known(vote: Vote) -> bool:
    return vote.label == 0 or bool(vote.evidence)


def _borders(vote: Vote) -> list[tuple[int, int]]:
    return [(span.start_char, span.end_char) for span in vote.evidence]


def _as_predictions(
    spans: Sequence[Sequence[tuple[int, int]]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return starts, ends and scores of spans, `[pairs, spans]`; all that there are have score 0."""
    width = max(1, *map(len, spans))
    borders = np.full((len(spans), width, 2), NO_SPAN)
    for row, own in enumerate(spans):
        borders[row, : len(own)] = np.asarray(own).reshape(-1, 2)
    starts, ends = borders[..., 0], borders[..., 1]
    return starts, ends, np.where(starts == NO_SPAN, -np.inf, 0.0)
