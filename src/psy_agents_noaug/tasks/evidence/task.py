"""The evidence task: which words of the post show that the criterion is met?"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.merging import MergeRule
from psy_agents_noaug.data.sentences import sentences
from psy_agents_noaug.data.windows import NO_OFFSET, EncodedWindows, encode_windows
from psy_agents_noaug.models.evidence import NULL_POSITION, EvidenceModel, log_odds
from psy_agents_noaug.models.losses import attention_loss, span_loss
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
from psy_agents_noaug.tasks.evidence.config import EvidenceTaskConfig
from psy_agents_noaug.tasks.evidence.decoding import decode_spans
from psy_agents_noaug.tasks.evidence.evaluation import EvidenceEvaluation
from psy_agents_noaug.tasks.one_pass import label_attention, outputs_of, source_of
from psy_agents_noaug.tasks.pairs import (
    ENCODER_INPUTS,
    PairSource,
    TextSource,
    mean_by_example,
    sum_by_pair,
)


class WindowSource(PairSource):
    """Pairs cut into windows, with their gold spans.

    Args:
        examples: the pairs.
        windows: of the pairs.
        snap_to_sentences: extend predicted spans to the borders of the sentences that they touch.
        first_span: train on only the first gold span of each window.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        windows: EncodedWindows,
        *,
        snap_to_sentences: bool,
        first_span: bool,
    ) -> None:
        super().__init__(examples, windows)
        self._offsets = (
            _sentence_offsets(examples, windows) if snap_to_sentences else windows.offsets
        )
        # The loss ignores windows with a part of a gold span and no whole one, and all windows of a met
        # pair with unknown evidence: neither a span nor "no evidence" would be right there.
        unknown = np.asarray([e.label == 1 and not e.evidence for e in examples], dtype=bool)
        ignored = windows.cut | unknown[self.pair_of]
        counted = np.bincount(self.pair_of, weights=~ignored, minlength=len(examples))
        self.trainable = counted > 0
        share = 1.0 / np.maximum(counted, 1.0)[self.pair_of]
        self._weights = np.where(ignored, 0.0, share).astype(np.float32)
        gold = windows.gold
        if first_span:
            gold = gold[np.unique(gold[:, 0], return_index=True)[1]]
        self._gold = gold
        self._gold_starts = np.searchsorted(gold[:, 0], np.arange(len(windows.cut) + 1))

    def targets(self, indices: Sequence[int], *, width: int) -> Batch:
        """Return the targets of `PairSource`, and those of the spans.

        Returns:
            context_mask: `[V, T]`, 1 for tokens of the post that cover a character.
            offset_mapping: `[V, T, 2]`, code points of the post, or NO_OFFSET.
            gold: bool `[V, T, 2]`, gold starts and ends; NULL_POSITION in a window without a gold span.
            inside: bool `[V, T]`, the tokens of gold spans.
            weights: `[V]`, of a window in the loss of its example.
        """
        rows, _ = self.windows_of(indices)
        offsets = np.full((len(rows), width, 2), NO_OFFSET, dtype=np.int64)
        gold = np.zeros((len(rows), width, 2), dtype=bool)
        inside = np.zeros((len(rows), width), dtype=bool)
        for position, row in enumerate(rows.tolist()):
            framed = self.windows.framed_offsets(row, self._offsets[self.pair_of[row]])
            offsets[position, : len(framed)] = framed
            spans = self._gold[self._gold_starts[row] : self._gold_starts[row + 1]]
            gold[position, spans[:, 1], 0] = True
            gold[position, spans[:, 2], 1] = True
            gold[position, NULL_POSITION] = len(spans) == 0
            for _, first, last in spans.tolist():
                inside[position, first : last + 1] = True
        return {
            **super().targets(indices, width=width),
            "context_mask": torch.from_numpy((offsets[:, :, 0] != NO_OFFSET).astype(np.int64)),
            "offset_mapping": torch.from_numpy(offsets),
            "gold": torch.from_numpy(gold),
            "inside": torch.from_numpy(inside),
            "weights": torch.from_numpy(self._weights[rows]),
        }


