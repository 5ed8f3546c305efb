"""Metrics of predicted probabilities, from any model."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE, Criterion
from psy_agents_noaug.data.examples import HELD_OUT, Example
from psy_agents_noaug.metrics.baselines import majority_probabilities, tfidf_lr_probabilities
from psy_agents_noaug.metrics.calibration import (
    CALIBRATION_METRICS,
    Calibration,
    calibration_metrics,
    cross_fitted,
    fit_calibration,
    group_folds,
)
from psy_agents_noaug.metrics.classification import (
    FIXED_THRESHOLD,
    PairPredictions,
    classification_metrics,
    cutoffs_at_specificity,
    fit_thresholds,
    recall_at_cutoffs,
)
from psy_agents_noaug.metrics.false_alarms import false_alarms_per_post
from psy_agents_noaug.metrics.intervals import Samples, classification_samples
from psy_agents_noaug.metrics.jackknife import TOO_FEW, intervals
from psy_agents_noaug.metrics.posts import by_post, post_metrics
from psy_agents_noaug.metrics.subgroups import length_groups, met_groups, subgroup_metrics
from psy_agents_noaug.metrics.values import metrics_of
from psy_agents_noaug.tasks.base import (
    DecisionRule,
    MetricValues,
    Predictions,
    SplitPredictions,
    TaskEvaluation,
    example_ids,
    flat_metrics,
)
from psy_agents_noaug.tasks.criteria.config import LabelConfig
from psy_agents_noaug.tasks.criteria.held_out import (
    THRESHOLD,
    UNSEEN,
    global_threshold,
    label_report,
    rule_without_fit,
)
from psy_agents_noaug.tasks.criteria.pairs import pair_predictions
from psy_agents_noaug.tasks.criteria.tables import (
    BASELINES,
    calibration_table,
    criteria_table,
    decisions_table,
    posts_table,
    subgroups_table,
    systems_table,
)

SPECIFICITY = 0.9  # of val, at which the sensitivity is reported
_HIGHER_IS_BETTER = ("f1", "precision", "recall", "accuracy", "auroc", "average_precision")
_LOWER_IS_BETTER = ("brier", "ece")
_BASELINE_METRICS = (
    "f1_macro",
    "f1_micro",
    "accuracy",
    "auroc_macro",
    "average_precision_macro",
    "brier",
)


class CriteriaEvaluation(TaskEvaluation):
    """Compares p(met) with the labels of each split. Predictions hold `probabilities`, `[pairs]`.

    The decision rule holds, fitted on val: `thresholds`, `calibration` (see `metrics.calibration`) and
    `specificity_cutoffs`, by criterion; and `global_threshold`, for criteria without pairs in val.
    Checkpoints of version 0.1 have the thresholds alone.

    Args:
        settings: how thresholds are fitted.
        criteria: those of the pairs.
        examples: the pairs of each split, in the order of the predictions.
        seed: of the TF-IDF baseline.
        subgroups: names of the examples' `subgroups`.
    """

    def __init__(
        self,
        settings: LabelConfig,
        *,
        criteria: Sequence[Criterion],
        examples: Mapping[str, Sequence[Example]],
        seed: int,
        subgroups: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._criteria = list(criteria)
        self._criterion_ids = [criterion.criterion_id for criterion in criteria]
        self._examples = examples
        self._seed = seed
        self._subgroups = list(subgroups)

    def fit_decision_rule(self, predictions: Predictions) -> DecisionRule:
        """Fit the rule on predictions of val."""
        return self._fit(self._pairs("val", predictions["probabilities"]))

    def absent_from(self, rule: DecisionRule) -> list[str]:
        """Return the criteria without a threshold, as names, and `calibration` if it is incomplete."""
        thresholds = rule.get("thresholds") or {}
        absent = [f"thresholds.{name}" for name in self._criterion_ids if name not in thresholds]
        try:
            _calibration(rule)
        except TypeError:
            absent.append("calibration")
        if self._examples.get(HELD_OUT) and global_threshold(rule) is None:
            absent.append(THRESHOLD)
        return absent

    def metrics(self, predicted: SplitPredictions) -> MetricValues:
        """Return the metrics of `metrics.classification`."""
        pairs = self._pairs(predicted.split, predicted.values["probabilities"])
        return {
            "n_posts": len(set(self._post_ids(predicted.split))),
            **self._scored(pairs, predicted.rule),
        }

    def report(self, predicted: SplitPredictions) -> MetricValues:
        """Return `metrics`, intervals, calibration, figures of whole posts, and the baselines."""
        split, rule = predicted.split, predicted.rule
        pairs = self._pairs(split, predicted.values["probabilities"])
        samples = self._samples(pairs, rule)
        reference = self._majority(split)
        metrics = self.metrics(predicted) | flat_metrics(samples.intervals())
        metrics |= self._calibration_metrics(
            pairs, rule, reference, fitted_here=predicted.rule_is_fitted_here
        )
        if cutoffs := rule.get("specificity_cutoffs"):
            metrics |= flat_metrics(
                recall_at_cutoffs(pairs, criteria=self._criterion_ids, cutoffs=cutoffs)
            )
        if predicted.rule_is_fitted_here:
            metrics |= self._cross_fitted(pairs)
        metrics |= self._post_metrics(pairs, rule, split=split)
        examples = self._examples[split]
        for position, name in enumerate(self._subgroups):
            own = np.asarray([example.subgroups[position] for example in examples])
            metrics |= self.subgroup_metrics(predicted, name, own)
        lengths = length_groups([example.text for example in examples])
        metrics |= self.subgroup_metrics(predicted, "length", lengths)
        # With sentences a criterion may be met in several of a post's.
        met = Counter(
            post for post, _ in {(e.post_id, e.criterion_id) for e in examples if e.label}
        )
        n_met = np.asarray([met[example.post_id] for example in examples])
        metrics |= self.subgroup_metrics(predicted, "number met", met_groups(n_met))
        for name in BASELINES:
            metrics |= self._baseline_metrics(name, split, samples)
        return metrics

    def subgroup_metrics(
        self, predicted: SplitPredictions, name: str, values: np.ndarray
    ) -> MetricValues:
        """Return `subgroup/<name>/<value>/<figure>` of each value.

        Args:
            predicted: the predictions of a split.
            name: of what divides the pairs.
            values: the subgroup of each pair, `[pairs]`.
        """
        found = subgroup_metrics(
            self._pairs(predicted.split, predicted.values["probabilities"]),
            values,
            criteria=self._criterion_ids,
            thresholds=predicted.rule["thresholds"],
        )
        return {f"subgroup/{name}/{key}": value for key, value in flat_metrics(found).items()}

    def held_out_rule(self, rule: DecisionRule) -> DecisionRule:
        """Return the rule with the global threshold for all, and without calibration."""
        return rule_without_fit(rule, self._examples[HELD_OUT])

    def held_out_report(
        self, predicted: SplitPredictions, *, criteria: Sequence[Criterion]
    ) -> MetricValues:
        """Return the metrics of `metrics.held_out.held_out_labels`."""
        return label_report(
            predicted.values["probabilities"],
            rule=predicted.rule,
            criteria=criteria,
            trained=self._criteria,
            examples=self._examples,
        )

    def records(self, predicted: SplitPredictions) -> Iterator[dict[str, Any]]:
        """Yield the prediction line of each pair."""
        examples = self._examples[predicted.split]
        for example, decision in zip(examples, self.decisions(predicted), strict=True):
            yield {**example_ids(example), **decision}

    def decisions(self, predicted: SplitPredictions) -> list[dict[str, Any]]:
        """Return the entries of each pair's prediction line that concern its label."""
        rule = predicted.rule
        pairs = self._pairs(predicted.split, predicted.values["probabilities"])
        calibrated = _calibration(rule)
        return [
            {
                "label": label,
                "probability": value,
                **({} if known is None else {"calibrated_probability": known}),
                "decision": int(decided),
                "threshold": rule["thresholds"][criterion],
            }
            for label, value, known, decided, criterion in zip(
                pairs.labels.tolist(),
                pairs.probabilities.tolist(),
                [None] * len(pairs.labels)
                if calibrated is None
                else calibrated.apply(pairs).probabilities.tolist(),
                self._decided(pairs, rule).tolist(),
                pairs.criterion_ids.tolist(),
                strict=True,
            )
        ]

    def monitors(self) -> dict[str, Literal["max", "min"]]:
        """Return the keys of `metrics` that may be monitored, and which direction is better."""
        halves = np.full(len(self._examples["val"]), 0.5)
        thresholds = dict.fromkeys(self._criterion_ids, FIXED_THRESHOLD)
        names = classification_metrics(
            self._pairs("val", halves), criteria=self._criterion_ids, thresholds=thresholds
        ).values
        monitors: dict[str, Literal["max", "min"]] = dict.fromkeys(_LOWER_IS_BETTER, "min")
        for name in names:
            if name.split("/")[-1].startswith(_HIGHER_IS_BETTER):
                monitors[name] = "max"
        return monitors

    def summary(self, metrics: MetricValues) -> str:
        """Render the metrics per criterion and per post, and a comparison with the baselines."""
        tables = (
            criteria_table(metrics, self._criteria),
            decisions_table(metrics, self._criteria, specificity=SPECIFICITY),
            calibration_table(metrics),
            posts_table(metrics),
            subgroups_table(metrics),
            systems_table(metrics),
        )
        return "\n\n".join(filter(None, tables))

    def _labels(self, split: str) -> np.ndarray:
        return np.asarray([example.label for example in self._examples[split]], dtype=np.int64)

    def _pair_criteria(self, split: str) -> np.ndarray:
        return np.asarray([example.criterion_id for example in self._examples[split]])

    def _post_ids(self, split: str) -> list[str]:
        return [example.post_id for example in self._examples[split]]

    def _pairs(self, split: str, probabilities: np.ndarray) -> PairPredictions:
        return pair_predictions(self._examples[split], probabilities)

    def _episode(self) -> tuple[str, ...] | None:
        """Return the ids of the criteria if they are those of a major depressive episode."""
        ids = tuple(self._criterion_ids)
        return ids if self._criteria == list(MAJOR_DEPRESSIVE_EPISODE) else None

    def _fit(self, pairs: PairPredictions) -> DecisionRule:
        criteria, thresholds = self._criterion_ids, self._thresholds(pairs)
        return {
            THRESHOLD: thresholds.pop(UNSEEN),
            "thresholds": thresholds,
            "calibration": fit_calibration(pairs, criteria=criteria).to_json(),
            "specificity_cutoffs": cutoffs_at_specificity(
                pairs, criteria=criteria, specificity=SPECIFICITY
            ),
        }

    def _thresholds(self, pairs: PairPredictions) -> dict[str, float]:
        """Return the threshold of each criterion, and that of criteria without pairs (`UNSEEN`)."""
        return fit_thresholds(
            pairs,
            criteria=[*self._criterion_ids, UNSEEN],
            mode=self._settings.thresholds,
            min_support=self._settings.threshold_min_support,
        )

    def _scored(self, pairs: PairPredictions, rule: DecisionRule) -> MetricValues:
        return flat_metrics(
            classification_metrics(
                pairs, criteria=self._criterion_ids, thresholds=rule["thresholds"]
            )
        )

    def _samples(self, pairs: PairPredictions, rule: DecisionRule) -> Samples:
        return classification_samples(
            pairs, criteria=self._criterion_ids, thresholds=rule["thresholds"]
        )

    def _decided(self, pairs: PairPredictions, rule: DecisionRule) -> np.ndarray:
        thresholds = rule["thresholds"]
        cutoffs = np.asarray([thresholds[name] for name in pairs.criterion_ids.tolist()])
        met: np.ndarray = pairs.probabilities >= cutoffs.astype(np.float64)
        return met

    def _cross_fitted(self, pairs: PairPredictions) -> MetricValues:
        """Return F1 with the thresholds of each fold fitted on the others: without their optimism."""
        folds = group_folds(pairs.group_ids)
        if folds is None:
            return {}
        decided = np.zeros(len(folds))
        for fold in np.unique(folds):
            own = folds == fold
            rule = {"thresholds": self._thresholds(pairs.take(~own))}
            decided[own] = self._decided(pairs.take(own), rule)
        scored = classification_metrics(
            replace(pairs, probabilities=decided),
            criteria=self._criterion_ids,
            thresholds=dict.fromkeys(self._criterion_ids, FIXED_THRESHOLD),
        )
        names = ("f1_macro", "f1_micro")
        values = {name: scored.values[name] for name in names if name not in scored.undefined}
        return {f"cross_fitted/{name}": value for name, value in values.items()}

    def _post_metrics(
        self, pairs: PairPredictions, rule: DecisionRule, *, split: str
    ) -> MetricValues:
        """Return the figures of whole posts and, where all sentences are judged, the false alarms."""
        decided, post_ids = self._decided(pairs, rule), np.asarray(self._post_ids(split))
        posts = by_post(pairs, decisions=decided, post_ids=post_ids, criteria=self._criterion_ids)
        found = flat_metrics(post_metrics(posts, episode=self._episode()))
        metrics = {f"per_post/{key}": value for key, value in found.items()}
        if any(example.sentence is not None for example in self._examples[split]):
            metrics["false_alarms_per_post"] = false_alarms_per_post(
                post_ids, pairs.labels, decided
            )
        return metrics

    def _calibration_metrics(
        self,
        pairs: PairPredictions,
        rule: DecisionRule,
        reference: np.ndarray,
        *,
        fitted_here: bool,
    ) -> MetricValues:
        """Return the measures of the raw probabilities and of the calibrated ones.

        If the calibration was fitted on these pairs, it is fitted again without those it is judged on.
        """
        metrics = flat_metrics(metrics_of(calibration_metrics(pairs, reference=reference)))
        calibration = _calibration(rule)
        if calibration is None:
            return metrics
        criteria = self._criterion_ids
        calibrated = (
            cross_fitted(pairs, criteria=criteria) if fitted_here else calibration.apply(pairs)
        )
        after = flat_metrics(
            metrics_of(
                dict.fromkeys(CALIBRATION_METRICS, f"{TOO_FEW}: all pairs are of one group")
                if calibrated is None
                else calibration_metrics(calibrated, reference=reference)
            )
        )
        return metrics | {f"calibrated/{key}": value for key, value in after.items()}

    def _baseline_metrics(self, name: str, split: str, model: Samples) -> MetricValues:
        """Return the metrics of a baseline, and the model's macro-F1 minus the baseline's."""
        if name == "tfidf_lr":
            pairs = self._tfidf_lr(split)
            rule = self._fit(pairs if split == "val" else self._tfidf_lr("val"))
        else:
            met = np.ones(len(self._examples[split]))
            pairs = self._pairs(split, met if name == "always_met" else self._majority(split))
            rule = {"thresholds": dict.fromkeys(self._criterion_ids, FIXED_THRESHOLD)}
        samples = self._samples(pairs, rule)
        gain = model.values["f1_macro"] - samples.values["f1_macro"]
        own: MetricValues = {
            "f1_macro_gain": None if np.isnan(gain[0]) else float(gain[0]),
            **flat_metrics(intervals({"f1_macro_gain": gain}, bounded=False)),
        }
        scored = self._scored(pairs, rule) | flat_metrics(samples.intervals())
        own |= {key: value for key, value in scored.items() if key.startswith(_BASELINE_METRICS)}
        return {f"baseline_{name}/{key}": value for key, value in own.items()}

    def _majority(self, split: str) -> np.ndarray:
        return majority_probabilities(
            train_labels=self._labels("train"),
            train_criterion_ids=self._pair_criteria("train"),
            criterion_ids=self._pair_criteria(split),
        )

    def _tfidf_lr(self, split: str) -> PairPredictions:
        return self._pairs(
            split,
            tfidf_lr_probabilities(
                train_texts=[example.text for example in self._examples["train"]],
                train_labels=self._labels("train"),
                train_criterion_ids=self._pair_criteria("train"),
                texts=[example.text for example in self._examples[split]],
                criterion_ids=self._pair_criteria(split),
                seed=self._seed,
            ),
        )


def _calibration(rule: DecisionRule) -> Calibration | None:
    found = rule.get("calibration")
    return None if found is None else Calibration(**found)
