"""The joint task: is the criterion met, and which words of the post show it?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from psy_agents_noaug.config.schema import ModelConfig, TrainConfig
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.merging import MergeRule
from psy_agents_noaug.metrics.joint import ReducedProbabilities, faithfulness
from psy_agents_noaug.models.evidence import EvidenceModel, log_odds
from psy_agents_noaug.models.invariance import elementwise
from psy_agents_noaug.models.joint import JointModel
from psy_agents_noaug.tasks.base import (
    ENCODER,
    Batch,
    ExampleSource,
    MetricValues,
    Predictions,
    RowSizes,
    SplitPredictions,
    Task,
    TaskInputs,
    flat_metrics,
)
from psy_agents_noaug.tasks.criteria.task import (
    CLASSES,
    check_both_classes,
    epoch_class_weights,
    label_losses,
)
from psy_agents_noaug.tasks.evidence.task import (
    WindowSource,
    attention_losses,
    decoded_spans,
    span_losses,
    window_metrics,
    window_source,
    window_summary,
)
from psy_agents_noaug.tasks.joint.config import JointTaskConfig, LossWeightsConfig
from psy_agents_noaug.tasks.joint.evaluation import JointEvaluation, SpansByPair
from psy_agents_noaug.tasks.one_pass import label_attention, outputs_of, source_of
from psy_agents_noaug.tasks.pairs import (
    ENCODER_INPUTS,
    PairSource,
    TextSource,
    mean_by_example,
    sum_by_pair,
)
from psy_agents_noaug.utils.host import to_device

# The parts of a task with two encoders.
CRITERIA, EVIDENCE = "criteria_encoder", "evidence_encoder"
# Prefix of the entries of a batch for a separate criteria encoder.
_CRITERIA_PREFIX = "criteria/"


class TwoEncoderSource:
    """The windows of the evidence encoder, and those of a separate criteria encoder.

    Args:
        evidence: the windows of the evidence encoder.
        criteria: the windows of the criteria encoder.
    """

    def __init__(self, evidence: WindowSource, criteria: WindowSource) -> None:
        self.pairs = evidence
        self.examples = evidence.examples
        self.predicted_ids = self.ids = evidence.ids
        self._criteria = criteria
        self.n_windows = evidence.n_windows
        self.lengths = evidence.lengths + criteria.lengths
        self.sizes = RowSizes(*map(np.maximum, evidence.sizes, criteria.sizes))

    def predicted(self, indices: Sequence[int]) -> list[int]:
        """Return the rows of the predictions that a batch of these examples gives."""
        return list(indices)

    def collate(self, indices: Sequence[int]) -> Batch:
        """Return a `WindowSource` batch, and the windows of the criteria encoder with a prefix."""
        criteria = self._criteria.collate(indices)
        return {
            **self.pairs.collate(indices),
            **{
                _CRITERIA_PREFIX + name: criteria[name]
                for name in (*ENCODER_INPUTS, "pairs")
                if name in criteria
            },
        }


JointSource = PairSource | TextSource | TwoEncoderSource


class JointTask(Task):
    """Predicts the label of each (criterion, post) pair and its evidence.

    A met pair with unknown evidence is used to train and evaluate the label only.
    """

    name = "joint"
    has_mean_model = True
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
        self.model = (
            label_attention(self, config.model, window_pooling=settings.window_pooling)
            if self.reads_texts
            else self._cross_encoder(config.model)
        )
        self.evaluation: JointEvaluation = JointEvaluation(
            settings,
            criteria=inputs.criteria,
            examples=self.examples,
            seed=config.seed,
            subgroups=config.data.subgroups,
            merge=MergeRule.of(config.data.merge),
            protocol=config.protocol,
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

    def _cross_encoder(self, model: ModelConfig) -> JointModel:
        settings = self._settings
        # In the order of the parts: adapters draw random weights when they are added.
        networks = {part: self.network(part) for part in self.inputs.encoders}
        evidence_hidden_size = self.inputs.encoders[self._evidence_part].hidden_size
        evidence = EvidenceModel(
            networks[self._evidence_part],
            hidden_size=evidence_hidden_size,
            head_layers=model.head_layers,
            head_width=model.head_width,
            head_dropout=model.head_dropout,
            max_tokens=self.inputs.max_tokens,
        )
        return JointModel(
            evidence,
            networks.get(CRITERIA),
            hidden_size=self.inputs.encoders[self._criteria_part].hidden_size,
            evidence_hidden_size=evidence_hidden_size,
            fusion=settings.fusion,
            window_pooling=settings.window_pooling,
            learned_weights=settings.loss_weights == "uncertainty",
            pooling=model.pooling,
            head_layers=model.head_layers,
            head_width=model.head_width,
            head_dropout=model.head_dropout,
        )

    def check_training_examples(self) -> None:
        check_both_classes(self.examples)

    def encode(self, split: str, examples: Sequence[Example]) -> JointSource:
        return self._encode(examples, cached=True)

    def _encode(self, examples: Sequence[Example], *, cached: bool) -> JointSource:
        settings = self._settings.evidence
        evidence = window_source(self, settings, examples, part=self._evidence_part, cached=cached)
        if self._criteria_part == self._evidence_part:
            return source_of(self, evidence)
        criteria = window_source(self, settings, examples, part=self._criteria_part, cached=cached)
        return TwoEncoderSource(evidence, criteria)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the weighted losses of label and evidence, `[B, 2]`."""
        settings = self._settings
        if self.reads_texts:
            outputs = outputs_of(model, batch)
            label_odds, spans = outputs.label_odds, outputs.spans
        else:
            label_odds, spans, log_variances = model(**_inputs(batch))
        of_labels = label_losses(
            label_odds, batch["labels"], settings.criteria, self._class_weights
        )
        of_evidence = span_losses(spans, batch)
        weights = settings.loss_weights
        if self.reads_texts:
            assert isinstance(weights, LossWeightsConfig)
            of_tokens = attention_losses(outputs.attention, batch)
            of_evidence = of_evidence + weights.attention * of_tokens
        losses = torch.stack([of_labels, of_evidence], dim=-1)
        if isinstance(weights, LossWeightsConfig):
            both = torch.tensor([weights.criteria, weights.evidence], dtype=losses.dtype)
            weighted = losses * to_device(both, losses.device)
        else:
            # Kendall, Gal & Cipolla 2018, with s = log variance: exp(-s) L + s / 2.
            observed = sum_by_pair(batch["weights"], batch)
            counted = torch.stack([torch.ones_like(observed), observed > 0], dim=-1)
            weighted = losses * torch.exp(-log_variances) + counted * log_variances / 2
        return mean_by_example(weighted, batch)

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return `probabilities`, float32 `[P]`: p(met), and the spans of `EvidenceTask.predict`."""
        if self.reads_texts:
            label_odds, spans, _ = outputs_of(model, batch)
        else:
            label_odds, spans, _ = model(**_inputs(batch))
        return {
            "probabilities": elementwise(torch.sigmoid, label_odds.float()),
            **decoded_spans(log_odds(spans), batch, self._settings.evidence),
        }

    def input_summary(self, split: str) -> list[str]:
        return window_summary(
            self.source(split).pairs,
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
            **window_metrics(self.source(predicted.split)),
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
