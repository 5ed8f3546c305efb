"""Metrics of predicted probabilities, from any model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.metrics.baselines import majority_probabilities, tfidf_lr_probabilities
from psy_agents_noaug.metrics.classification import (
    FIXED_THRESHOLD,
    PairPredictions,
    classification_metrics,
    classification_report,
    fit_thresholds,
)
from psy_agents_noaug.metrics.intervals import bootstrap_intervals
from psy_agents_noaug.metrics.tables import format_value, render_table
from psy_agents_noaug.tasks.base import (
    DecisionRule,
    MetricValues,
    Predictions,
    SplitPredictions,
    TaskEvaluation,
    example_ids,
    flat_metrics,
)
from psy_agents_noaug.tasks.criteria.config import CriteriaTaskConfig

_HIGHER_IS_BETTER = ("f1", "precision", "recall", "accuracy", "auroc", "average_precision")
_LOWER_IS_BETTER = ("brier", "ece")
_BASELINE_METRICS = ("f1_macro", "f1_micro", "accuracy", "auroc_macro", "average_precision_macro")


class CriteriaEvaluation(TaskEvaluation):
    """Compares p(met) with the labels of each split. Predictions hold `probabilities`, `[pairs]`.

    Args:
        settings: how thresholds are fitted, and the number of bootstrap resamples.
        criteria: those of the pairs.
        examples: the pairs of each split, in the order of the predictions.
        seed: of the resamples and the TF-IDF baseline.
    """

    def __init__(
        self,
        settings: CriteriaTaskConfig,
        *,
        criteria: Sequence[Criterion],
        examples: Mapping[str, Sequence[Example]],
        seed: int,
    ) -> None:
        self._settings = settings
        self._criteria = list(criteria)
        self._criterion_ids = [criterion.criterion_id for criterion in criteria]
        self._examples = examples
        self._seed = seed

    def fit_decision_rule(self, predictions: Predictions) -> DecisionRule:
        """Fit the `thresholds`, one per criterion, on predictions of val."""
        return {"thresholds": self._fit(self._pairs("val", predictions["probabilities"]))}

    def metrics(self, predicted: SplitPredictions) -> MetricValues:
        """Return the metrics of `metrics.classification`."""
        return flat_metrics(
            classification_metrics(
                self._pairs(predicted.split, predicted.values["probabilities"]),
                criteria=self._criterion_ids,
                thresholds=predicted.rule["thresholds"],
            )
        )

    def report(self, predicted: SplitPredictions) -> MetricValues:
        """Return `metrics`, bootstrap intervals, and the baselines on the same split."""
        split = predicted.split
        pairs = self._pairs(split, predicted.values["probabilities"])
        metrics = self._with_intervals(pairs, predicted.rule["thresholds"])
        tfidf = self._tfidf_lr(split)
        fitted = self._fit(tfidf if split == "val" else self._tfidf_lr("val"))
        majority = majority_probabilities(
            train_labels=self._labels("train"),
            train_criterion_ids=self._pair_criteria("train"),
            criterion_ids=self._pair_criteria(split),
        )
        baselines = {
            "tfidf_lr": self._with_intervals(tfidf, fitted),
            "majority": self._with_intervals(
                self._pairs(split, majority),
                dict.fromkeys(self._criterion_ids, FIXED_THRESHOLD),
            ),
        }
        for name, baseline in baselines.items():
            metrics |= {
                f"baseline_{name}/{key}": value
                for key, value in baseline.items()
                if key.startswith(_BASELINE_METRICS)
            }
        return metrics

    def records(self, predicted: SplitPredictions) -> Iterator[dict[str, Any]]:
        """Yield the prediction line of each pair."""
        examples = self._examples[predicted.split]
        for example, decision in zip(examples, self.decisions(predicted), strict=True):
            yield {**example_ids(example), **decision}

    def decisions(self, predicted: SplitPredictions) -> list[dict[str, Any]]:
        """Return the entries of each pair's prediction line that concern its label."""
        thresholds = predicted.rule["thresholds"]
        return [
            {
                "label": example.label,
                "probability": value,
                "decision": int(value >= thresholds[example.criterion_id]),
                "threshold": thresholds[example.criterion_id],
            }
            for example, value in zip(
                self._examples[predicted.split],
                predicted.values["probabilities"].tolist(),
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
        """Render the metrics per criterion, and a comparison with the baselines."""
        per_criterion = classification_report(
            {key: value for key, value in metrics.items() if not isinstance(value, str)},
            criteria=self._criterion_ids,
            names={criterion.criterion_id: criterion.name for criterion in self._criteria},
        )
        return f"{per_criterion}\n\n{_comparison(metrics)}"

    def _labels(self, split: str) -> np.ndarray:
        return np.asarray([example.label for example in self._examples[split]], dtype=np.int64)

    def _pair_criteria(self, split: str) -> np.ndarray:
        return np.asarray([example.criterion_id for example in self._examples[split]])

    def _pairs(self, split: str, probabilities: np.ndarray) -> PairPredictions:
        return PairPredictions(
            labels=self._labels(split),
            probabilities=probabilities.astype(np.float64),
            criterion_ids=self._pair_criteria(split),
            group_ids=np.asarray([example.post_id for example in self._examples[split]]),
        )

    def _fit(self, pairs: PairPredictions) -> dict[str, float]:
        return fit_thresholds(
            pairs,
            criteria=self._criterion_ids,
            mode=self._settings.thresholds,
            min_support=self._settings.threshold_min_support,
        )

    def _with_intervals(
        self, pairs: PairPredictions, thresholds: Mapping[str, float]
    ) -> MetricValues:
        criteria = self._criterion_ids
        metrics = classification_metrics(pairs, criteria=criteria, thresholds=thresholds)
        intervals = bootstrap_intervals(
            pairs,
            criteria=criteria,
            thresholds=thresholds,
            n_resamples=self._settings.bootstrap_resamples,
            seed=self._seed,
        )
        return flat_metrics(metrics) | flat_metrics(intervals)

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


def _comparison(metrics: MetricValues) -> str:
    """Render one row for the model and one per baseline; 95 % intervals over resampled posts."""
    systems = {
        "model": "",
        "TF-IDF + LR": "baseline_tfidf_lr/",
        "majority": "baseline_majority/",
    }
    rows = [["system", "macro-F1 [95 % interval]", "micro-F1", "AUROC", "AP", "accuracy"]]
    for name, prefix in systems.items():
        low, high = (format_value(metrics[f"{prefix}f1_macro_ci_{end}"]) for end in ("low", "high"))
        rest = [
            format_value(metrics[prefix + key])
            for key in ("f1_micro", "auroc_macro", "average_precision_macro", "accuracy")
        ]
        rows.append([name, f"{format_value(metrics[prefix + 'f1_macro'])} [{low}, {high}]", *rest])
    return render_table(rows, left=2)
