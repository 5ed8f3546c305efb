"""Pairs of texts to token ids, and token ids to padded batches.

Each distinct text is tokenised once, and framed by the special tokens that the tokenizer puts around a
second text. Shapes: B sequences, T tokens in the longest.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psy_agents_noaug.errors import ConfigError

_CHUNK = 1024


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


@dataclass(frozen=True, slots=True)
class Frame:
    """What a tokenizer puts around a second text: `[CLS] first [SEP]` before it, `[SEP]` after it.

    before, after: int32 ids; the `_types` are their segments, `inside_type` the second text's.
    """

    before: np.ndarray
    before_types: np.ndarray
    inside_type: int
    after: np.ndarray
    after_types: np.ndarray

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


def frames_of(tokenizer: Any, first: Sequence[str], *, max_length: int) -> dict[str, Frame]:
    """Return the frame of each distinct first text.

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


def tokenise(tokenizer: Any, texts: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return ids int32 `[tokens]` and offsets int32 `[tokens, 2]` of each distinct text, unframed."""
    distinct = list(dict.fromkeys(texts))
    tokens: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for begin in range(0, len(distinct), _CHUNK):
        chunk = distinct[begin : begin + _CHUNK]
        encoded = tokenizer(
            chunk,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,  # a text longer than the encoder takes is no mistake here
        )
        for text, ids, offsets in zip(
            chunk, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            tokens[text] = (
                np.asarray(ids, dtype=np.int32),
                np.asarray(offsets, dtype=np.int32).reshape(-1, 2),
            )
    return tokens


def lay_out(
    tokenizer: Any, rows: Iterable[tuple[Frame, np.ndarray]], *, truncated: Sequence[bool]
) -> EncodedPairs:
    """Put each row's second text (ids) into its frame, and the rows end to end."""
    ids: list[np.ndarray] = []
    segments: list[np.ndarray] = []
    lengths = [0]
    for frame, inside in rows:
        ids += [frame.before, inside, frame.after]
        types = np.full(len(inside), frame.inside_type, dtype=np.int32)
        segments += [frame.before_types, types, frame.after_types]
        lengths.append(len(frame) + len(inside))
    empty = np.zeros(0, dtype=np.int32)
    has_segments = "token_type_ids" in tokenizer.model_input_names
    return EncodedPairs(
        input_ids=np.concatenate([empty, *ids]),
        token_type_ids=np.concatenate([empty, *segments]) if has_segments else None,
        starts=np.cumsum(lengths, dtype=np.int64),
        truncated=np.asarray(truncated, dtype=bool),
        pad_token_id=tokenizer.pad_token_id,
    )


def encode_pairs(
    tokenizer: Any, first: Sequence[str], second: Sequence[str], *, max_length: int
) -> EncodedPairs:
    """Tokenise pairs; only the second text is truncated, to `max_length` tokens in all.

    Raises:
        ConfigError: a first text leaves no room for the second, or the tokenizer cannot pad.
    """
    frames = frames_of(tokenizer, first, max_length=max_length)
    tokens: Mapping[str, tuple[np.ndarray, np.ndarray]] = tokenise(tokenizer, second)
    pairs = [(frames[one], tokens[other][0]) for one, other in zip(first, second, strict=True)]
    return lay_out(
        tokenizer,
        ((frame, ids[: max_length - len(frame)]) for frame, ids in pairs),
        truncated=[len(frame) + len(ids) > max_length for frame, ids in pairs],
    )


def _frame(tokenizer: Any, first: str) -> Frame:
    """Read the frame off a pair with some second text; it is the same around any."""
    encoded = tokenizer([first], ["x"], return_token_type_ids=True)
    parts = encoded.sequence_ids(0)
    begin = parts.index(1)
    end = len(parts) - parts[::-1].index(1)
    ids, types = (
        np.asarray(encoded[name][0], dtype=np.int32) for name in ("input_ids", "token_type_ids")
    )
    return Frame(ids[:begin], types[:begin], int(types[begin]), ids[end:], types[end:])
