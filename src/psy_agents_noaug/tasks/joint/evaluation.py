"""How the label and the evidence of a pair are judged together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from psy_agents_noaug.config.schema import JointTaskConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.metrics.joint import JointDecisions, joint_metrics
from psy_agents_noaug.metrics.spans import kept_spans
from psy_agents_noaug.metrics.tables import render_table, shown
from psy_agents_noaug.tasks.base import example_ids, flat_metrics
from psy_agents_noaug.tasks.criteria.evaluation import CriteriaEvaluation
from psy_agents_noaug.tasks.evidence.evaluation import THRESHOLD, EvidenceEvaluation, evidence_lines
from psy_agents_noaug.training.protocols import Calibration, MetricValues, Predictions

PARTS = ("without", "alone")  # the post without its predicted spans, and these alone


class JointEvaluation:
    """Judges labels by `CriteriaEvaluation`, evidence by `EvidenceEvaluation`, and both together.

    Predictions hold the entries of both. Pairs whose evidence is unknown are judged by their label
    alone.
    """

    def __init__(
        self,
        settings: JointTaskConfig,
        *,
        criteria: Sequence[Criterion],
        examples: Mapping[str, Sequence[Example]],
        seed: int,
    ) -> None:
        self._settings = settings
        self._criterion_ids = [criterion.criterion_id for criterion in criteria]
        self._examples = dict(examples)
        self._seed = seed
        self._known = {
            split: np.asarray([bool(e.evidence) or e.label == 0 for e in pairs], dtype=bool)
            for split, pairs in examples.items()
        }
        self._label_judge = CriteriaEvaluation(
            criteria=criteria,
            examples=examples,
            thresholds=settings.criteria.thresholds,
            threshold_min_support=settings.criteria.threshold_min_support,
            bootstrap_resamples=settings.criteria.bootstrap_resamples,
            seed=seed,
        )
        self._evidence_judge = EvidenceEvaluation(
            criteria=criteria,
            examples={
                split: [e for e, known in zip(pairs, self._known[split], strict=True) if known]
                for split, pairs in examples.items()
            },
            bootstrap_resamples=settings.evidence.bootstrap_resamples,
            seed=seed,
        )

    def n_unknown(self, split: str) -> int:
        """Return how many pairs are met without known evidence."""
        return int((~self._known[split]).sum())

    def calibrate(self, predictions: Predictions) -> Calibration:
        """Fit both tasks' thresholds on predictions of val."""
        labels = self._label_judge.calibrate(predictions)
        found = self._evidence_of_met(predictions, split="val", calibration=labels)
        return {**labels, **self._evidence_judge.calibrate(self._where_known("val", found))}

    def metrics(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> MetricValues:
        """Return both tasks' figures, and those of `metrics.joint`."""
        decided = self._decoded(predictions, split=split, calibration=calibration)
        known = self._where_known(split, decided)
        figures = {
            **self._label_judge.metrics(decided, split=split, calibration=calibration),
            **self._evidence_judge.metrics(known, split=split, calibration=calibration),
        }
        joint = self._joint(
            decided, figures, split=split, calibration=calibration, n_resamples=None
        )
        return {**figures, **joint}

    def report(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> MetricValues:
        """Return `metrics`, bootstrap intervals, and both tasks' baselines."""
        decided = self._decoded(predictions, split=split, calibration=calibration)
        known = self._where_known(split, decided)
        figures = {
            **self._label_judge.report(decided, split=split, calibration=calibration),
            **self._evidence_judge.report(known, split=split, calibration=calibration),
            "n_pairs_with_unknown_evidence": self.n_unknown(split),
        }
        joint = self._joint(
            decided,
            figures,
            split=split,
            calibration=calibration,
            n_resamples=self._settings.criteria.bootstrap_resamples,
        )
        return {**figures, **joint}

    def explained(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> dict[int, list[tuple[int, int]]]:
        """Return the spans of the pairs that are decided met with evidence, in order, by index."""
        decided = self._decoded(predictions, split=split, calibration=calibration)
        met = self._met(decided, split=split, calibration=calibration)
        kept = self._kept(decided, calibration)
        return {index: sorted(spans) for index, spans in enumerate(kept) if met[index] and spans}

    def divided(
        self, explained: Mapping[int, Sequence[tuple[int, int]]], *, split: str, part: str
    ) -> Iterator[tuple[Example, str]]:
        """Yield each explained pair and a part of its post, of `PARTS`."""
        for index, spans in explained.items():
            example = self._examples[split][index]
            borders = [border for span in spans for border in span]
            if part == "without":
                borders = [0, *borders, len(example.text)]
            pieces = (
                example.text[start:end].strip()
                for start, end in zip(borders[::2], borders[1::2], strict=True)
            )
            yield example, " ".join(filter(None, pieces))

    def records(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> Iterator[dict[str, Any]]:
        """Yield the prediction line of each pair."""
        decided = self._decoded(predictions, split=split, calibration=calibration)
        labels = self._label_judge.decisions(decided, split=split, calibration=calibration)
        evidence = evidence_lines(self._examples[split], decided, calibration)
        raw_scores = predictions["span_scores"].tolist()
        for example, label, found, raw in zip(
            self._examples[split], labels, evidence, raw_scores, strict=True
        ):
            # Scores are the model's, also where a consistent decoding overruled them.
            for span, score in zip(found["evidence"], raw, strict=False):
                span["score"] = score
            found["null_score_diff"] = -raw[0] if np.isfinite(raw[0]) else None
            yield {**example_ids(example), **label, **found}

    def monitors(self) -> dict[str, Literal["max", "min"]]:
        """Return the keys of `metrics` that tell better from worse, and which way is better."""
        names = ("supported_precision", "supported_recall", "supported_f1")
        own: dict[str, Literal["max", "min"]] = {
            "joint_score": "max",
            "positive_without_evidence": "min",
            "evidence_without_positive": "min",
            **{f"{name}{kind}": "max" for name in names for kind in ("", "_micro")},
        }
        return own | self._label_judge.monitors() | self._evidence_judge.monitors()

    def summary(self, metrics: MetricValues) -> str:
        """Render both tasks' tables, and the joint figures."""
        head = ["joint_score", "supported F1 [95 % interval]", "macro-F1", "IOU F1"]
        head += ["met, no evidence", "evidence, not met", "comprehensiveness", "sufficiency"]
        low, high = (shown(metrics[f"supported_f1_ci_{end}"]) for end in ("low", "high"))
        names = (
            "f1_macro",
            "evidence_iou_f1",
            "positive_without_evidence",
            "evidence_without_positive",
            "comprehensiveness",
            "sufficiency",
        )
        row = [
            shown(metrics["joint_score"]),
            f"{shown(metrics['supported_f1'])} [{low}, {high}]",
            *(shown(metrics[name]) for name in names),
        ]
        return "\n\n".join(
            [
                self._label_judge.summary(metrics),
                self._evidence_judge.summary(metrics),
                render_table([head, row], left=0),
            ]
        )

    def _decoded(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> Predictions:
        """The predictions as they are, or with the evidence made to agree with the label."""
        if self._settings.decoding == "independent":
            return predictions
        found = self._evidence_of_met(predictions, split=split, calibration=calibration)
        scores = found["span_scores"].copy()
        possible = scores[:, 0] > -np.inf
        scores[possible, 0] = np.maximum(scores[possible, 0], -calibration[THRESHOLD])
        return {**found, "span_scores": scores}

    def _evidence_of_met(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> Predictions:
        """The predictions, where decoding is consistent without the spans of pairs decided unmet."""
        if self._settings.decoding == "independent":
            return predictions
        met = self._met(predictions, split=split, calibration=calibration)
        scores = np.where(met[:, None], predictions["span_scores"], -np.inf)
        return {**predictions, "span_scores": scores}

    def _met(self, predictions: Predictions, *, split: str, calibration: Calibration) -> np.ndarray:
        cutoffs = np.asarray(
            [calibration["thresholds"][e.criterion_id] for e in self._examples[split]]
        )
        met: np.ndarray = predictions["probabilities"].astype(np.float64) >= cutoffs
        return met

    def _kept(
        self, predictions: Predictions, calibration: Calibration
    ) -> list[list[tuple[int, int]]]:
        starts, ends, scores = (
            predictions[f"span_{name}"] for name in ("starts", "ends", "scores")
        )
        return kept_spans(starts, ends, scores, threshold=calibration[THRESHOLD])

    def _where_known(self, split: str, predictions: Predictions) -> Predictions:
        return {name: values[self._known[split]] for name, values in predictions.items()}

    def _joint(
        self,
        predictions: Predictions,
        figures: MetricValues,
        *,
        split: str,
        calibration: Calibration,
        n_resamples: int | None,
    ) -> MetricValues:
        known = self._known[split]
        right = self._evidence_judge.right(
            self._where_known(split, predictions), split=split, calibration=calibration
        )
        pairs = [e for e, is_known in zip(self._examples[split], known, strict=True) if is_known]
        met = self._met(predictions, split=split, calibration=calibration)[known]
        kept = self._kept(self._where_known(split, predictions), calibration)
        metrics = joint_metrics(
            JointDecisions(
                labels=np.asarray([example.label == 1 for example in pairs], dtype=bool),
                decisions=met,
                predicted=np.asarray([bool(spans) for spans in kept], dtype=bool),
                right=right,
                criterion_ids=np.asarray([example.criterion_id for example in pairs]),
                group_ids=np.asarray([example.post_id for example in pairs]),
            ),
            criteria=self._criterion_ids,
            n_resamples=n_resamples,
            seed=self._seed,
        )
        halves = figures["f1_macro"], figures["evidence_iou_f1"]
        joint: MetricValues = flat_metrics(metrics)
        if any(half is None for half in halves):
            return {**joint, "joint_score": None, "joint_score_undefined": "one half is undefined"}
        return {**joint, "joint_score": sum(float(half or 0.0) for half in halves) / 2}
