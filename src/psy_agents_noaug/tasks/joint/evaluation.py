"""Metrics of the label and the evidence of a pair together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from psy_agents_noaug.config.schema import NO_PROTOCOL, ProtocolConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.merging import MergeRule
from psy_agents_noaug.metrics.joint import JointDecisions, joint_metrics
from psy_agents_noaug.metrics.spans import kept_spans
from psy_agents_noaug.metrics.tables import format_value, render_table, with_interval
from psy_agents_noaug.tasks.base import (
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
from psy_agents_noaug.tasks.criteria.evaluation import CriteriaEvaluation
from psy_agents_noaug.tasks.evidence.decoding import NO_SPAN
from psy_agents_noaug.tasks.evidence.evaluation import (
    THRESHOLD,
    EvidenceEvaluation,
    evidence_columns,
    with_gold,
)
from psy_agents_noaug.tasks.joint.config import JointTaskConfig
from psy_agents_noaug.utils.words import word_spans

SpansByPair = Mapping[int, Sequence[tuple[int, int]]]  # of pairs, by their index in the split


class JointEvaluation(TaskEvaluation):
    """Evaluates the labels, the spans (as the single tasks do), and both together.

    Predictions hold the entries of both tasks. Pairs with unknown evidence count for the label only.

    Args:
        settings: of both tasks, and of the decoding.
        criteria: those of the pairs.
        examples: the pairs of each split, in the order of the predictions.
        seed: of the TF-IDF baselines and the random spans.
        subgroups: names of the examples' `subgroups`.
        merge: how the labels of annotators were merged; None: they were not.
        protocol: whose figures are reported beside ours.
    """

    needs_training_pairs = False

    def __init__(
        self,
        settings: JointTaskConfig,
        *,
        criteria: Sequence[Criterion],
        examples: Mapping[str, Sequence[Example]],
        seed: int,
        subgroups: Sequence[str] = (),
        merge: MergeRule | None = None,
        protocol: ProtocolConfig = NO_PROTOCOL,
    ) -> None:
        self._settings = settings
        self._criterion_ids = [criterion.criterion_id for criterion in criteria]
        self._examples = dict(examples)
        self._seed = seed
        self._known = {
            split: np.asarray([bool(e.evidence) or e.label == 0 for e in pairs], dtype=bool)
            for split, pairs in examples.items()
        }
        known_examples = {
            split: [e for e, known in zip(pairs, self._known[split], strict=True) if known]
            for split, pairs in examples.items()
        }
        self._labels = CriteriaEvaluation(
            settings.criteria,
            criteria=criteria,
            examples=examples,
            seed=seed,
            subgroups=subgroups,
            merge=merge,
            protocol=protocol,
        )
        self._evidence = EvidenceEvaluation(
            criteria=criteria, examples=known_examples, seed=seed, merge=merge
        )

    def n_unknown(self, split: str) -> int:
        """Return the number of met pairs with unknown evidence."""
        return int((~self._known[split]).sum())

    def fit_decision_rule(self, predictions: Predictions) -> DecisionRule:
        """Fit the thresholds of both tasks on predictions of val."""
        labels = self._labels.fit_decision_rule(predictions)
        found = self._without_spans_of_unmet(self._examples["val"], predictions, labels)
        known = {name: value[self._known["val"]] for name, value in found.items()}
        evidence = self._evidence.fit_decision_rule(known)
        return {**labels, **evidence}

    def absent_from(self, rule: DecisionRule) -> list[str]:
        """Return the names of what the rules of both tasks must hold and do not."""
        return [*self._labels.absent_from(rule), *self._evidence.absent_from(rule)]

    def metrics(self, predicted: SplitPredictions) -> MetricValues:
        """Return the metrics of both tasks, and those of `metrics.joint`."""
        decoded = self._decoded_split(predicted)
        metrics = {
            **self._labels.metrics(decoded),
            **self._evidence.metrics(self._with_known_evidence(decoded)),
        }
        return {**metrics, **self._joint(decoded, metrics, with_interval=False)}

    def report(self, predicted: SplitPredictions) -> MetricValues:
        """Return `metrics`, their intervals, and the baselines of both tasks."""
        decoded = self._decoded_split(predicted)
        metrics = {
            **self._labels.report(decoded),
            **self._evidence.report(self._with_known_evidence(decoded)),
            "n_pairs_with_unknown_evidence": self.n_unknown(predicted.split),
        }
        return {**metrics, **self._joint(decoded, metrics, with_interval=True)}

    def unfitted_rule(self, rule: DecisionRule, criterion_ids: Iterable[str]) -> DecisionRule:
        """Return the rule of the criteria task; evidence has one threshold for all criteria."""
        return self._labels.unfitted_rule(rule, criterion_ids)

    def held_out_report(
        self, predicted: SplitPredictions, *, criteria: Sequence[Criterion]
    ) -> MetricValues:
        """Return the metrics of both tasks."""
        decoded = self._decoded_split(predicted)
        return {
            **self._labels.held_out_report(decoded, criteria=criteria),
            **self._evidence.held_out_report(self._with_known_evidence(decoded), criteria=criteria),
        }

    def spans_of_met(self, predicted: SplitPredictions) -> dict[int, list[tuple[int, int]]]:
        """Return the predicted spans of the pairs that are decided met with evidence, by index."""
        decoded = self._decoded_split(predicted)
        met = self._decided_met(self._examples[decoded.split], decoded.values, decoded.rule)
        kept = _kept(decoded)
        return {index: sorted(spans) for index, spans in enumerate(kept) if met[index] and spans}

    def random_spans(self, split: str, spans: SpansByPair) -> dict[int, list[tuple[int, int]]]:
        """Return, for each pair, spans of as many words at random places of its post.

        Args:
            split: of the pairs.
            spans: the predicted ones, by index of the pair.
        """
        found = {}
        for index, predicted in spans.items():
            rng = np.random.default_rng([self._seed, index])
            words = word_spans(self._examples[split][index].text)
            sizes = [
                sum(start < end and last > begin for start, last in words)
                for begin, end in predicted
            ]
            # The words that stay free are dealt to the gaps before, between and after the spans.
            n_free = max(len(words) - sum(sizes), 0)
            gaps = np.diff(np.sort(rng.integers(0, n_free + 1, size=len(sizes))), prepend=0)
            drawn, at = [], 0
            for size, gap in zip(rng.permutation(sizes).tolist(), gaps.tolist(), strict=True):
                at += gap
                if at >= len(words):  # predicted spans share words, and more would not fit
                    break
                drawn.append((words[at][0], words[min(at + size, len(words)) - 1][1]))
                at += size
            found[index] = drawn
        return found

    def reduced_posts(
        self,
        split: str,
        spans_of_met: SpansByPair,
        *,
        part: Literal["without", "alone"],
    ) -> list[Example]:
        """Return pairs whose post is reduced: `without` the spans, or to the spans `alone`."""
        reduced = []
        for index, spans in spans_of_met.items():
            example = self._examples[split][index]
            borders = [border for span in spans for border in span]
            if part == "without":
                borders = [0, *borders, len(example.text)]
            pieces = (
                example.text[start:end].strip()
                for start, end in zip(borders[::2], borders[1::2], strict=True)
            )
            text = " ".join(filter(None, pieces))
            reduced.append(replace(example, text=text, evidence=(), hard_negative_spans=()))
        return reduced

    def records(self, predicted: SplitPredictions) -> Iterator[dict[str, Any]]:
        """Yield the prediction line of each pair."""
        examples = self._examples[predicted.split]
        lines = decision_rows(self.decisions(examples, predicted.values, predicted.rule))
        for example, line in zip(examples, lines, strict=True):
            label = {"label": int(example.label)}
            yield {**example_ids(example), **label, **with_gold(example, line)}

    def baseline_records(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the lines of both tasks' baseline, which judges label and evidence independently."""
        found = {line["example_id"]: line for line in self._evidence.baseline_records(split)}
        unknown: dict[str, Any] = {"evidence": [], "gold_evidence": None}
        for line in self._labels.baseline_records(split):
            yield {**line, **found.get(line["example_id"], unknown)}

    def decisions(
        self, examples: Sequence[Example], values: Predictions, rule: DecisionRule
    ) -> DecisionColumns:
        """Return the columns of both tasks."""
        decoded = self._decoded(examples, values, rule)
        columns = evidence_columns(decoded, rule)
        # The scores of the model, also where consistent decoding has changed them.
        raw = values["span_scores"].tolist()
        for spans, own in zip(columns["evidence"], raw, strict=True):
            for span, score in zip(spans, own, strict=False):
                span["score"] = score
        columns["null_score_diff"] = [-own[0] if np.isfinite(own[0]) else None for own in raw]
        return {**self._labels.decisions(examples, values, rule), **columns}

    def monitors(self) -> dict[str, Literal["max", "min"]]:
        """Return the keys of `metrics` that may be monitored, and which direction is better."""
        names = ("supported_precision", "supported_recall", "supported_f1")
        joint: dict[str, Literal["max", "min"]] = {
            "joint_score": "max",
            "positive_without_evidence": "min",
            "evidence_without_positive": "min",
            **{f"{name}{kind}": "max" for name in names for kind in ("", "_micro")},
        }
        return joint | self._labels.monitors() | self._evidence.monitors()

    def summary(self, metrics: MetricValues) -> str:
        """Render the tables of both tasks, and the joint metrics."""
        head = ["joint_score", "supported F1 [95 % interval]", "macro-F1", "IOU F1"]
        head += ["met, no evidence", "evidence, not met", "comprehensiveness (random spans)"]
        head += ["sufficiency (random spans)"]
        names = (
            "f1_macro",
            "evidence_iou_f1",
            "positive_without_evidence",
            "evidence_without_positive",
        )
        faithfulness = [
            f"{format_value(metrics[name])} ({format_value(metrics[f'{name}_random'])})"
            for name in ("comprehensiveness", "sufficiency")
        ]
        row = [
            format_value(metrics["joint_score"]),
            with_interval(metrics, "supported_f1"),
            *(format_value(metrics[name]) for name in names),
            *faithfulness,
        ]
        return "\n\n".join(
            [
                self._labels.summary(metrics),
                self._evidence.summary(metrics),
                render_table([head, row], left=0),
            ]
        )

    def _decoded_split(self, predicted: SplitPredictions) -> SplitPredictions:
        examples = self._examples[predicted.split]
        return replace(predicted, values=self._decoded(examples, predicted.values, predicted.rule))

    def _decoded(
        self, examples: Sequence[Example], values: Predictions, rule: DecisionRule
    ) -> Predictions:
        """Return the predictions; consistent decoding changes the evidence to agree with the label.

        A pair decided met then has at least its best span; a pair decided unmet has none.
        """
        if self._settings.decoding == "independent":
            return values
        found = self._without_spans_of_unmet(examples, values, rule)
        scores = found["span_scores"].copy()
        possible = scores[:, 0] > -np.inf
        scores[possible, 0] = np.maximum(scores[possible, 0], -rule[THRESHOLD])
        return {**found, "span_scores": scores}

    def _without_spans_of_unmet(
        self, examples: Sequence[Example], values: Predictions, rule: DecisionRule
    ) -> Predictions:
        """Return the predictions; consistent decoding drops the spans of pairs decided unmet."""
        if self._settings.decoding == "independent":
            return values
        met = self._decided_met(examples, values, rule)[:, None]
        starts, ends = (
            np.where(met, values[name], NO_SPAN) for name in ("span_starts", "span_ends")
        )
        scores = np.where(met, values["span_scores"], -np.inf)
        return {**values, "span_starts": starts, "span_ends": ends, "span_scores": scores}

    def _decided_met(
        self, examples: Sequence[Example], values: Predictions, rule: DecisionRule
    ) -> np.ndarray:
        """Return whether each pair is decided met, bool `[pairs]`."""
        decided = self._labels.decisions(examples, values, rule)["decision"]
        met: np.ndarray = np.asarray(decided) == 1
        return met

    def _with_known_evidence(self, predicted: SplitPredictions) -> SplitPredictions:
        """Return the predictions of the pairs with known evidence."""
        known = self._known[predicted.split]
        return replace(predicted, values={n: v[known] for n, v in predicted.values.items()})

    def _joint(
        self, predicted: SplitPredictions, single: MetricValues, *, with_interval: bool
    ) -> MetricValues:
        """Return the metrics of `metrics.joint`, on pairs with known evidence.

        Args:
            predicted: the decoded predictions.
            single: the metrics of both single tasks.
            with_interval: add the interval.
        """
        known = self._known[predicted.split]
        of_known = self._with_known_evidence(predicted)
        examples = self._examples[predicted.split]
        pairs = [e for e, is_known in zip(examples, known, strict=True) if is_known]
        metrics = joint_metrics(
            JointDecisions(
                labels=np.asarray([example.label == 1 for example in pairs], dtype=bool),
                decisions=self._decided_met(examples, predicted.values, predicted.rule)[known],
                predicted=np.asarray([bool(spans) for spans in _kept(of_known)], dtype=bool),
                right=self._evidence.has_right_span(of_known),
                criterion_ids=np.asarray([example.criterion_id for example in pairs]),
                group_ids=np.asarray([example.group_id for example in pairs]),
            ),
            criteria=self._criterion_ids,
            with_interval=with_interval,
        )
        parts = single["f1_macro"], single["evidence_iou_f1"]
        joint: MetricValues = flat_metrics(metrics)
        if any(part is None for part in parts):
            reason = "f1_macro or evidence_iou_f1 is undefined"
            return {**joint, "joint_score": None, "joint_score_undefined": reason}
        return {**joint, "joint_score": sum(float(part or 0.0) for part in parts) / 2}


def _kept(predicted: SplitPredictions) -> list[list[tuple[int, int]]]:
    """Return the spans of each pair that pass the threshold, best first."""
    starts, ends, scores = (
        predicted.values[f"span_{name}"] for name in ("starts", "ends", "scores")
    )
    return kept_spans(starts, ends, scores, threshold=predicted.rule[THRESHOLD])
