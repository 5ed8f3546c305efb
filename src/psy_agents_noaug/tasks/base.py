"""A task: how examples become tensors, a loss, predictions, decisions and metrics.

Training, evaluation and the search use a task through `Task` and `TaskEvaluation` only. A new task
derives from both; `tasks/registry.py` describes how it is found.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from psy_agents_noaug.config.schema import ModelConfig, TaskSettings, TrainConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example, pairs_by_text
from psy_agents_noaug.data.labels import BINARY, LabelScale
from psy_agents_noaug.data.tokens import cache_folder
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.metrics.values import Metrics
from psy_agents_noaug.models.encoder import Encoder, adapted_encoder, check_positions
from psy_agents_noaug.tasks.negatives import NegativeSampler

Batch = dict[str, Tensor]
# Arrays by name; the first dimension is the number of examples.
Predictions = dict[str, np.ndarray]
# Parameters that turn predictions into decisions, such as thresholds. Fitted on val; JSON-able.
DecisionRule = dict[str, Any]
# Values by metric name. None is an undefined metric; `<name>_undefined` holds the reason.
MetricValues = dict[str, float | int | str | None]
# What is predicted of each pair, by column: numbers, or JSON-able lists. NaN and None: it has no value.
DecisionColumns = dict[str, np.ndarray | list[Any]]
# Encoders by the part of the model that they are, such as `encoder` or `criteria_encoder`.
Encoders = Mapping[str, Encoder]

ENCODER = "encoder"  # the part, in a task with a single encoder
BASELINE = "tfidf_lr"  # the baseline whose predictions are kept, to compare systems with


class ExampleSource(Protocol):
    """Encoded examples that can be collated in any grouping."""

    @property
    def ids(self) -> Sequence[str]:
        """Identifier of each example, for error messages and predictions."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, `[examples]`; several rows count as padded to the longest of them."""

    @property
    def predicted_ids(self) -> Sequence[str]:
        """Identifier of each row of the predictions: those of the pairs, in the split's order."""

    def collate(self, indices: Sequence[int]) -> Batch:
        """Return a padded batch of these examples, in this order. An example may have several rows."""

    def predicted(self, indices: Sequence[int]) -> list[int]:
        """Return the rows of the predictions that a batch of these examples gives, in its order."""


class RowSizes(NamedTuple):
    """What each example puts into an encoder at once, for predictions: int64 `[examples]` each.

    Args:
        rows: how many rows.
        longest: tokens of the longest of them.
        tokens: of all of them, without padding.
    """

    rows: np.ndarray
    longest: np.ndarray
    tokens: np.ndarray


@runtime_checkable
class RowSource(ExampleSource, Protocol):
    """An `ExampleSource` whose examples have several rows, such as the windows of a post."""

    @property
    def sizes(self) -> RowSizes:
        """The rows of the examples; of several encoders, which run in turn, the largest."""


def row_sizes(source: ExampleSource) -> RowSizes:
    """Return the sizes of a `RowSource`; the examples of other sources have one row."""
    if isinstance(source, RowSource):
        return source.sizes
    return RowSizes(np.ones_like(source.lengths), source.lengths, source.lengths)


@dataclass(frozen=True)
class SplitPredictions:
    """The predictions of a model on a split, and the rule that turns them into decisions.

    Args:
        split: train, val, test, or all of a corpus that is not divided; HELD_OUT for the pairs of
            test, or of all, with the held-out criteria.
        values: the outputs of `Task.predict`, one row per pair, in the split's order.
        rule: from `TaskEvaluation.fit_decision_rule`.
        rule_is_fitted_here: whether the rule was fitted on this split of this corpus.
    """

    split: str
    values: Predictions
    rule: DecisionRule
    rule_is_fitted_here: bool = False


@dataclass(frozen=True)
class TaskInputs:
    """The inputs of a task besides its configuration.

    Args:
        encoders: by part, see `Task.encoder_sources`.
        criteria: those of the examples of train, val and test.
        examples: by split; splits that must not be read are absent, and so is val where its pairs are
            trained on, among those of train. A corpus that is evaluated whole
            has one, `data.splits.WHOLE`. Under `HELD_OUT` are the pairs of `held_out` with the posts of
            test, or with all, if they may be read.
        max_tokens: padded tokens of one example whose activations may be held at once.
        held_out: the criteria that are held out of training, see `data.held_out_criteria`.
    """

    encoders: Encoders
    criteria: Sequence[Criterion]
    examples: Mapping[str, Sequence[Example]]
    max_tokens: int
    held_out: Sequence[Criterion] = ()


