"""The criteria task: is this criterion met in this text?"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from psy_agents_noaug.config.schema import CriteriaTaskConfig, TrainConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.encoding import EncodedPairs, encode_pairs
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.tokens import cache_folder
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.models.criteria import CriteriaModel
from psy_agents_noaug.models.encoder import Encoder, adapted_encoder, check_positions
from psy_agents_noaug.models.losses import classification_loss
from psy_agents_noaug.tasks.base import ReportingTask, described_criteria, example_ids
from psy_agents_noaug.tasks.criteria.evaluation import CriteriaEvaluation
from psy_agents_noaug.tasks.encoders import ONLY, described
from psy_agents_noaug.tasks.negatives import NegativeSampler
from psy_agents_noaug.training.protocols import Batch, Calibration, MetricValues, Predictions

CLASSES = ("not met", "met")


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
        token_cache=cache_folder(config.data.token_cache),
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
        token_cache: Path | None = None,
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
        self._examples = examples
        self._max_length = max_length
        self._token_cache = token_cache
        self._negatives = negatives
        self._focal_gamma = focal_gamma
        self._seed = seed
        self._sources: dict[str, PairSource] = {}
        self._judge = CriteriaEvaluation(
            criteria=criteria,
            examples=examples,
            thresholds=thresholds,
            threshold_min_support=threshold_min_support,
            bootstrap_resamples=bootstrap_resamples,
            seed=seed,
        )
        self._class_weights: Tensor | None = None
        if "train" in examples:
            # Every epoch has equally many of each class.
            seen = [examples["train"][index].label for index in self.epoch_pool(0)]
            self._class_weights = resolve_class_weights(class_weights, labels=np.asarray(seen))

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
                token_cache=self._token_cache,
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
        return self._judge.calibrate(predictions)

    def metrics(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> MetricValues:
        return self._judge.metrics(predictions, split=split, calibration=calibration)

    def report(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> MetricValues:
        return {
            **self._judge.report(predictions, split=split, calibration=calibration),
            **self.truncation(split),
        }

    def records(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> Iterator[dict[str, Any]]:
        decisions = self._judge.decisions(predictions, split=split, calibration=calibration)
        for example, decision in zip(self._examples[split], decisions, strict=True):
            yield {**example_ids(example), **decision}

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
        return self._judge.monitors()

    def metadata(self) -> dict[str, Any]:
        return {
            "classes": list(CLASSES),
            "criteria": described_criteria(self._criteria),
            **described({ONLY: self._encoder}),
        }

    def summary(self, metrics: MetricValues) -> str:
        return self._judge.summary(metrics)

    @cached_property
    def _pools(self) -> NegativeSampler:
        return NegativeSampler(self._examples["train"], negatives=self._negatives, seed=self._seed)


def resolve_class_weights(
    class_weights: Sequence[float] | Literal["none", "balanced"], *, labels: np.ndarray
) -> Tensor | None:
    """Return the weights of not met and met, `[2]`; `labels` are those of the pairs of an epoch.

    Raises:
        DataError: `balanced` without pairs of both classes.
    """
    if class_weights == "none":
        return None
    if class_weights != "balanced":
        return torch.tensor(class_weights, dtype=torch.float32)
    counts = np.asarray([len(labels) - labels.sum(), labels.sum()])
    if not counts.all():
        raise DataError(
            "`class_weights=balanced` needs met and unmet pairs in train, but there are "
            f"{counts[1]} met and {counts[0]} unmet ones."
        )
    return torch.from_numpy(counts.sum() / (2 * counts)).float()


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}
