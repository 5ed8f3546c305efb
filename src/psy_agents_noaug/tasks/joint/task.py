"""The joint task: is the criterion met, and which words of the post show it?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from psy_agents_noaug.config.schema import JointTaskConfig, TrainConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.tokens import cache_folder
from psy_agents_noaug.data.windows import encode_windows
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.metrics.joint import faithfulness
from psy_agents_noaug.models.encoder import Encoder, adapted_encoder, check_positions
from psy_agents_noaug.models.evidence import EvidenceModel, log_odds
from psy_agents_noaug.models.joint import JointModel
from psy_agents_noaug.models.losses import classification_loss, span_loss
from psy_agents_noaug.tasks.base import ReportingTask, described_criteria, flat_metrics
from psy_agents_noaug.tasks.criteria.task import CLASSES, resolve_class_weights
from psy_agents_noaug.tasks.encoders import CRITERIA, EVIDENCE, ONLY, Encoders, described
from psy_agents_noaug.tasks.evidence.task import (
    ENCODER_INPUTS,
    WindowSource,
    decoded_spans,
    window_figures,
    window_notes,
)
from psy_agents_noaug.tasks.joint.evaluation import PARTS, JointEvaluation
from psy_agents_noaug.tasks.negatives import NegativeSampler
from psy_agents_noaug.training.protocols import Batch, Calibration, MetricValues, Predictions

_OF_CRITERIA = "criteria/"  # prefix of the batch's entries for the label's own encoder


def build_joint_task(
    config: TrainConfig,
    settings: JointTaskConfig,
    *,
    encoders: Encoders,
    criteria: Sequence[Criterion],
    examples: Mapping[str, Sequence[Example]],
    max_tokens: int,
) -> "JointTask":
    """Assemble the task; `max_tokens` as in `models.encoder.encode_rows`."""
    for encoder in encoders.values():
        check_positions(config.model.max_length, encoder)
    lora = config.model.lora.model_dump() if config.model.lora else None
    networks = {part: adapted_encoder(encoder, lora) for part, encoder in encoders.items()}
    evidence_part = ONLY if ONLY in encoders else EVIDENCE
    criteria_part = ONLY if ONLY in encoders else CRITERIA
    evidence = EvidenceModel(
        networks[evidence_part],
        hidden_size=encoders[evidence_part].hidden_size,
        head_layers=config.model.head_layers,
        head_width=config.model.head_width,
        head_dropout=config.model.head_dropout,
        max_tokens=max_tokens,
    )
    model = JointModel(
        evidence,
        networks.get(CRITERIA),
        hidden_size=encoders[criteria_part].hidden_size,
        evidence_hidden_size=encoders[evidence_part].hidden_size,
        fusion=settings.fusion,
        window_pooling=settings.window_pooling,
        learned_weights=settings.loss_weights == "uncertainty",
        pooling=config.model.pooling,
        head_layers=config.model.head_layers,
        head_width=config.model.head_width,
        head_dropout=config.model.head_dropout,
    )
    return JointTask(
        model,
        settings,
        encoders=encoders,
        criteria=criteria,
        examples=examples,
        max_length=config.model.max_length,
        token_cache=cache_folder(config.data.token_cache),
        negatives=config.data.negatives,
        seed=config.seed,
    )


class JointSource:
    """Pairs as windows for the evidence's encoder, and for the label's own where it has one."""

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
        own: np.ndarray = self.evidence.lengths
        return own if self.criteria is None else own + self.criteria.lengths

    def collate(self, indices: Sequence[int]) -> Batch:
        """Return `WindowSource`'s batch, `labels` `[B]`, and with a prefix the label's own windows."""
        batch = self.evidence.collate(indices)
        batch["labels"] = torch.from_numpy(self.labels[list(indices)])
        if self.criteria is not None:
            own = self.criteria.collate(indices)
            batch |= {
                _OF_CRITERIA + name: own[name] for name in (*ENCODER_INPUTS, "pairs") if name in own
            }
        return batch


class JointTask(ReportingTask):
    """The label of each (criterion, post) pair, and its evidence.

    A met pair whose evidence is unknown trains and judges the label alone.

    Args:
        encoders: one, shared by both parts, or one for each.
        examples: the pairs of each split that may be looked at; tokenised when first used.
        max_length: of the windows. negatives: see `NegativeSampler`.
        token_cache: see `tokenise`.
    """

    name = "joint"
    loss_parts = ("criteria", "evidence")

    def __init__(
        self,
        model: JointModel,
        settings: JointTaskConfig,
        *,
        encoders: Encoders,
        criteria: Sequence[Criterion],
        examples: Mapping[str, Sequence[Example]],
        max_length: int,
        token_cache: Path | None = None,
        negatives: float | Literal["all"],
        seed: int,
    ) -> None:
        self.model = model
        self._settings = settings
        self._encoders = encoders
        self._criteria = list(criteria)
        self._examples = dict(examples)
        self._max_length = max_length
        self._token_cache = token_cache
        self._negatives = negatives
        self._seed = seed
        self._sources: dict[str, JointSource] = {}
        self._judge = JointEvaluation(settings, criteria=criteria, examples=examples, seed=seed)
        self._class_weights = (
            resolve_class_weights(
                settings.criteria.class_weights,
                labels=np.asarray([examples["train"][index].label for index in self.epoch_pool(0)]),
            )
            if "train" in examples
            else None
        )

    def source(self, split: str) -> JointSource:
        if split not in self._sources:
            examples = self._examples[split]
            if not examples:
                raise DataError(f"The split {split} has no pair; see the label report.")
            # The posts cut up for a follow-up depend on the predictions: nobody reads them again.
            cache = None if "/" in split else self._token_cache
            encoder = self._encoders.get(EVIDENCE) or self._encoders[ONLY]
            evidence = self._windows(examples, encoder, token_cache=cache)
            own = self._encoders.get(CRITERIA)
            self._sources[split] = JointSource(
                examples,
                evidence,
                None if own is None else self._windows(examples, own, token_cache=cache),
            )
        return self._sources[split]

    def epoch_pool(self, epoch: int) -> np.ndarray:
        return self._pools.of(epoch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the weighted losses of label and evidence, `[B, 2]`."""
        labels, spans, log_variances = model(**_inputs(batch))
        settings = self._settings.criteria
        weights = self._class_weights
        of_label = classification_loss(
            torch.stack([torch.zeros_like(labels), labels], dim=-1),
            batch["labels"],
            class_weights=None if weights is None else weights.to(labels.device),
            focal_gamma=settings.focal_gamma if settings.loss == "focal" else 0.0,
        )
        per_window = span_loss(spans, batch["gold"]) * batch["weights"]
        of_evidence = torch.zeros_like(of_label).index_add(0, batch["pairs"], per_window)
        losses = torch.stack([of_label, of_evidence], dim=-1)
        fixed = self._settings.loss_weights
        if fixed == "uncertainty":
            # Kendall, Gal & Cipolla 2018, with s = log variance: exp(-s) L + s / 2.
            observed = torch.zeros_like(of_label).index_add(0, batch["pairs"], batch["weights"]) > 0
            counted = torch.stack([torch.ones_like(observed), observed], dim=-1)
            weighted: Tensor = losses * torch.exp(-log_variances) + counted * log_variances / 2
        else:
            weighted = losses * losses.new_tensor([fixed.criteria, fixed.evidence])
        return weighted

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return `probabilities`, float32 `[B]`, and the spans of `EvidenceTask.predict`."""
        labels, spans, _ = model(**_inputs(batch))
        return {
            "probabilities": labels.float().sigmoid(),
            **decoded_spans(log_odds(spans), batch, self._settings.evidence),
        }

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
            **window_figures(self.source(split).evidence),
        }

    def follow_ups(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> list[str]:
        """Return the posts without the predicted spans, and the spans alone, as two more sources."""
        explained = self._judge.explained(predictions, split=split, calibration=calibration)
        if not explained:
            return []
        names = [f"{split}/{part}" for part in PARTS]
        for name, part in zip(names, PARTS, strict=True):
            self._examples[name] = [
                replace(example, text=text, evidence=(), hard_negative_spans=())
                for example, text in self._judge.divided(explained, split=split, part=part)
            ]
            self._sources.pop(name, None)
        return names

    def follow_up_report(
        self,
        predictions: Predictions,
        follow_ups: Mapping[str, Predictions],
        *,
        split: str,
        calibration: Calibration,
    ) -> MetricValues:
        explained = self._judge.explained(predictions, split=split, calibration=calibration)
        probabilities = {
            part: follow_ups[f"{split}/{part}"]["probabilities"] if explained else np.zeros(0)
            for part in PARTS
        }
        full = predictions["probabilities"][list(explained)]
        return flat_metrics(
            faithfulness(
                full.astype(np.float64),
                **{part: values.astype(np.float64) for part, values in probabilities.items()},
            )
        )

    def records(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> Iterator[dict[str, Any]]:
        return self._judge.records(predictions, split=split, calibration=calibration)

    def notes(self, split: str) -> list[str]:
        return window_notes(
            self.source(split).evidence,
            split=split,
            n_unknown=self._judge.n_unknown(split),
            max_length=self._max_length,
            max_positions=(self._encoders.get(EVIDENCE) or self._encoders[ONLY]).max_positions,
            max_answer_length=self._settings.evidence.max_answer_length,
        )

    def monitors(self) -> dict[str, Literal["max", "min"]]:
        return self._judge.monitors()

    def metadata(self) -> dict[str, Any]:
        return {
            "classes": list(CLASSES),
            "criteria": described_criteria(self._criteria),
            **described(self._encoders),
        }

    def summary(self, metrics: MetricValues) -> str:
        return self._judge.summary(metrics)

    @cached_property
    def _pools(self) -> NegativeSampler:
        return NegativeSampler(self._examples["train"], negatives=self._negatives, seed=self._seed)

    def _windows(
        self, examples: Sequence[Example], encoder: Encoder, *, token_cache: Path | None
    ) -> WindowSource:
        reads = {criterion.criterion_id: criterion.text for criterion in self._criteria}
        settings = self._settings.evidence
        windows = encode_windows(
            encoder.tokenizer,
            [reads[example.criterion_id] for example in examples],
            [example.text for example in examples],
            [example.evidence for example in examples],
            max_length=self._max_length,
            stride=settings.stride,
            token_cache=token_cache,
        )
        return WindowSource(
            examples,
            windows,
            snap_to_sentences=settings.snap_to_sentences,
            first_span=settings.loss == "first_span",
        )


def _inputs(batch: Batch) -> dict[str, Any]:
    """The model's arguments; without windows of its own the label reads the evidence's."""
    evidence = {name: batch[name] for name in ENCODER_INPUTS if name in batch}
    criteria = {
        name: batch[_OF_CRITERIA + name] for name in ENCODER_INPUTS if _OF_CRITERIA + name in batch
    }
    return {
        "criteria": criteria or evidence,
        "evidence": evidence,
        "criteria_pairs": batch.get(f"{_OF_CRITERIA}pairs", batch["pairs"]),
        "evidence_pairs": batch["pairs"],
        "context_mask": batch["context_mask"],
    }
