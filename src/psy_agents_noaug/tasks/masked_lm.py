"""Masked language modelling of unlabelled posts as a `Task` for the trainer (Gururangan et al. 2020).

It is no task of the registry: it has no criteria, no labels and no decisions, so `train`, `eval` and
`predict` have no use for it. `run/adapt.py` builds it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from psy_agents_noaug.config.adaptation import AdaptConfig
from psy_agents_noaug.data.encoding import framed_pairs, frames_of
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.data.masking import mask_words
from psy_agents_noaug.data.token_file import TokenBlocks
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.metrics.tables import format_value
from psy_agents_noaug.models.encoder import Encoder, check_positions
from psy_agents_noaug.models.masked_lm import MaskedLanguageModel, config_text
from psy_agents_noaug.tasks.base import (
    ENCODER,
    Batch,
    DecisionRule,
    MetricValues,
    Predictions,
    SplitPredictions,
    Task,
    TaskEvaluation,
    TaskInputs,
)
from psy_agents_noaug.tasks.pairs import ENCODER_INPUTS
from psy_agents_noaug.utils.reproducibility import derived_seed

LANGUAGE_MODEL = "language_model_config"  # in the metadata of a checkpoint


class MaskedBlocks:
    """Blocks of posts, as an `ExampleSource` whose examples are masked anew in each of several rounds.

    Example r * n + i is block i in round r. Its masks depend on the seed, the round and the block alone,
    whatever it is collated with.

    Args:
        blocks: n of them, not all without tokens.
        tokenizer: of the encoder.
        probability: of a word to be masked.
        max_length: tokens of a block with its special tokens.
        rounds: number of rounds.
        seed: of the masks.
    """

    def __init__(
        self,
        blocks: TokenBlocks,
        tokenizer: Any,
        *,
        probability: float,
        max_length: int,
        rounds: int,
        seed: int,
    ) -> None:
        self._blocks = blocks
        self._tokenizer = tokenizer
        self._probability = probability
        self._seed = seed
        self._frame = frames_of(tokenizer, [None], max_length=max_length)[None]
        special = set(tokenizer.all_special_ids)
        self._ordinary = np.asarray([i for i in range(len(tokenizer)) if i not in special])
        self.lengths = np.tile(blocks.lengths + np.int32(len(self._frame)), rounds)
        self.ids = _Names(blocks.posts, len(self.lengths))
        self.n_blocks = len(blocks)

    @property
    def predicted_ids(self) -> Sequence[str]:
        """As `ids`: an example has one row of predictions."""
        return self.ids

    @property
    def expected_masked(self) -> float:
        """How many tokens of a block are expected to be masked, in the mean over blocks."""
        return self._probability * float(self._blocks.lengths.mean())

    def predicted(self, indices: Sequence[int]) -> list[int]:
        """Return the rows of the predictions that a batch of these examples gives."""
        return list(indices)

    def collate(self, indices: Sequence[int]) -> Batch:
        """Return these examples, masked and padded; B examples, T tokens, M masked ones.

        Returns:
            input_ids, attention_mask, token_type_ids: `[B, T]`.
            places: int64 `[M]`, of the masked tokens in the flattened rows.
            targets: int64 `[M]`, the tokens that were masked.
            owners: int64 `[M]`, the example of each masked token.
            n_masked: int64 `[B]`.
        """
        parts, masked, targets = [], [], []
        for index in indices:
            round_, block = divmod(int(index), self.n_blocks)
            ids, begins = self._blocks[block]
            shown, chosen = mask_words(
                ids,
                begins,
                probability=self._probability,
                mask_id=self._tokenizer.mask_token_id,
                ordinary_ids=self._ordinary,
                generator=np.random.default_rng(derived_seed(self._seed, round_, block)),
            )
            parts.append((self._frame, shown))
            masked.append(np.flatnonzero(chosen) + len(self._frame.before))
            targets.append(ids[chosen])
        rows = framed_pairs(self._tokenizer, parts, truncated=[False] * len(parts))
        inputs = rows.pad(range(len(parts)))
        counts = [len(places) for places in masked]
        owners = np.repeat(np.arange(len(parts)), counts)
        width = inputs["input_ids"].shape[1]
        return {
            **inputs,
            "places": torch.from_numpy(np.concatenate(masked) + owners * width),
            "targets": torch.from_numpy(np.concatenate(targets).astype(np.int64)),
            "owners": torch.from_numpy(owners),
            "n_masked": torch.tensor(counts),
        }


class _Names(Sequence[str]):
    """The names of examples in messages, made when they are asked for."""

    def __init__(self, posts: np.ndarray, n_examples: int) -> None:
        self._posts = posts
        self._n_examples = n_examples

    def __len__(self) -> int:
        return self._n_examples

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return f"post {int(self._posts[index % len(self._posts)]) + 1} of the file"


class MaskedLanguageEvaluation(TaskEvaluation):
    """Loss and perplexity of held-out posts; every masked token counts the same.

    The perplexity is of the masked tokens given the rest, so it compares with that of the same masks and
    the same vocabulary alone.
    """

    def monitors(self) -> dict[str, Literal["max", "min"]]:
        return {"perplexity": "min", "masked_lm_loss": "min", "masked_accuracy": "max"}

    def fit_decision_rule(self, predictions: Predictions) -> DecisionRule:
        return {}  # nothing is decided

    def metrics(self, predicted: SplitPredictions) -> MetricValues:
        sums = {name: float(v.sum(dtype=np.float64)) for name, v in predicted.values.items()}
        n_masked = sums["n_masked"]
        loss = sums["loss"] / n_masked
        return {
            "masked_lm_loss": loss,
            "perplexity": math.exp(loss),
            "masked_accuracy": sums["n_right"] / n_masked,
            "n_masked_tokens": int(n_masked),
            "n_blocks": len(predicted.values["loss"]),
        }

    def report(self, predicted: SplitPredictions) -> MetricValues:
        return self.metrics(predicted)

    def records(self, predicted: SplitPredictions) -> Iterator[dict[str, Any]]:
        return iter(())  # nobody needs the loss of a single post

    def summary(self, metrics: MetricValues) -> str:
        return (
            f"held-out posts: perplexity {format_value(metrics['perplexity'], '.2f')}, masked-LM loss "
            f"{format_value(metrics['masked_lm_loss'], '.4f')}, masked tokens predicted "
            f"{format_value(metrics['masked_accuracy'])} of {metrics['n_masked_tokens']:,}"
        )


def check_encoder(encoder: Encoder, *, max_length: int) -> None:
    """Refuse an encoder that cannot be trained on masked blocks of posts.

    Args:
        encoder: to be trained.
        max_length: tokens of a block with its special tokens.

    Raises:
        ConfigError: its tokenizer has no mask token, or it has fewer positions.
    """
    if encoder.tokenizer.mask_token_id is None:
        raise ConfigError(
            "The tokenizer of `model.pretrained_model` has no mask token, so the encoder was not "
            "pretrained with masks. Use another encoder."
        )
    check_positions(max_length, encoder)


class MaskedLanguageTask(Task):
    """Predicts masked words of posts.

    Args:
        config: of the run.
        inputs: the encoder, see `check_encoder`.
        language_model: of the encoder's family, see `MaskedLanguageModel`.
        blocks: of the splits train and val.
    """

    name = "adapt"
    model: MaskedLanguageModel

    def __init__(
        self,
        config: AdaptConfig,
        inputs: TaskInputs,
        *,
        language_model: nn.Module,
        blocks: Mapping[str, TokenBlocks],
    ) -> None:
        super().__init__(config, inputs)
        tokenizer = inputs.encoders[ENCODER].tokenizer
        self._language_model_config = config_text(language_model)
        self.model = MaskedLanguageModel(self.network(ENCODER), language_model)
        self.evaluation = MaskedLanguageEvaluation()
        # The masks of val are those of every epoch and every seed, so that figures compare.
        rounds = {
            "train": (config.training.epochs, config.seed),
            "val": (1, config.data.split_seed),
        }
        self._sources = {
            split: MaskedBlocks(
                blocks[split],
                tokenizer,
                probability=config.task.mask_probability,
                max_length=config.model.max_length,
                rounds=n_rounds,
                seed=seed,
            )
            for split, (n_rounds, seed) in rounds.items()
        }
        self._expected_masked = self.source("train").expected_masked

    def encode(self, split: str, examples: Sequence[Example]) -> MaskedBlocks:
        """Return the blocks of a split, which are tokens already."""
        found: MaskedBlocks = self._sources[split]
        return found

    def source(self, split: str) -> MaskedBlocks:
        return self.encode(split, ())

    def epoch_pool(self, epoch: int) -> np.ndarray:
        """Return all blocks, with the masks of the epoch."""
        n_blocks = self.source("train").n_blocks
        pool: np.ndarray = np.arange(n_blocks) + epoch * n_blocks
        return pool

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over the masked tokens of each block, `[B]`, over the number expected of one.

        So the loss of an update is the mean over masked tokens, whatever the blocks' lengths, but does
        not depend on how the update is cut.
        """
        losses = _token_losses(model(_inputs(batch), batch["places"]), batch)
        scaled: Tensor = _by_example(losses, batch) / self._expected_masked
        return scaled

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return `loss` (the sum over masked tokens), `n_right` and `n_masked`, each `[B]`."""
        logits = model(_inputs(batch), batch["places"])
        is_right = (logits.argmax(dim=-1) == batch["targets"]).float()
        return {
            "loss": _by_example(_token_losses(logits, batch), batch),
            "n_right": _by_example(is_right, batch),
            "n_masked": batch["n_masked"],
        }

    def metadata(self) -> dict[str, Any]:
        return {**super().metadata(), LANGUAGE_MODEL: self._language_model_config}


def _inputs(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name in ENCODER_INPUTS}


def _token_losses(logits: Tensor, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(logits, batch["targets"], reduction="none")


def _by_example(values: Tensor, batch: Batch) -> Tensor:
    """Return values of masked tokens `[M]` as sums over those of each example, `[B]`."""
    return values.new_zeros(len(batch["n_masked"])).index_add(0, batch["owners"], values)
