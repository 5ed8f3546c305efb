"""Pairs of texts to token ids, and token ids to padded batches.

Shapes: B sequences, T tokens in the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psy_agents_noaug.errors import ConfigError


@dataclass(frozen=True)
class EncodedPairs:
    """Tokenised `[CLS] first [SEP] second [SEP]` pairs, laid end to end without padding.

    input_ids, token_type_ids: int32 `[tokens]`; the segments None where the encoder takes none.
    starts: int64 `[pairs + 1]`; pair i owns tokens starts[i] to starts[i + 1].
    truncated: bool `[pairs]`; whether the second text lost its end.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    starts: np.ndarray
    truncated: np.ndarray
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair, `[pairs]`."""
        return np.diff(self.starts)

    def pad(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and perhaps `token_type_ids`, int64 `[B, T]`."""
        length = int(self.lengths[list(indices)].max())
        shape = (len(indices), length)
        batch = {
            "input_ids": torch.full(shape, self.pad_token_id, dtype=torch.long),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
        }
        if self.token_type_ids is not None:
            batch["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
        for row, index in enumerate(indices):
            start, end = self.starts[index], self.starts[index + 1]
            batch["input_ids"][row, : end - start] = torch.from_numpy(self.input_ids[start:end])
            batch["attention_mask"][row, : end - start] = 1
            if self.token_type_ids is not None:
                batch["token_type_ids"][row, : end - start] = torch.from_numpy(
                    self.token_type_ids[start:end]
                )
        return batch


def encode_pairs(
    tokenizer: Any, first: Sequence[str], second: Sequence[str], *, max_length: int
) -> EncodedPairs:
    """Tokenise pairs; only the second text is truncated, to `max_length` tokens in all.

    Raises:
        ConfigError: a first text leaves no room for the second, or the tokenizer cannot pad.
    """
    if tokenizer.pad_token_id is None:
        raise ConfigError("The tokenizer of `model.pretrained_model` has no padding token.")
    longest = _longest(tokenizer, first)
    specials = tokenizer.num_special_tokens_to_add(pair=True)
    if first and longest + specials >= max_length:
        raise ConfigError(
            f"`model.max_length` must exceed {longest + specials} tokens (the longest criterion and "
            f"the special tokens), but is {max_length} instead."
        )
    has_segments = "token_type_ids" in tokenizer.model_input_names
    ids: list[np.ndarray] = []
    segments: list[np.ndarray] = []
    truncated: list[bool] = []
    for begin in range(0, len(first), 1024):
        chunk = tokenizer(
            list(first[begin : begin + 1024]),
            list(second[begin : begin + 1024]),
            truncation="only_second",
            max_length=max_length,
            return_token_type_ids=has_segments,
            return_attention_mask=False,
        )
        ids += [np.asarray(row, dtype=np.int32) for row in chunk["input_ids"]]
        if has_segments:
            segments += [np.asarray(row, dtype=np.int32) for row in chunk["token_type_ids"]]
        truncated += [bool(encoding.overflowing) for encoding in chunk.encodings]
    return EncodedPairs(
        input_ids=np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32),
        token_type_ids=np.concatenate(segments) if segments else None,
        starts=np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64),
        truncated=np.asarray(truncated, dtype=bool),
        pad_token_id=tokenizer.pad_token_id,
    )


def _longest(tokenizer: Any, texts: Sequence[str]) -> int:
    distinct = sorted(set(texts))
    if not distinct:
        return 0
    rows = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    return max(len(row) for row in rows)
