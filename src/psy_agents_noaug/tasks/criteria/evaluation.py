"""Metrics of predicted probabilities, from any model."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from psy_agents_noaug.config.schema import NO_PROTOCOL, ProtocolConfig
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE, Criterion
from psy_agents_noaug.data.examples import HELD_OUT, Example
from psy_agents_noaug.data.merging import MergeRule
from psy_agents_noaug.metrics.baselines import majority_probabilities, tfidf_lr_probabilities
from psy_agents_noaug.metrics.calibration import (
    CALIBRATION_METRICS,
    Calibration,
    by_folds,
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
from psy_agents_noaug.metrics.names import LABEL_BASELINES
from psy_agents_noaug.metrics.posts import by_post, pairs_of_posts, post_metrics
from psy_agents_noaug.metrics.subgroups import length_groups, met_groups, subgroup_metrics
from psy_agents_noaug.metrics.tables import posts_table
from psy_agents_noaug.metrics.values import Floats, Ints, metrics_of, value_of
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
from psy_agents_noaug.tasks.criteria.annotators import annotator_metrics
from psy_agents_noaug.tasks.criteria.config import LabelConfig
from psy_agents_noaug.tasks.criteria.held_out import (
    POSTS,
    THRESHOLD,
    UNSEEN,
    global_threshold,
    label_report,
    rule_without_fit,
)
from psy_agents_noaug.tasks.criteria.pairs import pair_cutoffs, pair_predictions
from psy_agents_noaug.tasks.criteria.protocol import protocol_figures
from psy_agents_noaug.tasks.criteria.tables import (
    calibration_table,
    criteria_table,
    decisions_table,
    protocol_table,
    subgroups_table,
    systems_table,
)
from psy_agents_noaug.tasks.criteria.whole_posts import WholePosts, whole_posts

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

    The decision rule holds, fitted on val: `thresholds`, `calibration` (see `metrics.calibration`),
    `specificity_cutoffs` and `prevalence`, by criterion; `global_threshold`, for criteria without pairs
    in val; and, where sentences are judged, `posts`: the same for `pairs_of_posts`. Checkpoints of
    version 0.1 have the thresholds alone.

    Args:
        settings: how thresholds are fitted.
        criteria: those of the pairs.
        examples: the pairs of each split, in the order of the predictions.
        seed: of the TF-IDF baseline.
        subgroups: names of the examples' `subgroups`.
        merge: how the labels of annotators were merged; None: they were not.
        protocol: whose figures are reported beside ours.
    """

    needs_training_pairs = False

    def __init__(
        self,
        settings: LabelConfig,
        *,
        criteria: Sequence[Criterion],
        examples: Mapping[str, Sequence[Example]],
        seed: int,
        subgroups: Sequence[str] = (),
        merge: MergeRule | None = None,
        protocol: ProtocolConfig = NO_PROTOCOL,
    ) -> None:
        self._settings = settings
        self._criteria = list(criteria)
        self._criterion_ids = [criterion.criterion_id for criterion in criteria]
        self._examples = examples
        self._seed = seed
        self._subgroups = list(subgroups)
        self._merge = merge
        self._protocol = protocol
        self._baselines: dict[tuple[str, str], tuple[PairPredictions, DecisionRule]] = {}

    def fit_decision_rule(self, predictions: Predictions) -> DecisionRule:
        """Fit the rule on predictions of val."""
        return self._fit_on("val", self._pairs("val", predictions["probabilities"]))

    def values_of_lines(self, lines: Sequence[Mapping[str, Any]]) -> Predictions:
        """Return `probabilities`."""
        return {"probabilities": np.asarray([line["probability"] for line in lines], np.float64)}

    def rule_of_lines(
        self, lines: Sequence[Mapping[str, Any]], values: Predictions, *, like: DecisionRule
    ) -> DecisionRule:
        """Fit the rule on the pairs of prediction lines, and one of posts if `like` has one."""
        pairs = PairPredictions(
            labels=np.asarray([line["label"] for line in lines], dtype=np.int64),
            probabilities=values["probabilities"],
            criterion_ids=np.asarray([line["criterion_id"] for line in lines]),
            group_ids=np.asarray([line["group_id"] for line in lines]),
        )
        post_ids = [str(line["post_id"]) for line in lines]
        return self._fit_rule(pairs, post_ids if POSTS in like else None)

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
        trained_here = "train" in self._examples
        reference = self._majority(split) if trained_here else None
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
        posts = self._whole_posts(pairs, rule, split)
        metrics |= self._post_metrics(pairs, rule, posts, split=split)
        metrics |= self._protocol_figures(pairs, split)
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
        if self._merge is not None:
            metrics |= annotator_metrics(
                examples, self._decided(pairs, rule), rule=self._merge, criteria=self._criterion_ids
            )
        for name in LABEL_BASELINES if trained_here else ("always_met",):
            metrics |= self._baseline_metrics(name, split, samples, posts)
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

    def unfitted_rule(self, rule: DecisionRule, criterion_ids: Iterable[str]) -> DecisionRule:
        """Return the rule with the global threshold for all, and without calibration."""
        return rule_without_fit(rule, criterion_ids)

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
        columns = self.decisions(examples, predicted.values, predicted.rule)
        for example, decision in zip(examples, decision_rows(columns), strict=True):
            yield {**example_ids(example), "label": int(example.label), **decision}

    def baseline_records(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the prediction line of each pair by TF-IDF and logistic regression."""
        if "train" not in self._examples:
            return iter(())
        pairs, rule = self._baseline(BASELINE, split)
        return self.records(SplitPredictions(split, {"probabilities": pairs.probabilities}, rule))

    def decisions(
        self, examples: Sequence[Example], values: Predictions, rule: DecisionRule
    ) -> DecisionColumns:
        """Return `probability`, `calibrated_probability`, `decision` (0 or 1) and `threshold`.

        A rule of version 0.1 has no calibrated probability.
        """
        pairs = pair_predictions(examples, values["probabilities"])
        calibrated = _calibration(rule)
        columns: DecisionColumns = {"probability": pairs.probabilities}
        if calibrated is not None:
            columns["calibrated_probability"] = calibrated.apply(pairs).probabilities
        columns["decision"] = self._decided(pairs, rule).astype(np.int64)
        columns["threshold"] = pair_cutoffs(pairs, rule)
        return columns

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
            protocol_table(metrics, self._protocol),
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
            "prevalence": _prevalence(pairs, criteria),
            "specificity_cutoffs": cutoffs_at_specificity(
                pairs, criteria=criteria, specificity=SPECIFICITY
            ),
        }

    def _fit_on(self, split: str, pairs: PairPredictions) -> DecisionRule:
        """Fit the rule of the pairs of a split and, if they are of sentences, that of posts."""
        return self._fit_rule(
            pairs, self._post_ids(split) if self._judges_sentences(split) else None
        )

    def _fit_rule(self, pairs: PairPredictions, post_ids: Sequence[str] | None) -> DecisionRule:
        """Fit the rule of pairs and, if they are of the sentences of posts, that of posts."""
        rule = self._fit(pairs)
        if post_ids is not None:
            posts, _ = pairs_of_posts(pairs, np.asarray(post_ids))
            rule[POSTS] = self._fit(posts)
        return rule

    def _judges_sentences(self, split: str) -> bool:
        """Whether the pairs of a split are of all sentences of its posts."""
        return any(example.sentence is not None for example in self._examples[split])

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
        met: np.ndarray = pairs.probabilities >= pair_cutoffs(pairs, rule)
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

    def _whole_posts(
        self, pairs: PairPredictions, rule: DecisionRule, split: str
    ) -> WholePosts | None:
        if POSTS not in rule:
            return None
        post_ids = np.asarray(self._post_ids(split))
        return whole_posts(pairs, post_ids, rule=rule[POSTS], criteria=self._criterion_ids)

    def _post_metrics(
        self,
        pairs: PairPredictions,
        rule: DecisionRule,
        posts: WholePosts | None,
        *,
        split: str,
    ) -> MetricValues:
        """Return the figures of whole posts and, where all sentences are judged, the false alarms."""
        decided, post_ids = self._decided(pairs, rule), np.asarray(self._post_ids(split))
        judged = by_post(
            posts.pairs if posts else pairs,
            decisions=posts.decided if posts else decided,
            post_ids=posts.post_ids if posts else post_ids,
            criteria=self._criterion_ids,
        )
        found = (posts.figures if posts else {}) | flat_metrics(
            post_metrics(judged, episode=self._episode())
        )
        metrics = {f"per_post/{key}": value for key, value in found.items()}
        if self._judges_sentences(split):
            metrics["false_alarms_per_post"] = false_alarms_per_post(
                post_ids, pairs.labels, decided
            )
        return metrics

    def _calibration_metrics(
        self,
        pairs: PairPredictions,
        rule: DecisionRule,
        reference: np.ndarray | None,
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

    def _baseline_metrics(
        self, name: str, split: str, model: Samples, model_of_posts: WholePosts | None
    ) -> MetricValues:
        """Return the metrics of a baseline, and the model's macro-F1 minus the baseline's."""
        pairs, rule = self._baseline(name, split)
        samples = self._samples(pairs, rule)
        own = _gain(model, samples)
        scored = self._scored(pairs, rule) | flat_metrics(samples.intervals())
        own |= {key: value for key, value in scored.items() if key.startswith(_BASELINE_METRICS)}
        if posts := self._whole_posts(pairs, rule, split):
            of_posts = dict(posts.figures)
            if model_of_posts is not None:
                of_posts |= _gain(model_of_posts.samples, posts.samples)
            own |= {f"per_post/{key}": value for key, value in of_posts.items()}
        # The majority decides, which multi-label figures are about, but ranks nothing.
        if name == BASELINE or (name == "majority" and self._protocol.figures == "multilabel"):
            own |= self._protocol_figures(pairs, split)
        return {f"baseline_{name}/{key}": value for key, value in own.items()}

    def _protocol_figures(self, pairs: PairPredictions, split: str) -> MetricValues:
        return protocol_figures(
            self._protocol, pairs, self._examples[split], criteria=self._criterion_ids
        )

    def _baseline(self, name: str, split: str) -> tuple[PairPredictions, DecisionRule]:
        """Return the predictions of a baseline and its rule, which are computed once."""
        if (name, split) not in self._baselines:
            if name == BASELINE:
                pairs = self._tfidf_lr(split)
                rule = self._tfidf_rule(pairs if split == "val" else None)
            else:
                met = np.ones(len(self._examples[split]))
                pairs = self._pairs(split, met if name == "always_met" else self._majority(split))
                rule = {"thresholds": dict.fromkeys(self._criterion_ids, FIXED_THRESHOLD)}
            self._baselines[name, split] = pairs, rule
        return self._baselines[name, split]

    def _majority(self, split: str) -> np.ndarray:
        return majority_probabilities(
            train_labels=self._labels("train"),
            train_criterion_ids=self._pair_criteria("train"),
            criterion_ids=self._pair_criteria(split),
        )

    def _tfidf_lr(self, split: str) -> PairPredictions:
        examples = self._examples[split]
        return self._pairs(split, _tfidf_lr(self._examples["train"], examples, seed=self._seed))

    def _tfidf_rule(self, on_val: PairPredictions | None) -> DecisionRule:
        """Fit the rule of TF-IDF on val; of a training that has learned val, on folds of train.

        Args:
            on_val: the predictions of val, if there are some already.
        """
        if "val" in self._examples:
            return self._fit_on("val", on_val or self._tfidf_lr("val"))
        train = self._examples["train"]

        def predict(own: Ints, others: Ints) -> dict[str, np.ndarray]:
            learned, judged = ([train[index] for index in rows] for rows in (others, own))
            return {"probabilities": _tfidf_lr(learned, judged, seed=self._seed)}

        groups = np.asarray([example.group_id for example in train])
        return self._fit_on(
            "train", self._pairs("train", by_folds(groups, predict)["probabilities"])
        )


def _tfidf_lr(train: Sequence[Example], examples: Sequence[Example], *, seed: int) -> Floats:
    """Return p(met) of examples by TF-IDF and logistic regression on others, `[examples]`."""
    return tfidf_lr_probabilities(
        train_texts=[example.text for example in train],
        train_labels=np.asarray([example.label for example in train], dtype=np.int64),
        train_criterion_ids=np.asarray([example.criterion_id for example in train]),
        texts=[example.text for example in examples],
        criterion_ids=np.asarray([example.criterion_id for example in examples]),
        seed=seed,
    )


def _gain(model: Samples, baseline: Samples) -> MetricValues:
    """Return the macro-F1 of the model minus that of a baseline, with its paired interval."""
    gain = model.values["f1_macro"] - baseline.values["f1_macro"]
    return {
        "f1_macro_gain": value_of(gain),
        **flat_metrics(intervals({"f1_macro_gain": gain}, bounded=False)),
    }


def _prevalence(pairs: PairPredictions, criteria: Sequence[str]) -> dict[str, float | None]:
    """Return the share of met pairs of each criterion; None if it has no pair."""
    labels = {name: pairs.labels[pairs.criterion_ids == name] for name in criteria}
    return {name: float(own.mean()) if len(own) else None for name, own in labels.items()}


def _calibration(rule: DecisionRule) -> Calibration | None:
    found = rule.get("calibration")
    return None if found is None else Calibration(**found)
