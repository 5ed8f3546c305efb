"""The criteria task: is this criterion met in this text?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.encoding import frames_of
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.merging import MergeRule
from psy_agents_noaug.data.windows import encode_windows
from psy_agents_noaug.errors import DataError, faults_message
from psy_agents_noaug.models.criteria import CriteriaModel
from psy_agents_noaug.models.invariance import elementwise
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
from psy_agents_noaug.tasks.criteria.config import CriteriaTaskConfig, LabelConfig
from psy_agents_noaug.tasks.criteria.evaluation import CriteriaEvaluation
from psy_agents_noaug.tasks.one_pass import label_attention, outputs_of, source_of
from psy_agents_noaug.tasks.pairs import ENCODER_INPUTS, PairSource, TextSource, mean_by_example
from psy_agents_noaug.utils.host import to_device

CLASSES = ("not met", "met")
_OVERLAP = 0.25  # of neighbouring windows


class CriteriaTask(Task):
    """Binary decisions on (criterion, text) pairs."""

    name = "criteria"
    settings = CriteriaTaskConfig
    has_mean = True

    def __init__(self, config: TrainConfig, inputs: TaskInputs) -> None:
        super().__init__(config, inputs)
        settings = config.task
        assert isinstance(settings, CriteriaTaskConfig)
        self._settings = settings
        pooling = settings.window_pooling
        self.model = (
            label_attention(self, config.model, window_pooling=pooling)
            if self.reads_texts
            else CriteriaModel(
                self.network(ENCODER),
                hidden_size=inputs.encoders[ENCODER].hidden_size,
                pooling=config.model.pooling,
                head_layers=config.model.head_layers,
                head_width=config.model.head_width,
                head_dropout=config.model.head_dropout,
                window_pooling=pooling,
                max_tokens=inputs.max_tokens,
            )
        )
        self.evaluation: CriteriaEvaluation = CriteriaEvaluation(
            settings,
            criteria=inputs.criteria,
            examples=self.examples,
            seed=config.seed,
            subgroups=config.data.subgroups,
            merge=MergeRule.of(config.data.merge),
            protocol=config.protocol,
        )
        self._soft_labels = config.data.soft_labels
        self._class_weights = epoch_class_weights(self, settings.class_weights)

    def check_training_examples(self) -> None:
        check_both_classes(self.examples)

    def encode(self, split: str, examples: Sequence[Example]) -> PairSource | TextSource:
        tokenizer = self.inputs.encoders[ENCODER].tokenizer
        first = self.criterion_texts(examples)
        stride = None
        if self._settings.long_posts == "windows":
            # Those of all criteria: a pair's windows do not depend on what else is in the split.
            known = [] if self.reads_texts else [c.text for c in self.inputs.criteria]
            frames = frames_of(tokenizer, [*known, *first], max_length=self.max_length)
            stride = int(_OVERLAP * (self.max_length - max(map(len, frames.values()))))
        windows = encode_windows(
            tokenizer,
            first,
            [example.text for example in examples],
            max_length=self.max_length,
            stride=stride,
            token_cache=self.token_cache,
        )
        soft = self._soft_labels and split == "train"
        return source_of(self, PairSource(examples, windows, soft=soft))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        odds = self._log_odds(model, batch)
        losses = label_losses(odds, batch["labels"], self._settings, self._class_weights)
        return mean_by_example(losses, batch)

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return `probabilities`, float32 `[P]`: p(met)."""
        return {"probabilities": elementwise(torch.sigmoid, self._log_odds(model, batch))}

    def _log_odds(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.reads_texts:
            return outputs_of(model, batch).label_odds
        inputs = {name: batch[name] for name in ENCODER_INPUTS if name in batch}
        odds: Tensor = model(inputs, pairs=batch["pairs"], n_pairs=len(batch["labels"]))
        return odds

    def input_summary(self, split: str) -> list[str]:
        source = self.source(split)
        counts, examples = source.sizes.rows, "texts" if self.reads_texts else "pairs"
        if self._settings.long_posts == "windows":
            return [
                f"{(counts > 1).sum()} of {len(counts)} {examples} of {split} are longer than "
                f"{self.max_length} tokens and read in windows, at most {counts.max()}."
            ]
        truncated = source.pairs.windows.rows.truncated
        return [
            f"{truncated.sum()} of {len(truncated)} pairs of {split} are truncated at "
            f"{self.max_length} tokens ({100 * truncated.mean():.1f} %)."
        ]

    def input_metrics(
        self, predicted: SplitPredictions, predict: Callable[[ExampleSource], Predictions]
    ) -> MetricValues:
        source = self.source(predicted.split)
        windows = source.pairs.windows
        if self._settings.long_posts == "windows":
            return {"n_windows": source.n_windows}
        truncated = windows.rows.truncated
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
    for split in (name for name in ("train", "val") if name in examples):
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
    # Every epoch has the same number of pairs of each class, or nearly so where texts are drawn.
    members = task.pairs_of_examples("train")
    pairs = (pair for index in task.epoch_pool(0) for pair in members[index])
    labels = [task.examples["train"][pair].label for pair in pairs]
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


def label_losses(
    log_odds: Tensor, labels: Tensor, settings: LabelConfig, class_weights: Tensor | None
) -> Tensor:
    """Return the loss of each pair, `[P]`.

    Args:
        log_odds: of "met", `[P]`.
        labels: int64 `[P]`; or float32, the share of annotators who say met: the loss is then the mean
            of the losses of both labels, weighted by it.
        settings: of the loss.
        class_weights: `[2]`, or None.
    """
    logits = torch.stack([torch.zeros_like(log_odds), log_odds], dim=-1)
    weights = None if class_weights is None else to_device(class_weights, log_odds.device)
    gamma = settings.focal_gamma if settings.loss == "focal" else 0.0

    def loss(of: Tensor) -> Tensor:
        return classification_loss(logits, of, class_weights=weights, focal_gamma=gamma)

    if not labels.is_floating_point():
        return loss(labels)
    unmet = torch.zeros_like(labels, dtype=torch.int64)
    return labels * loss(unmet + 1) + (1 - labels) * loss(unmet)