class TaskEvaluation(ABC):
    """Turns predictions into decisions and metrics, without a model.

    Attributes:
        needs_training_pairs: whether `report` needs the pairs of train or val. If it does not, a corpus
            that is not divided can be evaluated (`split=all`); baselines that need them are left out.
    """

    needs_training_pairs: ClassVar[bool] = True

    @abstractmethod
    def monitors(self) -> dict[str, Literal["max", "min"]]:
        """Return the keys of `metrics` that may be `training.monitor`, and which direction is better."""

    @abstractmethod
    def fit_decision_rule(self, predictions: Predictions) -> DecisionRule:
        """Fit the decision rule, such as thresholds, on predictions of val."""

    def absent_from(self, rule: DecisionRule) -> list[str]:
        """Return the names of what a rule must hold and does not; a task that has no rule needs none."""
        return []

    @abstractmethod
    def metrics(self, predicted: SplitPredictions) -> MetricValues:
        """Return the metrics of a whole split. Keys do not contain the name of the split."""

    @abstractmethod
    def report(self, predicted: SplitPredictions) -> MetricValues:
        """Return `metrics`, their confidence intervals, and the baselines on the same split."""

    def unfitted_rule(self, rule: DecisionRule, criterion_ids: Iterable[str]) -> DecisionRule:
        """Return the rule for criteria that are not in it: nothing of it is fitted on them."""
        return rule

    def values_of_lines(self, lines: Sequence[Mapping[str, Any]]) -> Predictions:
        """Return the predictions in prediction lines (`records`), for an ensemble.

        Raises:
            ConfigError: the task has none, see `Task.has_mean`.
        """
        raise ConfigError("This task has no ensembles.")

    def rule_of_lines(
        self, lines: Sequence[Mapping[str, Any]], values: Predictions, *, like: DecisionRule
    ) -> DecisionRule:
        """Fit the decision rule on the pairs of prediction lines of val, for an ensemble.

        Args:
            lines: of the pairs.
            values: what is predicted of them.
            like: a rule that was fitted on the same pairs, which has the same parts.

        Raises:
            ConfigError: see `values_of_lines`.
        """
        raise ConfigError("This task has no ensembles.")

    def decisions(
        self, examples: Sequence[Example], values: Predictions, rule: DecisionRule
    ) -> DecisionColumns:
        """Return what a prediction says of each pair, without looking at its label.

        Args:
            examples: the pairs.
            values: the outputs of `Task.predict`, one row per pair.
            rule: turns them into decisions.

        Raises:
            ConfigError: the task evaluates labelled pairs only.
        """
        raise ConfigError("This task has no predictions on posts without labels.")

    def held_out_report(
        self, predicted: SplitPredictions, *, criteria: Sequence[Criterion]
    ) -> MetricValues:
        """Return `<criterion id>/<figure>` of criteria held out of training, and of a baseline.

        A task that has no figures of them returns none.

        Args:
            predicted: the pairs of `HELD_OUT`, with `unfitted_rule`.
            criteria: the held-out ones.
        """
        return {}

    @abstractmethod
    def records(self, predicted: SplitPredictions) -> Iterator[dict[str, Any]]:
        """Yield one JSON-able record per example: ids, offsets and numbers, no text."""

    def baseline_records(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the records of the baseline `BASELINE`, as `records`; a task without it has none."""
        return iter(())

    @abstractmethod
    def summary(self, metrics: MetricValues) -> str:
        """Render the metrics of `report` as a table for the console."""


class Task(ABC):
    """What differs between tasks. A subclass builds its `model` and its `evaluation`.

    Args:
        config: of the run; `config.task` is an instance of the class's `settings`.
        inputs: encoders, criteria and examples.

    Attributes:
        name: as in `task=NAME` and in checkpoints.
        settings: the settings model of the section `task`.
        labels: the values of the column `status` that the task reads.
        loss_parts: names of the columns of `loss` in the history; empty if it has one column.
        has_mean: whether the outputs of `predict` are probabilities of pairs, which have a mean over
            several models, whatever their tokenizers.
        has_mean_model: whether several models that read the same inputs can be one, a
            `models.mean.MeanModel`.
        model: the trained model.
        evaluation: computes the metrics.
        encoder_modules: the pretrained parts of `model`.
        reads_texts: whether an example is a text with all of its pairs (`model.architecture`).
        packs: whether batches are packed, so that token budgets count no padding.
    """

    name: ClassVar[str]
    settings: ClassVar[type[TaskSettings]]
    labels: ClassVar[LabelScale] = BINARY
    loss_parts: ClassVar[tuple[str, ...]] = ()
    has_mean: ClassVar[bool] = False
    has_mean_model: ClassVar[bool] = False

    model: nn.Module
    evaluation: TaskEvaluation
    packs: bool = False

    def __init__(self, config: TrainConfig, inputs: TaskInputs) -> None:
        self.inputs = inputs
        self.examples: dict[str, Sequence[Example]] = dict(inputs.examples)
        for encoder in inputs.encoders.values():
            check_positions(config.model.max_length, encoder)
        self.reads_texts = config.model.architecture == "label_attention"
        self.max_length = config.model.max_length
        lora = config.model.lora
        self._lora = lora.model_dump() if lora else None
        self.token_cache = cache_folder(config.data.token_cache)
        self._negatives = config.data.negatives
        self._seed = config.seed
        self._sources: dict[str, Any] = {}
        self.encoder_modules: list[nn.Module] = []

    @classmethod
    def encoder_sources(cls, model: ModelConfig) -> dict[str, tuple[str, str | None]]:
        """Return the pretrained encoders that the task needs: name and revision, by part."""
        return {ENCODER: (model.pretrained_model, model.revision)}

    @abstractmethod
    def encode(self, split: str, examples: Sequence[Example]) -> ExampleSource:
        """Tokenise the examples of a split."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run `model` on a batch of B examples and return the loss of each.

        Args:
            model: `self.model`, which may be wrapped for several processes.
            batch: from `ExampleSource.collate`.

        Returns:
            `[B]`, or `[B, parts]`, where the loss of an example is the sum over its parts.
        """

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Run `model` on a batch. Return its outputs, each with one row per pair of its examples."""

    def source(self, split: str) -> Any:
        """Return the encoded examples of a split, an `ExampleSource`. They are encoded once.

        Raises:
            DataError: the split has no example.
        """
        if split not in self._sources:
            if not self.examples[split]:
                raise DataError(self.empty_split(split))
            self._sources[split] = self.encode(split, self.examples[split])
        return self._sources[split]

    def empty_split(self, split: str) -> str:
        """Return the error message for a split without examples."""
        return f"The split {split} has no pair; see the label report."

    def check_training_examples(self) -> None:  # noqa: B027 - a task need not refuse anything
        """Refuse examples of train and val from which nothing can be learned.

        Raises:
            DataError: saying what to do.
        """

    def epoch_pool(self, epoch: int) -> np.ndarray:
        """Return the indices of the training examples of `epoch`, in any order.

        They depend on the epoch and the seed only. Every epoch has the same number of examples.
        """
        return self._negative_sampler.pool(epoch)

    def input_summary(self, split: str) -> list[str]:
        """Return log lines on how the model reads `split`: truncation, windows, unknown evidence."""
        return []

    def input_metrics(
        self, predicted: SplitPredictions, predict: Callable[[ExampleSource], Predictions]
    ) -> MetricValues:
        """Return the metrics that need the encoded inputs or predictions on other inputs.

        Args:
            predicted: the reported predictions.
            predict: runs the model on other inputs.
        """
        return {}

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint needs to rebuild the model and interpret its outputs; JSON-able."""
        return {
            "criteria": [
                {"criterion_id": c.criterion_id, "name": c.name, "text": c.text}
                for c in self.inputs.criteria
            ],
            **{
                f"{part}_files": dict(encoder.files)
                for part, encoder in self.inputs.encoders.items()
            },
        }

    def network(self, part: str) -> nn.Module:
        """Return the network of an encoder, with the adapters of `model.lora`, for use in `model`.

        It is trained at `training.learning_rate`, other modules at `training.head_learning_rate`.
        """
        self.encoder_modules.append(adapted_encoder(self.inputs.encoders[part], self._lora))
        return self.encoder_modules[-1]

    def pairs_of_examples(self, split: str) -> list[list[int]]:
        """Return the indices of the pairs of each example of a split."""
        pairs = self.examples[split]
        return (
            pairs_by_text(pairs) if self.reads_texts else [[index] for index in range(len(pairs))]
        )

    def criterion_texts(self, examples: Sequence[Example]) -> Sequence[str | None]:
        """Return the text that the encoder reads before that of each pair: of its criterion, or None."""
        if self.reads_texts:
            return [None] * len(examples)
        criteria = (*self.inputs.criteria, *self.inputs.held_out)
        texts = {criterion.criterion_id: criterion.text for criterion in criteria}
        return [texts[example.criterion_id] for example in examples]

    @cached_property
    def _negative_sampler(self) -> NegativeSampler:
        pairs = self.examples["train"]
        examples = [[pairs[index] for index in own] for own in self.pairs_of_examples("train")]
        return NegativeSampler(examples, negatives=self._negatives, seed=self._seed)


def example_ids(example: Example) -> dict[str, str]:
    """Return the first keys of a prediction line."""
    return {
        "example_id": example.example_id,
        "post_id": example.post_id,
        "group_id": example.group_id,
        "criterion_id": example.criterion_id,
    }


def decision_rows(columns: DecisionColumns) -> Iterator[dict[str, Any]]:
    """Yield the entries of `TaskEvaluation.decisions` of each pair."""
    lists = [v.tolist() if isinstance(v, np.ndarray) else v for v in columns.values()]
    return (dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True))


def flat_metrics(metrics: Metrics) -> MetricValues:
    """Return the values, with the reason for each undefined metric under `<name>_undefined`."""
    reasons = {f"{key}_undefined": reason for key, reason in metrics.undefined.items()}
    return {**metrics.values, **reasons}
