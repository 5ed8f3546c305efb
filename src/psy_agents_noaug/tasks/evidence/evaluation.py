"""Metrics of predicted evidence, from any model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import HELD_OUT, Example
from psy_agents_noaug.metrics.held_out import held_out_spans
from psy_agents_noaug.metrics.jackknife import intervals
from psy_agents_noaug.metrics.spans import (
    SpanPredictions,
    fit_null_threshold,
    kept_spans,
    span_metrics,
    span_overlaps,
    span_samples,
)
from psy_agents_noaug.metrics.tables import beaten_line, format_value, render_table, with_interval
from psy_agents_noaug.tasks.base import (
    DecisionRule,
    MetricValues,
    Predictions,
    SplitPredictions,
    TaskEvaluation,
    example_ids,
    flat_metrics,
)
from psy_agents_noaug.tasks.evidence.baselines import (
    classified_sentences,
    first_sentence,
    no_evidence,
    similar_sentence,
    whole_post,
)
from psy_agents_noaug.tasks.evidence.decoding import NO_SPAN, SpanCandidates
from psy_agents_noaug.utils.words import WORD_SEGMENTATION

THRESHOLD = "null_score_diff_threshold"
_COMPARED_METRICS = {
    "IOU F1": "evidence_iou_f1",
    "token F1": "answerable/evidence_token_f1",
    "exact": "answerable/evidence_exact_match",
    "token F1, all": "evidence_token_f1",
    "detection F1": "evidence_detection_f1",
    "AP": "evidence_detection_average_precision",
}
_BASELINES = {
    "tfidf_lr": "TF-IDF + LR sentences",
    "tfidf_sentence": "TF-IDF sentence",
    "first_sentence": "first sentence",
    "whole_post": "whole post",
    "none": "no evidence",
}


class EvidenceEvaluation(TaskEvaluation):
    """Compares span candidates with the gold spans of each split.

    Predictions hold `span_starts`, `span_ends` and `span_scores`, `[pairs, spans]`, see
    `SpanCandidates`.

    Args:
        criteria: those of the pairs.
        examples: the pairs of each split, in the order of the predictions; their evidence is known.
        seed: of the TF-IDF baseline.
    """

    def __init__(
        self,
        *,
        criteria: Sequence[Criterion],
        examples: Mapping[str, Sequence[Example]],
        seed: int,
    ) -> None:
        self._criteria = list(criteria)
        self._criterion_ids = [criterion.criterion_id for criterion in criteria]
        self._examples = examples
        self._seed = seed

    def fit_decision_rule(self, predictions: Predictions) -> DecisionRule:
        """Fit the `null_score_diff_threshold` on predictions of val."""
        spans = self._spans("val", _candidates(predictions))
        return {THRESHOLD: fit_null_threshold(spans, criteria=self._criterion_ids)}

    def absent_from(self, rule: DecisionRule) -> list[str]:
        """Return the name of the threshold, if the rule lacks it."""
        return [] if isinstance(rule.get(THRESHOLD), float | int) else [THRESHOLD]

    def metrics(self, predicted: SplitPredictions) -> MetricValues:
        """Return the metrics of `metrics.spans`, and the false alarms on hard negatives."""
        spans = self._spans(predicted.split, _candidates(predicted.values))
        threshold = predicted.rule[THRESHOLD]
        metrics = span_metrics(spans, criteria=self._criterion_ids, threshold=threshold)
        kept = spans.kept(threshold)
        false_alarms = [
            bool(found)
            for example, found in zip(self._examples[predicted.split], kept, strict=True)
            if example.hard_negative_spans and not example.evidence
        ]
        return {
            **flat_metrics(metrics),
            "evidence_n_posts": len({e.post_id for e in self._examples[predicted.split]}),
            THRESHOLD: threshold,
            "hard_negatives/n_pairs": len(false_alarms),
            "hard_negatives/false_alarm_rate": float(np.mean(false_alarms))
            if false_alarms
            else None,
            **(
                {}
                if false_alarms
                else {"hard_negatives/false_alarm_rate_undefined": "no hard negative"}
            ),
        }

    def report(self, predicted: SplitPredictions) -> MetricValues:
        """Return `metrics`, their intervals, and the baselines with intervals."""
        split = predicted.split
        samples = span_samples(
            self._spans(split, _candidates(predicted.values)),
            criteria=self._criterion_ids,
            threshold=predicted.rule[THRESHOLD],
        )
        metrics = self.metrics(predicted) | flat_metrics(samples.intervals())
        metrics["word_segmentation"] = WORD_SEGMENTATION
        for name in _BASELINES:
            spans = self._spans(split, self._baseline(name, split))
            threshold = fit_null_threshold(
                self._spans("val", self._baseline(name, "val")), criteria=self._criterion_ids
            )
            baseline = flat_metrics(
                span_metrics(spans, criteria=self._criterion_ids, threshold=threshold)
            )
            own = span_samples(spans, criteria=self._criterion_ids, threshold=threshold)
            gain = samples.values["evidence_iou_f1"] - own.values["evidence_iou_f1"]
            baseline |= flat_metrics(own.intervals()) | {
                "evidence_iou_f1_gain": None if np.isnan(gain[0]) else float(gain[0]),
                **flat_metrics(intervals({"evidence_iou_f1_gain": gain}, bounded=False)),
            }
            metrics |= {
                f"baseline_{name}/{key}": value
                for key, value in baseline.items()
                if not key.startswith("per_criterion/")
            }
        return metrics

    def monitors(self) -> dict[str, Literal["max", "min"]]:
        """Return the keys of `metrics` that may be monitored; higher is better for all."""
        n_pairs = len(self._examples["val"])
        no_spans: Predictions = {
            "span_starts": np.full((n_pairs, 1), NO_SPAN),
            "span_ends": np.full((n_pairs, 1), NO_SPAN),
            "span_scores": np.full((n_pairs, 1), -np.inf),
        }
        names = self.metrics(SplitPredictions("val", no_spans, {THRESHOLD: 0.0}))
        higher_is_better = ("f1", "precision", "recall", "exact_match", "average_precision")
        return {
            name: "max" for name in names if name.removesuffix("_micro").endswith(higher_is_better)
        }

    def has_right_span(self, predicted: SplitPredictions) -> np.ndarray:
        """Return whether a predicted span of each pair is right (IOU >= 0.5), bool `[pairs]`."""
        spans = self._spans(predicted.split, _candidates(predicted.values))
        kept = spans.kept(predicted.rule[THRESHOLD])
        return np.asarray(
            [
                overlaps[: len(found)].any()
                for overlaps, found in zip(spans.overlaps, kept, strict=True)
            ],
            dtype=bool,
        )

    def held_out_report(
        self, predicted: SplitPredictions, *, criteria: Sequence[Criterion]
    ) -> MetricValues:
        """Return the metrics of `metrics.held_out.held_out_spans`."""
        baseline, of_val = (
            self._spans(split, self._similar_sentence(split, [*self._criteria, *criteria]))
            for split in (HELD_OUT, "val")
        )
        found = held_out_spans(
            self._spans(HELD_OUT, _candidates(predicted.values)),
            baseline,
            criteria=[criterion.criterion_id for criterion in criteria],
            threshold=predicted.rule[THRESHOLD],
            baseline_threshold=fit_null_threshold(of_val, criteria=self._criterion_ids),
        )
        return flat_metrics(found)

    def records(self, predicted: SplitPredictions) -> Iterator[dict[str, Any]]:
        """Yield the prediction line of each pair."""
        examples = self._examples[predicted.split]
        for example, line in zip(examples, evidence_lines(examples, predicted), strict=True):
            yield {**example_ids(example), **line}

    def summary(self, metrics: MetricValues) -> str:
        """Render the metrics per criterion, and a comparison with the baselines."""
        columns = {
            "IOU F1": "evidence_iou_f1",
            "precision": "evidence_iou_precision",
            "recall": "evidence_iou_recall",
            "token F1": "answerable/evidence_token_f1",
            "exact": "answerable/evidence_exact_match",
            "detection F1": "evidence_detection_f1",
            "AP": "evidence_detection_average_precision",
        }
        rows = [["criterion", "name", "answerable", *columns]]
        for criterion in self._criteria:
            key = f"per_criterion/{criterion.criterion_id}/"
            answerable = f"{metrics[key + 'n_answerable']}/{metrics[key + 'evidence_n_pairs']}"
            values = [format_value(metrics[key + name]) for name in columns.values()]
            rows.append([criterion.criterion_id, criterion.name, answerable, *values])
        averaged = (
            f"mean of {metrics['evidence_n_criteria_in_macro']}/{len(self._criteria)} criteria"
        )
        answerable = f"{metrics['n_answerable']}/{metrics['evidence_n_pairs']}"
        rows.append(
            [
                "macro",
                averaged,
                answerable,
                *(format_value(metrics[name]) for name in columns.values()),
            ]
        )
        systems = [["system", "IOU F1 [95 % interval]", *list(_COMPARED_METRICS)[1:]]]
        prefixes = {"model": ""} | {name: f"baseline_{key}/" for key, name in _BASELINES.items()}
        for name, prefix in prefixes.items():
            _, *others = (format_value(metrics[prefix + k]) for k in _COMPARED_METRICS.values())
            systems.append([name, with_interval(metrics, f"{prefix}evidence_iou_f1"), *others])
        return (
            f"{render_table(rows, rules=(1, len(rows) - 1), left=2)}\n\n"
            f"{render_table(systems, left=2)}\n"
            "token F1, exact: pairs with evidence; all: all pairs; without evidence no span is right\n"
            + beaten_line(metrics, _BASELINES, key="evidence_iou_f1", name="IOU F1")
        )

    def _baseline(self, name: str, split: str) -> SpanCandidates:
        examples = self._examples[split]
        match name:
            case "tfidf_lr":
                return classified_sentences(
                    examples, train=self._examples["train"], seed=self._seed
                )
            case "tfidf_sentence":
                return self._similar_sentence(split, self._criteria)
            case "first_sentence":
                return first_sentence(examples)
            case "whole_post":
                return whole_post(examples)
        return no_evidence(examples)

    def _similar_sentence(self, split: str, criteria: Sequence[Criterion]) -> SpanCandidates:
        return similar_sentence(
            self._examples[split],
            train=self._examples["train"],
            criterion_texts={criterion.criterion_id: criterion.text for criterion in criteria},
        )

    def _spans(self, split: str, candidates: SpanCandidates) -> SpanPredictions:
        examples = self._examples[split]
        return SpanPredictions(
            texts=[example.text for example in examples],
            gold=[
                [(span.start_char, span.end_char) for span in example.evidence]
                for example in examples
            ],
            starts=candidates.starts,
            ends=candidates.ends,
            scores=candidates.scores,
            criterion_ids=np.asarray([example.criterion_id for example in examples]),
            group_ids=np.asarray([example.group_id for example in examples]),
        )


def evidence_lines(
    examples: Sequence[Example], predicted: SplitPredictions
) -> list[dict[str, Any]]:
    """Return the entries of each pair's prediction line that concern its evidence.

    `right` (of a predicted span) and `found` (of a gold span) are true if the IOU with a span of the
    other kind is at least 0.5, as in the metrics. Unknown gold evidence is None.
    """
    starts, ends, scores = _candidates(predicted.values)
    threshold = predicted.rule[THRESHOLD]
    lines: list[dict[str, Any]] = []
    for example, kept, pair_scores in zip(
        examples, kept_spans(starts, ends, scores, threshold=threshold), scores, strict=True
    ):
        gold = [(span.start_char, span.end_char) for span in example.evidence]
        matches = span_overlaps(example.text, kept, gold)
        is_unknown = example.label == 1 and not example.evidence
        lines.append(
            {
                "evidence": [
                    {
                        "start_char": start,
                        "end_char": end,
                        "score": float(score),
                        "right": None if is_unknown else bool(match.any()),
                    }
                    for (start, end), score, match in zip(kept, pair_scores, matches, strict=False)
                ],
                "gold_evidence": None
                if is_unknown
                else [
                    {"start_char": start, "end_char": end, "found": bool(match.any())}
                    for (start, end), match in zip(gold, matches.T, strict=True)
                ],
                "null_score_diff": float(-pair_scores[0]) if np.isfinite(pair_scores[0]) else None,
                THRESHOLD: threshold,
            }
        )
    return lines


def _candidates(predictions: Predictions) -> SpanCandidates:
    return SpanCandidates(
        predictions["span_starts"], predictions["span_ends"], predictions["span_scores"]
    )
