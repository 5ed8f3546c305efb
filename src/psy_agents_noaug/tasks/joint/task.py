"""The joint task: is the criterion met, and which words of the post show it?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from psy_agents_noaug.config.schema import ModelConfig, TrainConfig
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.metrics.joint import ReducedProbabilities, faithfulness
from psy_agents_noaug.models.evidence import EvidenceModel, log_odds
from psy_agents_noaug.models.joint import JointModel
from psy_agents_noaug.models.losses import classification_loss, span_loss
from psy_agents_noaug.tasks.base import (
    ENCODER,
    Batch,
    ExampleSource,
    MetricValues,
    Predictions,
    SplitPredictions,
    Task,
    TaskInputs,
    flat_metrics,
)
from psy_agents_noaug.tasks.criteria.task import (
    CLASSES,
    check_both_classes,
    epoch_class_weights,
)
from psy_agents_noaug.tasks.evidence.task import (
    ENCODER_INPUTS,
    WindowSource,
    decoded_spans,
    window_metrics,
    window_source,
    window_summary,
)
from psy_agents_noaug.tasks.joint.config import JointTaskConfig
from psy_agents_noaug.tasks.joint.evaluation import JointEvaluation, SpansByPair
from psy_agents_noaug.utils.host import to_device

# The parts of a task with two encoders.
CRITERIA, EVIDENCE = "criteria_encoder", "evidence_encoder"
# Prefix of the entries of a batch for a separate criteria encoder.
_CRITERIA_PREFIX = "criteria/"


class JointSource:
    """Pairs cut into windows for the evidence encoder, and for a separate criteria encoder.

    Args:
        examples: the pairs.
        evidence: the windows of the evidence encoder.
        criteria: the windows of the criteria encoder; None if the encoder is shared.
    """

    def __init__(
        self, examples: Sequence[Example], evidence: WindowSource, criteria: WindowSource | None
    ) -> None:
        self.examples = examples
        self.evidence = evidence
        self.criteria = criteria
        self.ids = evidence.ids
        self.labels = np.asarray([example.label for example in examples], dtype=np.int64)

    @property
    def lengths(self) -> np.ndarray:
        lengths: np.ndarray = self.evidence.lengths
        return lengths if self.criteria is None else lengths + self.criteria.lengths

    def collate(self, indices: Sequence[int]) -> Batch:
        """Return a `WindowSource` batch with `labels` `[B]`, and the windows of the criteria encoder."""
        batch = self.evidence.collate(indices)
        batch["labels"] = torch.from_numpy(self.labels[list(indices)])
        if self.criteria is not None:
            criteria = self.criteria.collate(indices)
            batch |= {
                _CRITERIA_PREFIX + name: criteria[name]
                for name in (*ENCODER_INPUTS, "pairs")
                if name in criteria
            }
        return batch


class JointTask(Task):
    """Predicts the label of each (criterion, post) pair and its evidence.

    A met pair with unknown evidence is used to train and evaluate the label only.
    """

    name = "joint"
    settings = JointTaskConfig
    loss_parts = ("criteria", "evidence")

    def __init__(self, config: TrainConfig, inputs: TaskInputs) -> None:
        super().__init__(config, inputs)
        settings = config.task
        assert isinstance(settings, JointTaskConfig)
        self._settings = settings
        shares = ENCODER in inputs.encoders
        self._criteria_part, self._evidence_part = (
            (ENCODER, ENCODER) if shares else (CRITERIA, EVIDENCE)
        )
        # In the order of the parts: adapters draw random weights when they are added.
        networks = {part: self.network(part) for part in inputs.encoders}
        evidence_hidden_size = inputs.encoders[self._evidence_part].hidden_size
        evidence = EvidenceModel(
            networks[self._evidence_part],
            hidden_size=evidence_hidden_size,
            head_layers=config.model.head_layers,
            head_width=config.model.head_width,
            head_dropout=config.model.head_dropout,
            max_tokens=inputs.max_tokens,
        )
        self.model = JointModel(
            evidence,
            networks.get(CRITERIA),
            hidden_size=inputs.encoders[self._criteria_part].hidden_size,
            evidence_hidden_size=evidence_hidden_size,
            fusion=settings.fusion,
            window_pooling=settings.window_pooling,
            learned_weights=settings.loss_weights == "uncertainty",
            pooling=config.model.pooling,
            head_layers=config.model.head_layers,
            head_width=config.model.head_width,
            head_dropout=config.model.head_dropout,
        )
        self.evaluation: JointEvaluation = JointEvaluation(
            settings,
            criteria=inputs.criteria,
            examples=self.examples,
            seed=config.seed,
            subgroups=config.data.subgroups,
        )
        self._class_weights = epoch_class_weights(self, settings.criteria.class_weights)

    @classmethod
    def encoder_sources(cls, model: ModelConfig) -> dict[str, tuple[str, str | None]]:
        if model.share_encoder:
            return super().encoder_sources(model)
        named = {CRITERIA: model.criteria_encoder, EVIDENCE: model.evidence_encoder}
        return {
            part: (name, None) if name else (model.pretrained_model, model.revision)
            for part, name in named.items()
        }

    def check_training_examples(self) -> None:
        check_both_classes(self.examples)

    def encode(self, split: str, examples: Sequence[Example]) -> JointSource:
        return self._encode(examples, cached=True)

    def _encode(self, examples: Sequence[Example], *, cached: bool) -> JointSource:
        settings = self._settings.evidence
        evidence = window_source(self, settings, examples, part=self._evidence_part, cached=cached)
        if self._criteria_part == self._evidence_part:
            return JointSource(examples, evidence, None)
        criteria = window_source(self, settings, examples, part=self._criteria_part, cached=cached)
        return JointSource(examples, evidence, criteria)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the weighted losses of label and evidence, `[B, 2]`."""
        label_odds, spans, log_variances = model(**_inputs(batch))
        settings = self._settings.criteria
        weights = self._class_weights
        label_losses = classification_loss(
            torch.stack([torch.zeros_like(label_odds), label_odds], dim=-1),
            batch["labels"],
            class_weights=None if weights is None else to_device(weights, label_odds.device),
            focal_gamma=settings.focal_gamma if settings.loss == "focal" else 0.0,
        )
        per_window = span_loss(spans, batch["gold"]) * batch["weights"]
        evidence_losses = torch.zeros_like(label_losses).index_add(0, batch["pairs"], per_window)
        losses = torch.stack([label_losses, evidence_losses], dim=-1)
        loss_weights = self._settings.loss_weights
        if loss_weights == "uncertainty":
            # Kendall, Gal & Cipolla 2018, with s = log variance: exp(-s) L + s / 2.
            observed = (
                torch.zeros_like(label_losses).index_add(0, batch["pairs"], batch["weights"]) > 0
            )
            counted = torch.stack([torch.ones_like(observed), observed], dim=-1)
            weighted: Tensor = losses * torch.exp(-log_variances) + counted * log_variances / 2
        else:
            both = torch.tensor([loss_weights.criteria, loss_weights.evidence], dtype=losses.dtype)
            weighted = losses * to_device(both, losses.device)
        return weighted

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return `probabilities`, float32 `[B]`: p(met), and the spans of `EvidenceTask.predict`."""
        label_odds, spans, _ = model(**_inputs(batch))
        return {
            "probabilities": label_odds.float().sigmoid(),
            **decoded_spans(log_odds(spans), batch, self._settings.evidence),
        }

    def input_summary(self, split: str) -> list[str]:
        return window_summary(
            self.source(split).evidence,
            split=split,
            n_unknown=self.evaluation.n_unknown(split),
            max_length=self.max_length,
            max_positions=self.inputs.encoders[self._evidence_part].max_positions,
            max_answer_length=self._settings.evidence.max_answer_length,
        )

    def input_metrics(
        self, predicted: SplitPredictions, predict: Callable[[ExampleSource], Predictions]
    ) -> MetricValues:
        """Return the numbers of windows, and the faithfulness of the predicted evidence."""
        spans = self.evaluation.spans_of_met(predicted)
        by_chance = self.evaluation.random_spans(predicted.split, spans)

        def reduced(chosen: SpansByPair, part: Literal["without", "alone"]) -> np.ndarray:
            posts = self.evaluation.reduced_posts(predicted.split, chosen, part=part)
            return self._probabilities(posts, predict)

        examples = self.examples[predicted.split]
        found = ReducedProbabilities(
            full=predicted.values["probabilities"][list(spans)].astype(np.float64),
            group_ids=np.asarray([examples[index].group_id for index in spans]),
            without=reduced(spans, "without"),
            alone=reduced(spans, "alone"),
            without_random=reduced(by_chance, "without"),
            random_alone=reduced(by_chance, "alone"),
        )
        return {
            **window_metrics(self.source(predicted.split).evidence),
            **flat_metrics(faithfulness(found)),
        }

    def metadata(self) -> dict[str, Any]:
        return {"classes": list(CLASSES), **super().metadata()}

    def _probabilities(
        self, examples: Sequence[Example], predict: Callable[[ExampleSource], Predictions]
    ) -> np.ndarray:
        """Return p(met) of examples that are in no split, float64 `[examples]`."""
        if not examples:
            return np.zeros(0)
        # Not cached: the texts depend on the predictions, so no later run would read their tokens.
        source = self._encode(examples, cached=False)
        return predict(source)["probabilities"].astype(np.float64)


def _inputs(batch: Batch) -> dict[str, Any]:
    """Return the arguments of the model; a shared encoder has one set of windows for both."""
    evidence = {name: batch[name] for name in ENCODER_INPUTS if name in batch}
    criteria = {
        name: batch[_CRITERIA_PREFIX + name]
        for name in ENCODER_INPUTS
        if _CRITERIA_PREFIX + name in batch
    }
    return {
        "criteria": criteria or evidence,
        "evidence": evidence,
        "criteria_pairs": batch.get(f"{_CRITERIA_PREFIX}pairs", batch["pairs"]),
        "evidence_pairs": batch["pairs"],
        "context_mask": batch["context_mask"],
    }
