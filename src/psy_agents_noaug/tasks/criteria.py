"""The criteria task: is this criterion met in this text?"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from psy_agents_noaug.config.schema import CriteriaTaskConfig, TrainConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.encoding import EncodedPairs, encode_pairs
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.metrics.baselines import majority_probabilities, tfidf_lr_probabilities
from psy_agents_noaug.metrics.bootstrap import bootstrap_intervals
from psy_agents_noaug.metrics.classification import (
    FIXED_THRESHOLD,
    PairPredictions,
    classification_metrics,
    classification_report,
    fit_thresholds,
)
from psy_agents_noaug.metrics.tables import render_table, shown
from psy_agents_noaug.models.criteria import CriteriaModel
from psy_agents_noaug.models.encoder import Encoder, adapted_encoder, check_positions
from psy_agents_noaug.models.losses import classification_loss
from psy_agents_noaug.tasks.base import (
    ReportingTask,
    description,
    flat_metrics,
)
from psy_agents_noaug.tasks.pools import EpochPools
from psy_agents_noaug.training.protocols import Batch, Calibration, MetricValues, Predictions

CLASSES = ("not met", "met")
_HIGH_IS_GOOD = ("f1", "precision", "recall", "accuracy", "auroc", "average_precision")
_LOW_IS_GOOD = ("brier", "ece")
_BASELINE_FIGURES = ("f1_macro", "f1_micro", "accuracy", "auroc_macro", "average_precision_macro")


def build_criteria_task(
    config: TrainConfig,
    settings: CriteriaTaskConfig,
    *,
    encoder: Encoder,
    criteria: Sequence[Criterion],
    examples: Mapping[str, Sequence[Example]],
) -> "CriteriaTask":
    """Assemble the task from a configuration, an encoder and the examples of each split."""
    check_positions(config.model.max_length, encoder)
    lora = config.model.lora
    body = adapted_encoder(encoder, lora.model_dump() if lora else None)
    model = CriteriaModel(
        body,
        hidden_size=encoder.hidden_size,
        pooling=config.model.pooling,
        head_layers=config.model.head_layers,
        head_width=config.model.head_width,
        head_dropout=config.model.head_dropout,
    )
    return CriteriaTask(
        model,
        encoder=encoder,
        criteria=criteria,
        examples=examples,
        max_length=config.model.max_length,
        negatives=config.data.negatives,
        focal_gamma=settings.focal_gamma if settings.loss == "focal" else 0.0,
        class_weights=settings.class_weights,
        thresholds=settings.thresholds,
        threshold_min_support=settings.threshold_min_support,
        bootstrap_resamples=settings.bootstrap_resamples,
        seed=config.seed,
    )


class PairSource:
    """Labelled pairs, tokenised once, collated in any grouping."""

    def __init__(self, examples: Sequence[Example], encoded: EncodedPairs) -> None:
        self.examples = examples
        self.encoded = encoded
        self.ids = [example.example_id for example in examples]
        self.labels = np.asarray([example.label for example in examples], dtype=np.int64)

    @property
    def lengths(self) -> np.ndarray:
        return self.encoded.lengths

    def collate(self, indices: Sequence[int]) -> Batch:
        """Return the padded pairs and their `labels` `[B]`."""
        labels = torch.from_numpy(self.labels[list(indices)])
        return {**self.encoded.pad(indices), "labels": labels}


class CriteriaTask(ReportingTask):
    """Binary decisions on (criterion, text) pairs.

    Args:
        examples: the labelled pairs of each split that may be looked at; tokenised when first used.
        negatives: `all`, or how many unannotated negatives per positive an epoch of training draws.
        class_weights: `none`, `balanced` (inverse frequency in an epoch, mean 1 over its examples),
            or the weights of not met and met.
        thresholds, threshold_min_support: see `fit_thresholds`.
    """

    name = "criteria"

    def __init__(
        self,
        model: CriteriaModel,
        *,
        encoder: Encoder,
        criteria: Sequence[Criterion],
        examples: Mapping[str, Sequence[Example]],
        max_length: int,
        negatives: float | Literal["all"],
        focal_gamma: float,
        class_weights: Sequence[float] | Literal["none", "balanced"],
        thresholds: Literal["global", "per_criterion"],
        threshold_min_support: int,
        bootstrap_resamples: int,
        seed: int,
    ) -> None:
        self.model = model
        self._encoder = encoder
        self._criteria = list(criteria)
        self._criterion_ids = [criterion.criterion_id for criterion in criteria]
        self._examples = examples
        self._max_length = max_length
        self._negatives = negatives
        self._focal_gamma = focal_gamma
        self._thresholds = thresholds
        self._threshold_min_support = threshold_min_support
        self._bootstrap_resamples = bootstrap_resamples
        self._seed = seed
        self._sources: dict[str, PairSource] = {}
        self._class_weights = self._resolve_weights(class_weights)

    def source(self, split: str) -> PairSource:
        if split not in self._sources:
            examples = self._examples[split]
            if not examples:
                raise DataError(f"The split {split} has no pair; see the label report.")
            reads = {criterion.criterion_id: criterion.text for criterion in self._criteria}
            encoded = encode_pairs(
                self._encoder.tokenizer,
                [reads[example.criterion_id] for example in examples],
                [example.text for example in examples],
                max_length=self._max_length,
            )
            self._sources[split] = PairSource(examples, encoded)
        return self._sources[split]

    def epoch_pool(self, epoch: int) -> np.ndarray:
        return self._pools.of(epoch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        weights = self._class_weights
        logits = model(**_inputs(batch))
        return classification_loss(
            logits,
            batch["labels"],
            class_weights=None if weights is None else weights.to(logits.device),
            focal_gamma=self._focal_gamma,
        )

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return `probabilities`, float32 `[B]`: p(met)."""
        return {"probabilities": model(**_inputs(batch)).float().softmax(dim=-1)[:, 1]}

    def calibrate(self, predictions: Predictions) -> Calibration:
        return {"thresholds": self._fit(self._pairs("val", predictions["probabilities"]))}

    def metrics(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> MetricValues:
        pairs = self._pairs(split, predictions["probabilities"])
        return flat_metrics(
            classification_metrics(
                pairs, criteria=self._criterion_ids, thresholds=calibration["thresholds"]
            )
        )

    def report(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> MetricValues:
        pairs = self._pairs(split, predictions["probabilities"])
        metrics = self._judge(pairs, calibration["thresholds"])
        tfidf = self._tfidf_lr(split)
        fitted = self._fit(tfidf if split == "val" else self._tfidf_lr("val"))
        majority = majority_probabilities(
            train_labels=self._labels("train"),
            train_criterion_ids=self._pair_criteria("train"),
            criterion_ids=self._pair_criteria(split),
        )
        baselines = {
            "tfidf_lr": self._judge(tfidf, fitted),
            "majority": self._judge(
                self._pairs(split, majority),
                dict.fromkeys(self._criterion_ids, FIXED_THRESHOLD),
            ),
        }
        for name, figures in baselines.items():
            metrics |= {
                f"baseline_{name}/{key}": value
                for key, value in figures.items()
                if key.startswith(_BASELINE_FIGURES)
            }
        return {**metrics, **self.truncation(split)}

    def records(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> Iterator[dict[str, Any]]:
        thresholds = calibration["thresholds"]
        for example, value in zip(
            self._examples[split], predictions["probabilities"].tolist(), strict=True
        ):
            threshold = thresholds[example.criterion_id]
            yield {
                "example_id": example.example_id,
                "post_id": example.post_id,
                "criterion_id": example.criterion_id,
                "label": example.label,
                "probability": value,
                "decision": int(value >= threshold),
                "threshold": threshold,
            }

    def truncation(self, split: str) -> MetricValues:
        truncated = self.source(split).encoded.truncated
        return {
            "n_truncated_texts": int(truncated.sum()),
            "share_of_truncated_texts": float(truncated.mean()),
        }

    def notes(self, split: str) -> list[str]:
        truncated = self.source(split).encoded.truncated
        return [
            f"{truncated.sum()} of {len(truncated)} texts of {split} are truncated at "
            f"{self._max_length} tokens ({100 * truncated.mean():.1f} %)."
        ]

    def monitors(self) -> dict[str, Literal["max", "min"]]:
        halves = np.full(len(self._examples["val"]), 0.5)
        thresholds = dict.fromkeys(self._criterion_ids, FIXED_THRESHOLD)
        names = classification_metrics(
            self._pairs("val", halves), criteria=self._criterion_ids, thresholds=thresholds
        ).values
        monitors: dict[str, Literal["max", "min"]] = dict.fromkeys(_LOW_IS_GOOD, "min")
        for name in names:
            if name.split("/")[-1].startswith(_HIGH_IS_GOOD):
                monitors[name] = "max"
        return monitors

    def metadata(self) -> dict[str, Any]:
        return {"classes": list(CLASSES), **description(self._criteria, self._encoder)}

    def summary(self, metrics: MetricValues) -> str:
        per_criterion = classification_report(
            {key: value for key, value in metrics.items() if not isinstance(value, str)},
            criteria=self._criterion_ids,
            names={criterion.criterion_id: criterion.name for criterion in self._criteria},
        )
        return f"{per_criterion}\n\n{_comparison(metrics)}"

    @cached_property
    def _pools(self) -> EpochPools:
        return EpochPools(self._examples["train"], negatives=self._negatives, seed=self._seed)

    def _resolve_weights(
        self, class_weights: Sequence[float] | Literal["none", "balanced"]
    ) -> Tensor | None:
        if class_weights == "none" or "train" not in self._examples:
            return None
        if class_weights != "balanced":
            return torch.tensor(class_weights, dtype=torch.float32)
        # Every epoch has equally many of each class.
        labels = self._labels("train")[self.epoch_pool(0)]
        counts = np.asarray([len(labels) - labels.sum(), labels.sum()])
        if not counts.all():
            raise DataError(
                "`task.class_weights=balanced` needs met and unmet pairs in train, but there are "
                f"{counts[1]} met and {counts[0]} unmet ones."
            )
        return torch.from_numpy(counts.sum() / (2 * counts)).float()

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
            mode=self._thresholds,
            min_support=self._threshold_min_support,
        )

    def _judge(self, pairs: PairPredictions, thresholds: Mapping[str, float]) -> MetricValues:
        """Figures and their intervals."""
        criteria = self._criterion_ids
        figures = classification_metrics(pairs, criteria=criteria, thresholds=thresholds)
        intervals = bootstrap_intervals(
            pairs,
            criteria=criteria,
            thresholds=thresholds,
            n_resamples=self._bootstrap_resamples,
            seed=self._seed,
        )
        return flat_metrics(figures) | flat_metrics(intervals)

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
    """The model beside the baselines: a row a system, 95 % intervals over resampled posts."""
    systems = {
        "model": "",
        "TF-IDF + LR": "baseline_tfidf_lr/",
        "majority": "baseline_majority/",
    }
    rows = [["system", "macro-F1 [95 % interval]", "micro-F1", "AUROC", "AP", "accuracy"]]
    for name, prefix in systems.items():
        low, high = (shown(metrics[f"{prefix}f1_macro_ci_{end}"]) for end in ("low", "high"))
        rest = [
            shown(metrics[prefix + key])
            for key in ("f1_micro", "auroc_macro", "average_precision_macro", "accuracy")
        ]
        rows.append([name, f"{shown(metrics[prefix + 'f1_macro'])} [{low}, {high}]", *rest])
    return render_table(rows, left=2)


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}
