"""Encoded pairs as an `ExampleSource`: pair by pair, or text by text with all pairs of a text.

Shapes: a batch has B examples, P pairs with V windows in all, and W windows of T tokens that the encoder
reads. Pair by pair, B = P and W = V.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from psy_agents_noaug.data.examples import Example, pairs_by_text
from psy_agents_noaug.data.windows import EncodedWindows
from psy_agents_noaug.tasks.base import Batch, RowSizes
from psy_agents_noaug.utils.host import on_host, to_device

ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
CRITERION_PREFIX = "criterion/"  # of the encoder's inputs of the criteria's texts, in a batch


class PairSource:
    """Pairs cut into windows, tokenised once, that can be collated in any grouping.

    An example is a pair with all of its windows.

    Args:
        examples: the pairs.
        windows: of the pairs.
        soft: whether the labels are the shares of annotators who say met.
    """

    def __init__(
        self, examples: Sequence[Example], windows: EncodedWindows, *, soft: bool = False
    ) -> None:
        self.examples = examples
        self.windows = windows
        self.ids = [example.example_id for example in examples]
        self.labels = (
            np.asarray([example.soft_label for example in examples], dtype=np.float32)
            if soft
            else np.asarray([example.label for example in examples], dtype=np.int64)
        )
        self.pair_of = np.repeat(np.arange(len(examples)), np.diff(windows.starts))

    @property
    def pairs(self) -> "PairSource":
        """The pairs themselves, as those of a `TextSource`."""
        return self

    @property
    def predicted_ids(self) -> Sequence[str]:
        """Identifier of each row of the predictions."""
        return self.ids

    @property
    def n_windows(self) -> int:
        """How many windows the encoder reads."""
        return len(self.windows.begins)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, `[examples]`, with its windows padded to the longest of them."""
        lengths: np.ndarray = self.sizes.longest * self.sizes.rows
        return lengths

    @cached_property
    def sizes(self) -> RowSizes:
        """The windows of each example."""
        lengths, starts = self.windows.rows.lengths, self.windows.starts
        longest, tokens = (f.reduceat(lengths, starts[:-1]) for f in (np.maximum, np.add))
        return RowSizes(np.diff(starts), longest, tokens)

    def predicted(self, indices: Sequence[int]) -> list[int]:
        """Return the rows of the split's predictions that a batch of these examples gives."""
        return list(indices)

    def windows_of(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the windows of these pairs, `[V]`, and the position of each one's pair, `[V]`."""
        starts = self.windows.starts
        ranges = [np.arange(starts[index], starts[index + 1]) for index in indices]
        positions = np.repeat(np.arange(len(indices)), [len(own) for own in ranges])
        return np.concatenate(ranges), positions

    def collate(self, indices: Sequence[int]) -> Batch:
        """Return the windows of these examples, example by example, padded, and their `targets`.

        Returns:
            input_ids: `[W, T]`.
            attention_mask: `[W, T]`.
            token_type_ids: `[W, T]`, if the encoder has them.
        """
        inputs = self.windows.rows.pad(self.windows_of(indices)[0].tolist())
        return {**inputs, **self.targets(indices, width=inputs["input_ids"].shape[1])}

    def targets(self, indices: Sequence[int], *, width: int) -> Batch:
        """Return what a batch holds of these pairs besides the encoder's inputs.

        Args:
            indices: the pairs.
            width: T.

        Returns:
            labels: int64 `[P]`, or float32 where they are shares.
            pairs: `[V]`, index of the window's pair in `indices`, in ascending order.
        """
        return {
            "labels": torch.from_numpy(self.labels[list(indices)]),
            "pairs": torch.from_numpy(self.windows_of(indices)[1]),
        }


class TextSource:
    """Texts (posts or sentences) that the encoder reads once for all of their pairs.

    An example is a text.

    Args:
        pairs: of the texts; without a first text, so that the pairs of a text have the same windows.
        criterion_ids: of the C criteria that are read, all of those of the pairs.
        criterion_texts: the encoder's inputs of their texts, `[C, L]`.
    """

    def __init__(
        self,
        pairs: PairSource,
        criterion_ids: Sequence[str],
        criterion_texts: Mapping[str, Tensor],
    ) -> None:
        self.pairs = pairs
        self.members = pairs_by_text(pairs.examples)
        self.ids = [pairs.examples[own[0]].text_id for own in self.members]
        self._firsts = np.asarray([own[0] for own in self.members], dtype=np.int64)
        self.lengths = pairs.lengths[self._firsts]
        self.sizes = RowSizes(*(size[self._firsts] for size in pairs.sizes))
        order = {criterion_id: index for index, criterion_id in enumerate(criterion_ids)}
        self._criteria = np.asarray([order[example.criterion_id] for example in pairs.examples])
        self._criterion_texts = {
            CRITERION_PREFIX + name: value for name, value in criterion_texts.items()
        }

    @property
    def predicted_ids(self) -> Sequence[str]:
        """Identifier of each row of the predictions, of a pair."""
        return self.pairs.ids

    @property
    def n_windows(self) -> int:
        """How many windows the encoder reads."""
        return int(self.sizes.rows.sum())

    def predicted(self, indices: Sequence[int]) -> list[int]:
        """Return the rows of the split's predictions that a batch of these examples gives."""
        return [pair for index in indices for pair in self.members[index]]

    def collate(self, indices: Sequence[int]) -> Batch:
        """Return the windows of these texts, padded, and the `PairSource.targets` of their pairs.

        Returns:
            input_ids, attention_mask, token_type_ids: `[W, T]`, see `PairSource.collate`.
            windows: `[V]`, which of the W windows is read for a pair.
            criterion/input_ids, ...: `[C, L]`, the texts of the criteria.
            criteria: `[V]`, index of the pair's criterion.
            texts: `[P]`, index of the pair's text in `indices`, in ascending order.
        """
        pairs = self.pairs
        rows, texts = pairs.windows_of(self._firsts[list(indices)].tolist())
        inputs = pairs.windows.rows.pad(rows.tolist())
        members = self.predicted(indices)
        begins = np.searchsorted(texts, np.arange(len(indices) + 1))
        counts = [len(self.members[index]) for index in indices]
        windows = [
            np.tile(np.arange(begins[position], begins[position + 1]), count)
            for position, count in enumerate(counts)
        ]
        targets = pairs.targets(members, width=inputs["input_ids"].shape[1])
        return {
            **inputs,
            **targets,
            **self._criterion_texts,
            "windows": torch.from_numpy(np.concatenate(windows)),
            "criteria": torch.from_numpy(self._criteria[members])[targets["pairs"]],
            "texts": torch.from_numpy(np.repeat(np.arange(len(indices)), counts)),
        }


def sum_by_pair(values: Tensor, batch: Batch) -> Tensor:
    """Return values of windows `[V]` as sums over the windows of each pair, `[P]`."""
    return values.new_zeros(len(batch["labels"])).index_add(0, batch["pairs"], values)


def mean_by_example(values: Tensor, batch: Batch) -> Tensor:
    """Return values of pairs `[P, ...]` as those of examples `[B, ...]`: means over a text's pairs."""
    if "texts" not in batch:
        return values
    texts = batch["texts"]
    counts = torch.bincount(on_host(texts))
    total = values.new_zeros(len(counts), *values.shape[1:]).index_add(0, texts, values)
    return total / to_device(counts, values.device).view(-1, *[1] * (values.dim() - 1))
