"""Pairs of texts, or texts alone, as token ids, and token ids as padded batches.

A frame adds the first text, if there is one, and the special tokens.
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


@dataclass(frozen=True, slots=True)
class Frame:
    """The tokens around a second text: `[CLS] first [SEP]` before it, `[SEP]` after it.

    Without a first text: `[CLS]` before it.

    Attributes:
        before: int32 ids `[tokens before]`.
        before_types: int32 segments (`token_type_ids`) of `before`.
        inside_type: segment of the second text.
        after: int32 ids `[tokens after]`.
        after_types: int32 segments of `after`.
    """

    before: np.ndarray
    before_types: np.ndarray
    inside_type: int
    after: np.ndarray
    after_types: np.ndarray

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class EncodedPairs:
    """Tokenised pairs in their frames, assembled when a batch needs them.

    A post is paired with every criterion, but its tokens are stored once.

    Attributes:
        parts: per pair, its frame and the int32 ids inside it, a view of the text's ids.
        has_segments: whether the encoder takes `token_type_ids`.
        truncated: bool `[pairs]`; whether the end of the second text was cut off.
        pad_token_id: id that fills sequences up to the longest.
    """

    parts: Sequence[tuple[Frame, np.ndarray]]
    has_segments: bool
    truncated: np.ndarray
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.parts)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair, `[pairs]`."""
        return np.asarray([len(frame) + len(ids) for frame, ids in self.parts], dtype=np.int64)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a pair's `input_ids` and `token_type_ids`, int32 `[tokens]`."""
        frame, inside = self.parts[index]
        types = np.full(len(inside), frame.inside_type, dtype=np.int32)
        return (
            np.concatenate([frame.before, inside, frame.after]),
            np.concatenate([frame.before_types, types, frame.after_types]),
        )

    def pad(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and, with segments, `token_type_ids`; int64 `[B, T]`."""
        shape = (len(indices), int(self.lengths[list(indices)].max()))
        names = ("attention_mask", "token_type_ids")[: 1 + self.has_segments]
        batch = {
            "input_ids": torch.full(shape, self.pad_token_id, dtype=torch.long),
            **{name: torch.zeros(shape, dtype=torch.long) for name in names},
        }
        for row, index in enumerate(indices):
            ids, types = self.row(index)
            batch["input_ids"][row, : len(ids)] = torch.from_numpy(ids)
            batch["attention_mask"][row, : len(ids)] = 1
            if self.has_segments:
                batch["token_type_ids"][row, : len(ids)] = torch.from_numpy(types)
        return batch


def frames_of(
    tokenizer: Any, first: Sequence[str | None], *, max_length: int
) -> dict[str | None, Frame]:
    """Return the frame of each distinct first text.

    Args:
        tokenizer: a Hugging Face tokenizer.
        first: the first texts; None where there is none.
        max_length: tokens of a whole pair; every frame must be shorter.

    Raises:
        ConfigError: a first text leaves no room for the second, or the tokenizer cannot pad.
    """
    if tokenizer.pad_token_id is None:
        raise ConfigError("The tokenizer of `model.pretrained_model` has no padding token.")
    frames = {text: _frame(tokenizer, text) for text in dict.fromkeys(first)}
    longest = max(map(len, frames.values()), default=0)
    if frames and longest >= max_length:
        raise ConfigError(
            f"`model.max_length` must exceed {longest} tokens (the longest criterion and "
            f"the special tokens), but is {max_length} instead."
        )
    return frames


def framed_pairs(
    tokenizer: Any, parts: Sequence[tuple[Frame, np.ndarray]], *, truncated: Sequence[bool]
) -> EncodedPairs:
    """Return pairs of frames and ids, with the padding and segments of the tokenizer's encoder."""
    return EncodedPairs(
        parts=parts,
        has_segments="token_type_ids" in tokenizer.model_input_names,
        truncated=np.asarray(truncated, dtype=bool),
        pad_token_id=tokenizer.pad_token_id,
    )


def _frame(tokenizer: Any, first: str | None) -> Frame:
    """Return the frame of `first`. It is the same for every second text, so any text will do."""
    texts = ["x"] if first is None else [first]
    pair = None if first is None else ["x"]
    encoded = tokenizer(texts, pair, return_token_type_ids=True)
    parts = encoded.sequence_ids(0)
    inside = 0 if first is None else 1
    begin = parts.index(inside)
    end = len(parts) - parts[::-1].index(inside)
    ids, types = (
        np.asarray(encoded[name][0], dtype=np.int32) for name in ("input_ids", "token_type_ids")
    )
    return Frame(ids[:begin], types[:begin], int(types[begin]), ids[end:], types[end:])
