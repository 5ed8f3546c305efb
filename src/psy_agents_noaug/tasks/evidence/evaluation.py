"""Metrics of predicted evidence, from any model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import HELD_OUT, Example
from psy_agents_noaug.data.merging import MergeRule
from psy_agents_noaug.metrics.calibration import by_folds
from psy_agents_noaug.metrics.held_out import held_out_spans
from psy_agents_noaug.metrics.jackknife import intervals
from psy_agents_noaug.metrics.names import EVIDENCE_BASELINES, EVIDENCE_FIGURES
from psy_agents_noaug.metrics.spans import (
    SpanPredictions,
    best_answer,
    fit_null_threshold,
    kept_spans,
    span_metrics,
    span_overlaps,
    span_samples,
)
from psy_agents_noaug.metrics.tables import (
    against_others,
    compared_systems,
    format_value,
    render_table,
)
from psy_agents_noaug.metrics.values import Ints, value_of
from psy_agents_noaug.tasks.base import (
    BASELINE,
    DecisionColumns,
    DecisionRule,
    MetricValues,
    Predictions,
    SplitPredictions,
    TaskEvaluation,
    decision_rows,
    example_ids,
    flat_metrics,
)
from psy_agents_noaug.tasks.evidence.annotators import annotator_span_metrics
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
    "token F1": "answerable/evidence_token_f1",
    "exact": "answerable/evidence_exact_match",
    "token F1, all": "evidence_token_f1",
    "detection F1": "evidence_detection_f1",
    "AP": "evidence_detection_average_precision",
}
_TRAINED = ("tfidf_lr", "tfidf_sentence")  # the baselines that count words of the training posts


class EvidenceEvaluation(TaskEvaluation):
    """Compares span candidates with the gold spans of each split.

    Predictions hold `span_starts`, `span_ends` and `span_scores`, `[pairs, spans]`, see
    `SpanCandidates`.

    Args:
        criteria: those of the pairs.
        examples: the pairs of each split, in the order of the predictions; their evidence is known.
        seed: of the TF-IDF baseline.
        merge: how the labels of annotators were merged; None: they were not.
    """

    needs_training_pairs = False

    def __init__(
        self,
        *,
        criteria: Sequence[Criterion],
        examples: Mapping[str, Sequence[Example]],
        seed: int,
        merge: MergeRule | None = None,
    ) -> None:
        self._merge = merge
        self._criteria = list(criteria)
        self._criterion_ids = [criterion.criterion_id for criterion in criteria]
        self._examples = examples
        self._seed = seed
        self._candidates: dict[tuple[str, str], SpanCandidates] = {}

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
        if self._merge is not None:
            metrics |= annotator_span_metrics(
                self._examples[split],
                self._spans(split, _candidates(predicted.values)),
                threshold=predicted.rule[THRESHOLD],
                rule=self._merge,
                criteria=self._criterion_ids,
            )
        for name in EVIDENCE_BASELINES:
            if name in _TRAINED and "train" not in self._examples:
                continue
            spans = self._spans(split, self._baseline(name, split))
            threshold = self._baseline_threshold(name)
            baseline = flat_metrics(
                span_metrics(spans, criteria=self._criterion_ids, threshold=threshold)
            )
            own = span_samples(spans, criteria=self._criterion_ids, threshold=threshold)
            gain = samples.values["evidence_iou_f1"] - own.values["evidence_iou_f1"]
            baseline |= flat_metrics(own.intervals()) | {
                "evidence_iou_f1_gain": value_of(gain),
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
        baseline, threshold = None, 0.0
        if "train" in self._examples:
            known = [*self._criteria, *criteria]
            baseline, of_val = (
                self._spans(split, self._similar_sentence(self._examples[split], known))
                for split in (HELD_OUT, "val" if "val" in self._examples else "train")
            )
            threshold = fit_null_threshold(of_val, criteria=self._criterion_ids)
        found = held_out_spans(
            self._spans(HELD_OUT, _candidates(predicted.values)),
            baseline,
            criteria=[criterion.criterion_id for criterion in criteria],
            threshold=predicted.rule[THRESHOLD],
            baseline_threshold=threshold,
        )
        return flat_metrics(found)

    def records(self, predicted: SplitPredictions) -> Iterator[dict[str, Any]]:
        """Yield the prediction line of each pair."""
        examples = self._examples[predicted.split]
        lines = decision_rows(self.decisions(examples, predicted.values, predicted.rule))
        for example, line in zip(examples, lines, strict=True):
            yield {**example_ids(example), **with_gold(example, line)}

    def baseline_records(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the prediction line of each pair by the classifier of sentences."""
        if "train" not in self._examples:
            return iter(())
        starts, ends, scores = self._baseline(BASELINE, split)
        values = {"span_starts": starts, "span_ends": ends, "span_scores": scores}
        rule = {THRESHOLD: self._baseline_threshold(BASELINE)}
        return self.records(SplitPredictions(split, values, rule))

    def decisions(
        self, examples: Sequence[Example], values: Predictions, rule: DecisionRule
    ) -> DecisionColumns:
        """Return the columns of `evidence_columns`."""
        return evidence_columns(values, rule)

    def summary(self, metrics: MetricValues) -> str:
        """Render the metrics per criterion, and a comparison with the baselines."""
        columns = EVIDENCE_FIGURES
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
        systems = compared_systems(
            metrics,
            EVIDENCE_BASELINES,
            key="evidence_iou_f1",
            name="IOU F1",
            columns=_COMPARED_METRICS,
            more_rows=against_others(metrics, "evidence_iou_f1", n_columns=len(_COMPARED_METRICS)),
            notes=[
                "token F1, exact: pairs with evidence; all: all pairs; without evidence no span is "
                "right"
            ],
        )
        return f"{render_table(rows, rules=(1, len(rows) - 1), left=2)}\n\n{systems}"

    def _baseline(self, name: str, split: str) -> SpanCandidates:
        """Return what a baseline predicts, which is computed once."""
        if (name, split) not in self._candidates:
            examples = self._examples[split]
            train = self._examples.get("train", ())
            self._candidates[name, split] = self._predict_baseline(name, examples, train=train)
        return self._candidates[name, split]

    def _predict_baseline(
        self, name: str, examples: Sequence[Example], *, train: Sequence[Example]
    ) -> SpanCandidates:
        match name:
            case "tfidf_lr":
                return classified_sentences(examples, train=train, seed=self._seed)
            case "tfidf_sentence":
                return self._similar_sentence(examples, self._criteria)
            case "first_sentence":
                return first_sentence(examples)
            case "whole_post":
                return whole_post(examples)
        return no_evidence(examples)

    def _baseline_threshold(self, name: str) -> float:
        """Return the threshold fitted on val; of a training that has learned val, on folds of train.

        Without train it is 0, so that every span counts.
        """
        if "val" in self._examples:
            spans = self._spans("val", self._baseline(name, "val"))
        elif "train" in self._examples:
            spans = self._spans("train", self._out_of_fold(name))
        else:
            return 0.0
        return fit_null_threshold(spans, criteria=self._criterion_ids)

    def _out_of_fold(self, name: str) -> SpanCandidates:
        """Return what a baseline predicts of each fold of train when it has learned the others."""
        train = self._examples["train"]

        def predict(own: Ints, others: Ints) -> dict[str, np.ndarray]:
            learned, judged = ([train[index] for index in rows] for rows in (others, own))
            found = self._predict_baseline(name, judged, train=learned)
            return {"starts": found.starts, "ends": found.ends, "scores": found.scores}

        groups = np.asarray([example.group_id for example in train])
        return SpanCandidates(**by_folds(groups, predict))

    def _similar_sentence(
        self, examples: Sequence[Example], criteria: Sequence[Criterion]
    ) -> SpanCandidates:
        """Return the most similar sentences, which no label decides."""
        return similar_sentence(
            examples,
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


def evidence_columns(values: Predictions, rule: DecisionRule) -> DecisionColumns:
    """Return the predicted spans of each pair, best first, and what they passed.

    Columns: `evidence`, lists of `start_char`, `end_char` and `score`; `null_score_diff`, minus the
    score of the best span (None: there is none); `null_score_diff_threshold`.

    Args:
        values: with the fields of `SpanCandidates`.
        rule: with the threshold.
    """
    starts, ends, scores = _candidates(values)
    threshold = rule[THRESHOLD]
    kept = kept_spans(starts, ends, scores, threshold=threshold)
    return {
        "evidence": [
            [
                {"start_char": start, "end_char": end, "score": score}
                for (start, end), score in zip(spans, own, strict=False)
            ]
            for spans, own in zip(kept, scores.tolist(), strict=True)
        ],
        "null_score_diff": [-best if np.isfinite(best) else None for best in scores[:, 0].tolist()],
        THRESHOLD: [threshold] * len(kept),
    }


def with_gold(example: Example, line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of `evidence_columns` of a pair, beside its gold evidence.

    `right` (of a predicted span) and `found` (of a gold span) are true if the IOU with a span of the
    other kind is at least 0.5, as in the metrics. `exact_match` and `token_f1` are the pair's, by
    SQuAD's rules. All are None where the gold evidence is unknown.
    """
    gold = [(span.start_char, span.end_char) for span in example.evidence]
    kept = [(span["start_char"], span["end_char"]) for span in line["evidence"]]
    matches = span_overlaps(example.text, kept, gold)
    is_unknown = example.label == 1 and not example.evidence
    gold_evidence = [
        {"start_char": start, "end_char": end, "found": bool(match.any())}
        for (start, end), match in zip(gold, matches.T, strict=True)
    ]
    evidence = [
        {**span, "right": None if is_unknown else bool(match.any())}
        for span, match in zip(line["evidence"], matches, strict=True)
    ]
    exact, own_f1 = (None, None) if is_unknown else best_answer(example.text, kept, gold)
    entries: dict[str, Any] = {}
    for name, value in line.items():  # in their order
        entries[name] = value
        if name == "evidence":
            entries |= {name: evidence, "gold_evidence": None if is_unknown else gold_evidence}
            entries |= {"exact_match": exact, "token_f1": own_f1}
    return entries


def _candidates(predictions: Predictions) -> SpanCandidates:
    return SpanCandidates(
        predictions["span_starts"], predictions["span_ends"], predictions["span_scores"]
    )
