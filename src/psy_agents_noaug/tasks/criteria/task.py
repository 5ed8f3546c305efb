"""The criteria task: is this criterion met in this text?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.encoding import EncodedPairs, encode_pairs
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.errors import DataError, faults_message
from psy_agents_noaug.models.criteria import CriteriaModel
from psy_agents_noaug.models.losses import classification_loss
from psy_agents_noaug.tasks.base import (
    ENCODER,
    Batch,
    ExampleSource,
    MetricValues,
    Predictions,
    SplitPredictions,
    Task,
    TaskInputs,
)
from psy_agents_noaug.tasks.criteria.config import CriteriaTaskConfig
from psy_agents_noaug.tasks.criteria.evaluation import CriteriaEvaluation
from psy_agents_noaug.utils.host import to_device

CLASSES = ("not met", "met")


class PairSource:
    """Labelled pairs, tokenised once, that can be collated in any grouping."""

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


class CriteriaTask(Task):
    """Binary decisions on (criterion, text) pairs."""

    name = "criteria"
    settings = CriteriaTaskConfig

    def __init__(self, config: TrainConfig, inputs: TaskInputs) -> None:
        super().__init__(config, inputs)
        settings = config.task
        assert isinstance(settings, CriteriaTaskConfig)
        encoder = inputs.encoders[ENCODER]
        self.model = CriteriaModel(
            self.network(ENCODER),
            hidden_size=encoder.hidden_size,
            pooling=config.model.pooling,
            head_layers=config.model.head_layers,
            head_width=config.model.head_width,
            head_dropout=config.model.head_dropout,
        )
        self.evaluation: CriteriaEvaluation = CriteriaEvaluation(
            settings,
            criteria=inputs.criteria,
            examples=self.examples,
            seed=config.seed,
            subgroups=config.data.subgroups,
        )
        self._focal_gamma = settings.focal_gamma if settings.loss == "focal" else 0.0
        self._class_weights = epoch_class_weights(self, settings.class_weights)

    def check_training_examples(self) -> None:
        check_both_classes(self.examples)

    def encode(self, split: str, examples: Sequence[Example]) -> PairSource:
        encoded = encode_pairs(
            self.inputs.encoders[ENCODER].tokenizer,
            self.criterion_texts(examples),
            [example.text for example in examples],
            max_length=self.max_length,
            token_cache=self.token_cache,
        )
        return PairSource(examples, encoded)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        weights = self._class_weights
        logits = model(**_inputs(batch))
        return classification_loss(
            logits,
            batch["labels"],
            class_weights=None if weights is None else to_device(weights, logits.device),
            focal_gamma=self._focal_gamma,
        )

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return `probabilities`, float32 `[B]`: p(met)."""
        return {"probabilities": model(**_inputs(batch)).float().softmax(dim=-1)[:, 1]}

    def input_summary(self, split: str) -> list[str]:
        truncated = self.source(split).encoded.truncated
        return [
            f"{truncated.sum()} of {len(truncated)} texts of {split} are truncated at "
            f"{self.max_length} tokens ({100 * truncated.mean():.1f} %)."
        ]

    def input_metrics(
        self, predicted: SplitPredictions, predict: Callable[[ExampleSource], Predictions]
    ) -> MetricValues:
        truncated = self.source(predicted.split).encoded.truncated
        metrics: MetricValues = {
            "n_truncated_texts": int(truncated.sum()),
            "share_of_truncated_texts": float(truncated.mean()),
        }
        if truncated.any() and not truncated.all():
            values = np.where(truncated, "truncated", "whole")
            metrics |= self.evaluation.subgroup_metrics(predicted, "truncation", values)
        return metrics

    def metadata(self) -> dict[str, Any]:
        return {"classes": list(CLASSES), **super().metadata()}


def check_both_classes(examples: Mapping[str, Sequence[Example]]) -> None:
    """Refuse train or val without met and unmet pairs: nothing could be learned, or measured.

    Raises:
        DataError: naming the splits.
    """
    alone = {}
    for split in ("train", "val"):
        labels = {example.label > 0 for example in examples[split]}
        if len(labels) == 1:
            alone[split] = "met" if labels.pop() else "not met"
    if not alone:
        return
    remedy = "Annotate both, or divide the posts in another way (`data.splits`, `data.split_seed`)."
    if "met" in alone.values():
        remedy = (
            "If the annotation was exhaustive, `data.unannotated_pairs=negative` takes the other pairs "
            "for unmet ones; else annotate unmet pairs too (status 0)."
        )
    faults = [
        f"all {len(examples[split])} pairs of {split} are {which}" for split, which in alone.items()
    ]
    raise DataError(f"{faults_message('Pairs of both classes are needed:', faults)}\n{remedy}")


def epoch_class_weights(
    task: Task, class_weights: Sequence[float] | Literal["none", "balanced"]
) -> Tensor | None:
    """Return the class weights for the training pairs of an epoch, `[2]`; None without such pairs."""
    if "train" not in task.examples:
        return None
    # Every epoch has the same number of pairs of each class.
    labels = [task.examples["train"][index].label for index in task.epoch_pool(0)]
    return resolve_class_weights(class_weights, labels=np.asarray(labels))


def resolve_class_weights(
    class_weights: Sequence[float] | Literal["none", "balanced"], *, labels: np.ndarray
) -> Tensor | None:
    """Return the weights of not met and met, `[2]`; None weights nothing.

    Args:
        class_weights: the setting; `balanced` weights a class inversely to its number of pairs.
        labels: of the pairs of an epoch, `[pairs]`.

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