class EvidenceTask(Task):
    """Predicts which spans of a post show the criterion, if any, for each (criterion, post) pair.

    Met pairs whose evidence is unknown (not annotated, or lost in alignment) are left out of training
    and evaluation, and counted.
    """

    name = "evidence"
    has_mean_model = True
    settings = EvidenceTaskConfig

    def __init__(self, config: TrainConfig, inputs: TaskInputs) -> None:
        super().__init__(config, inputs)
        assert isinstance(config.task, EvidenceTaskConfig)
        self._settings = config.task
        self.examples = {
            split: [example for example in pairs if example.evidence or example.label == 0]
            for split, pairs in inputs.examples.items()
        }
        self._n_unknown = {
            split: len(pairs) - len(self.examples[split])
            for split, pairs in inputs.examples.items()
        }
        self.model = (
            label_attention(self, config.model, window_pooling="max")
            if self.reads_texts
            else EvidenceModel(
                self.network(ENCODER),
                hidden_size=inputs.encoders[ENCODER].hidden_size,
                head_layers=config.model.head_layers,
                head_width=config.model.head_width,
                head_dropout=config.model.head_dropout,
                max_tokens=inputs.max_tokens,
            )
        )
        self.evaluation = EvidenceEvaluation(
            criteria=inputs.criteria,
            examples=self.examples,
            seed=config.seed,
            merge=MergeRule.of(config.data.merge),
        )

    def empty_split(self, split: str) -> str:
        return f"The split {split} has no pair whose evidence is known; see the alignment report."

    def encode(self, split: str, examples: Sequence[Example]) -> PairSource | TextSource:
        return source_of(self, window_source(self, self._settings, examples, part=ENCODER))

    def epoch_pool(self, epoch: int) -> np.ndarray:
        pool = super().epoch_pool(epoch)
        kept: np.ndarray = pool[self._is_trainable[pool]]
        return kept

    @cached_property
    def _is_trainable(self) -> np.ndarray:
        """Whether an example of train has a pair with a trainable window, bool `[examples]`."""
        trainable = self.source("train").pairs.trainable
        members = self.pairs_of_examples("train")
        return np.asarray([trainable[own].any() for own in members], dtype=bool)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each example, `[B]`: of a pair, the weighted mean over its windows."""
        return mean_by_example(span_losses(self._spans(model, batch), batch), batch)

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return `span_starts`, `span_ends` (code points) and `span_scores`, each `[P, max_spans]`."""
        return decoded_spans(log_odds(self._spans(model, batch)), batch, self._settings)

    def _spans(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.reads_texts:
            return outputs_of(model, batch).spans
        inputs = {name: batch[name] for name in (*ENCODER_INPUTS, "context_mask") if name in batch}
        spans: Tensor = model(**inputs)
        return spans

    def input_summary(self, split: str) -> list[str]:
        return window_summary(
            self.source(split).pairs,
            split=split,
            n_unknown=self._n_unknown[split],
            max_length=self.max_length,
            max_positions=self.inputs.encoders[ENCODER].max_positions,
            max_answer_length=self._settings.max_answer_length,
        )

    def input_metrics(
        self, predicted: SplitPredictions, predict: Callable[[ExampleSource], Predictions]
    ) -> MetricValues:
        return {
            **window_metrics(self.source(predicted.split)),
            "n_pairs_with_unknown_evidence": self._n_unknown[predicted.split],
        }


def window_source(
    task: Task,
    settings: EvidenceTaskConfig,
    examples: Sequence[Example],
    *,
    part: str,
    cached: bool = True,
) -> WindowSource:
    """Cut pairs into windows for one of the task's encoders.

    Args:
        task: has the criteria, the encoders and `max_length`.
        settings: stride, loss and snapping.
        examples: the pairs.
        part: the encoder that reads the windows.
        cached: whether the tokens are kept for later runs (`data.token_cache`).
    """
    windows = encode_windows(
        task.inputs.encoders[part].tokenizer,
        task.criterion_texts(examples),
        [example.text for example in examples],
        [example.evidence for example in examples],
        max_length=task.max_length,
        stride=settings.stride,
        token_cache=task.token_cache if cached else None,
    )
    return WindowSource(
        examples,
        windows,
        snap_to_sentences=settings.snap_to_sentences,
        first_span=settings.loss == "first_span",
    )


def span_losses(spans: Tensor, batch: Batch) -> Tensor:
    """Return the span loss of each pair of a `WindowSource` batch, `[P]`, from logits `[V, T, 2]`."""
    per_window = span_loss(spans, batch["gold"]) * batch["weights"]
    return sum_by_pair(per_window, batch)


def attention_losses(attention: Tensor, batch: Batch) -> Tensor:
    """Return the `attention_loss` of each pair of a `WindowSource` batch, `[P]`, from `[V, T]`."""
    per_window = attention_loss(attention, batch["inside"], batch["context_mask"].bool())
    per_window = per_window * batch["weights"]
    return sum_by_pair(per_window, batch)


def decoded_spans(odds: Tensor, batch: Batch, settings: EvidenceTaskConfig) -> dict[str, Tensor]:
    """Decode log odds `[W, T, 2]` of a `WindowSource` batch to the outputs of `EvidenceTask.predict`."""
    starts, ends, scores = decode_spans(
        odds.detach(),
        batch["offset_mapping"],
        batch["pairs"],
        n_pairs=len(batch["labels"]),
        n_best_size=settings.n_best_size,
        max_answer_length=settings.max_answer_length,
        max_spans=settings.max_spans,
    )
    return {"span_starts": starts, "span_ends": ends, "span_scores": scores}


def window_metrics(source: Any) -> MetricValues:
    """Return the numbers of windows, unreachable gold spans and pairs with partly known evidence.

    Args:
        source: has `n_windows`, and a `WindowSource` as its `pairs`.
    """
    pairs: WindowSource = source.pairs
    return {
        "n_windows": source.n_windows,
        "n_unreachable_gold_spans": len(pairs.windows.unreachable),
        "n_pairs_with_partial_evidence": sum(e.evidence_is_partial for e in pairs.examples),
    }


def window_summary(
    source: WindowSource,
    *,
    split: str,
    n_unknown: int,
    max_length: int,
    max_positions: int | None,
    max_answer_length: int,
) -> list[str]:
    """Describe the windows of a split, and which evidence cannot be predicted, with a remedy."""
    windows, examples = source.windows, source.examples
    answerable = sum(bool(example.evidence) for example in examples)
    lines = [
        f"{len(windows.cut)} windows of {len(examples)} pairs of {split}, {answerable} of them with "
        f"evidence; {n_unknown} met pairs have unknown evidence."
    ]
    if partial := [example.example_id for example in examples if example.evidence_is_partial]:
        lines.append(
            f"{len(partial)} pairs of {split} have partly unknown evidence; the unknown part counts as "
            f"no evidence: {', '.join(partial)}."
        )
    if windows.unreachable:
        ids = sorted({source.ids[span.pair] for span in windows.unreachable})
        longest = max(span.tokens for span in windows.unreachable)
        limit = max_positions or max(max_length, windows.longest_frame + 2 * longest)
        # Room for twice the span, if the encoder has it: otherwise windows advance by few tokens.
        room = min(max(max_length, windows.longest_frame + 2 * longest), limit)
        advice = f"Set stride={longest - 1} and model.max_length={room} to include the longest."
        if longest == 0:
            advice = "They have no token: the tokenizer drops all of their characters."
        elif windows.longest_frame + longest > limit:
            advice = (
                f"The longest has {longest} tokens; with the criterion it exceeds the {limit} that the "
                "encoder reads."
            )
        lines.append(
            f"{len(windows.unreachable)} gold spans of {split} fit into no window and count as missed: "
            f"{', '.join(ids)}. {advice}"
        )
    if windows.longest_gold > max_answer_length:
        lines.append(
            f"The longest gold span of {split} has {windows.longest_gold} tokens, but "
            f"`max_answer_length` is {max_answer_length}: it cannot be predicted."
        )
    return lines


def _sentence_offsets(examples: Sequence[Example], windows: EncodedWindows) -> list[np.ndarray]:
    """Return the offsets of the tokens, replaced by the borders of the sentence that they lie in."""
    by_text: dict[str, np.ndarray] = {}
    for example, original in zip(examples, windows.offsets, strict=True):
        if example.text in by_text:
            continue
        snapped = by_text[example.text] = original.copy()
        for sentence in sentences(example.text):
            inside = (original[:, 0] < sentence.end_char) & (original[:, 1] > sentence.start_char)
            snapped[inside & (original[:, 0] != NO_OFFSET)] = sentence.start_char, sentence.end_char
    return [by_text[example.text] for example in examples]
