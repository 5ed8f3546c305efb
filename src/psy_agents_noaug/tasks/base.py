"""A task: how examples become tensors, a loss, predictions, decisions and figures.

`Task` and `TaskEvaluation` are all that training, evaluation and the search know of a task. A new task
derives from both; `tasks/registry.py` says how it is found.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from psy_agents_noaug.config.schema import ModelConfig, TaskSettings, TrainConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.labels import BINARY, LabelScale
from psy_agents_noaug.data.tokens import cache_folder
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.metrics.classification import Metrics
from psy_agents_noaug.models.encoder import Encoder, adapted_encoder, check_positions
from psy_agents_noaug.tasks.negatives import NegativeSampler

Batch = dict[str, Tensor]
# Name to array, whose first dimension counts examples.
Predictions = dict[str, np.ndarray]
# What turns predictions into decisions (thresholds and the like), fitted on val; JSON-able.
DecisionRule = dict[str, Any]
# Flat metric name to figure; None is undefined and has a reason under `<name>_undefined`.
MetricValues = dict[str, float | int | str | None]
# Encoder by the part that it plays in a task.
Encoders = Mapping[str, Encoder]

ONLY = "encoder"  # the part of an encoder that a task has one of


class ExampleSource(Protocol):
    """Encoded examples that can be collated in any grouping."""

    @property
    def ids(self) -> Sequence[str]:
        """The identifier of each example, as error messages and predictions name it."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, `[examples]`; of several rows, as padded to the longest."""

    def collate(self, indices: Sequence[int]) -> Batch:
        """Return the padded batch of these examples, in this order; an example may have several rows."""


@dataclass(frozen=True)
class SplitPredictions:
    """What a model predicted on a split, and the rule that makes decisions of it.

    Args:
        split: train, val or test.
        values: the outputs of `Task.predict`, one row per example, in the split's order.
        rule: of `TaskEvaluation.fit_decision_rule`.
    """

    split: str
    values: Predictions
    rule: DecisionRule


@dataclass(frozen=True)
class TaskInputs:
    """What a task is made of besides its configuration.

    Args:
        encoders: by part, as `Task.encoder_sources` names them.
        criteria: what posts are judged against.
        examples: of each split that may be looked at.
        max_tokens: padded tokens whose activations may be held at once.
    """

    encoders: Encoders
    criteria: Sequence[Criterion]
    examples: Mapping[str, Sequence[Example]]
    max_tokens: int


class TaskEvaluation(ABC):
    """Turns predictions into decisions and figures. Needs no model."""

    @abstractmethod
    def monitors(self) -> dict[str, Literal["max", "min"]]:
        """Return the keys of `metrics` that training may steer by, and which way is better."""

    @abstractmethod
    def fit_decision_rule(self, predictions: Predictions) -> DecisionRule:
        """Fit thresholds and the like on predictions of val."""

    @abstractmethod
    def metrics(self, predicted: SplitPredictions) -> MetricValues:
        """Return the figures of a whole split; keys without the split's name."""

    @abstractmethod
    def report(self, predicted: SplitPredictions) -> MetricValues:
        """Return `metrics`, their intervals, and the baselines on the same split."""

    @abstractmethod
    def records(self, predicted: SplitPredictions) -> Iterator[dict[str, Any]]:
        """Yield a JSON-able line per example: ids, offsets and numbers, no text."""

    @abstractmethod
    def summary(self, metrics: MetricValues) -> str:
        """Render the figures of a report as a table for the console."""


class Task(ABC):
    """What differs between tasks. A subclass builds its `model` and its `evaluation`.

    Args:
        config: of the run; `config.task` is an instance of the class's `settings`.
        inputs: encoders, criteria and examples.

    Attributes:
        name: as in `task=NAME` and in checkpoints.
        settings: the model of the section `task`.
        labels: which values of the column `status` the task reads.
        loss_parts: what the columns of `loss` are called in the history; empty where it has one.
        model: what is trained.
        evaluation: how its predictions are judged.
        encoder_modules: the pretrained parts of `model`.
        packs: whether padding costs nothing, so that a token budget counts real tokens alone.
    """

    name: ClassVar[str]
    settings: ClassVar[type[TaskSettings]]
    labels: ClassVar[LabelScale] = BINARY
    loss_parts: ClassVar[tuple[str, ...]] = ()

    model: nn.Module
    evaluation: TaskEvaluation
    packs: bool = False

    def __init__(self, config: TrainConfig, inputs: TaskInputs) -> None:
        self.inputs = inputs
        self.examples: dict[str, Sequence[Example]] = dict(inputs.examples)
        for encoder in inputs.encoders.values():
            check_positions(config.model.max_length, encoder)
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
        """Return which pretrained encoders the task needs: name and revision by part."""
        return {ONLY: (model.pretrained_model, model.revision)}

    @abstractmethod
    def encode(self, split: str, examples: Sequence[Example]) -> ExampleSource:
        """Tokenise the examples of a split."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run `model` (`self.model`, perhaps wrapped for several processes) on a batch of B examples.

        Returns:
            The loss of each example, `[B]`, or `[B, parts]`, of which the loss is the sum.
        """

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Run `model` on a batch. Return what it says of each example, first dimension B."""

    def source(self, split: str) -> Any:
        """Return the encoded examples of a split, an `ExampleSource`; made when first asked for.

        Raises:
            DataError: the split has no example.
        """
        if split not in self._sources:
            if not self.examples[split]:
                raise DataError(self.empty_split(split))
            self._sources[split] = self.encode(split, self.examples[split])
        return self._sources[split]

    def empty_split(self, split: str) -> str:
        """Return the message of the error that a split has no example."""
        return f"The split {split} has no pair; see the label report."

    def epoch_pool(self, epoch: int) -> np.ndarray:
        """Return the indices of the training examples seen in `epoch`, in any order.

        A pure function of the epoch and the seed; every epoch has equally many.
        """
        return self._negative_sampler.pool(epoch)

    def input_notes(self, split: str) -> list[str]:
        """Return what a user should know of how the model reads `split`, a line each."""
        return []

    def input_figures(
        self, predicted: SplitPredictions, predict: Callable[[ExampleSource], Predictions]
    ) -> MetricValues:
        """Return the figures of a report that need the encoded inputs or further predictions.

        Args:
            predicted: the predictions that are reported.
            predict: runs the model on other inputs.
        """
        return {}

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint needs to rebuild the model and read its outputs; JSON-able."""
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
        """Return the network of an encoder for the task's model, with the adapters of `model.lora`.

        It learns at `training.learning_rate`; what else the model has, at the head's rate.
        """
        self.encoder_modules.append(adapted_encoder(self.inputs.encoders[part], self._lora))
        return self.encoder_modules[-1]

    def criterion_texts(self, examples: Sequence[Example]) -> list[str]:
        """Return the text of each example's criterion, which the encoder reads beside the post."""
        texts = {criterion.criterion_id: criterion.text for criterion in self.inputs.criteria}
        return [texts[example.criterion_id] for example in examples]

    @cached_property
    def _negative_sampler(self) -> NegativeSampler:
        return NegativeSampler(self.examples["train"], negatives=self._negatives, seed=self._seed)


def example_ids(example: Example) -> dict[str, str]:
    """Return how a prediction line begins."""
    return {
        "example_id": example.example_id,
        "post_id": example.post_id,
        "criterion_id": example.criterion_id,
    }


def flat_metrics(metrics: Metrics) -> MetricValues:
    """Put the reason of an undefined figure beside it."""
    reasons = {f"{key}_undefined": reason for key, reason in metrics.undefined.items()}
    return {**metrics.values, **reasons}
