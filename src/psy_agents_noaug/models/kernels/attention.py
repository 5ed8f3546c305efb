"""Attention within each sequence of a packed row.

Shapes: a row of N tokens holds W sequences of at most T tokens; h heads of width d. A group holds n
sequences, L tokens each when padded, M tokens in all without padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from psy_agents_noaug.models.kernels import varlen
from psy_agents_noaug.models.kernels.dropout import draw_mask, keep_share, mask_, masked
from psy_agents_noaug.utils.host import to_device

# In half precision on a CPU, oneDNN compiles a kernel for every new shape of a matrix product, which
# takes longer than the product. Lengths are padded to multiples of this, so that shapes recur. AMX also
# multiplies whole tiles of 16 x 32.
_LENGTH_MULTIPLE = 32
# With no more keys than this, SDPA on a new shape costs less than padding the keys.
_FEW_KEYS = 64


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a packed row lie.

    Args:
        counts: int64 `[W]`, on the host: the number of tokens of each sequence.
        width: T.
        device: of the row.
        first_only: whether only the first token's result of each sequence is used.
    """

    counts: Tensor
    width: int
    device: torch.device
    first_only: bool

    @cached_property
    def longest(self) -> int:
        """The number of tokens of the longest sequence; T, or less in a part of a batch."""
        return int(self.counts.max())

    @cached_property
    def real(self) -> Tensor:
        """The place of each token among the W * T places of the padded batch: int64 `[N]`."""
        return to_device(self._is_real.flatten().nonzero().squeeze(1), self.device)

    @cached_property
    def is_real(self) -> Tensor:
        """Which places of the padded batch are no padding: bool `[W, T]`."""
        return to_device(self._is_real, self.device)

    @cached_property
    def _is_real(self) -> Tensor:
        return torch.arange(self.width) < self.counts[:, None]

    @cached_property
    def bounds(self) -> Tensor:
        """Where each sequence begins, and the end of the last: int32 `[W + 1]`."""
        bounds = nn.functional.pad(self.counts.cumsum(0), (1, 0)).to(torch.int32)
        return to_device(bounds, self.device)

    @cached_property
    def groups(self) -> list["Group"]:
        """Neighbouring sequences of the same length, grouped."""
        return self._groups(1)

    @cached_property
    def recurring_groups(self) -> list["Group"]:
        """Neighbouring sequences of similar length, grouped and padded to a length that recurs."""
        return self._groups(_LENGTH_MULTIPLE)

    def _groups(self, multiple: int) -> list["Group"]:
        runs = groupby(self.counts.tolist(), key=lambda count: -(-count // multiple) * multiple)
        return [Group(length, list(run)) for length, run in runs]


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences that are computed together.

    Args:
        length: L, the length to which they are padded.
        counts: the number of tokens of each.
    """

    length: int
    counts: list[int]

    @property
    def is_padded(self) -> bool:
        return min(self.counts) < self.length

    @cached_property
    def _real(self) -> Tensor:
        """The place of each token among the n * L padded ones: int64 `[M]`."""
        places = torch.arange(self.length)
        return (places < torch.tensor(self.counts)[:, None]).flatten().nonzero().squeeze(1)

    def pad(self, part: Tensor) -> Tensor:
        """`[h, M, d]` to `[n, h, L, d]`."""
        h, _, d = part.shape
        n = len(self.counts)
        if not self.is_padded:
            return part.view(h, n, self.length, d).transpose(0, 1)
        rows = part.new_zeros(n * self.length, h, d).index_copy(0, self._real, part.transpose(0, 1))
        return rows.view(n, self.length, h, d).transpose(1, 2)

    def without_padding(self, padded: Tensor) -> Tensor:
        """`[n, h, L, d]` to `[M, h, d]`."""
        rows = padded.transpose(1, 2).flatten(0, 1)
        return rows.index_select(0, self._real) if self.is_padded else rows


class PackedAttention(NamedTuple):
    """Attention within sequences, from queries, keys and values `[h, N, d]` to `[N, h, d]`.

    Args:
        packing: where the sequences lie.
        scaling: factor of the scores.
        dropout: probability that a weight is dropped.
        reach: how many tokens to either side a token attends to; None: all of its sequence.
        first_only: compute the results of first tokens only; those of other tokens are 0.
    """

    packing: Packing
    scaling: float
    dropout: float
    reach: int | None = None
    first_only: bool = False

    def on_cpu(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend group by group, with little work for padding."""
        packing, half = self.packing, query.element_size() == 2
        # In half precision on a CPU, the backward pass of SDPA is slow, most of all for short sequences.
        without_sdpa = self.dropout > 0.0 or (half and torch.is_grad_enabled())
        groups = packing.recurring_groups if without_sdpa and half else packing.groups
        tokens = [sum(group.counts) for group in groups]
        spare = query.shape[1] - sum(tokens)
        queries, keys, values = (
            part.split_with_sizes([*tokens, spare], dim=1)[:-1] for part in (query, key, value)
        )
        if self.first_only:
            firsts = packing.bounds[:-1].long()
            sequences = [len(group.counts) for group in groups]
            queries = query.index_select(1, firsts).split_with_sizes(sequences, dim=1)
        attend = self._without_sdpa if without_sdpa else self._with_sdpa
        outputs = []
        for group, q, k, v in zip(groups, queries, keys, values, strict=True):
            if self.first_only:
                attended = attend(group, q.transpose(0, 1).unsqueeze(2), group.pad(k), group.pad(v))
                outputs.append(attended.squeeze(2))
            else:
                attended = attend(group, group.pad(q), group.pad(k), group.pad(v))
                outputs.append(group.without_padding(attended))
        if self.first_only:
            others = query.new_zeros(query.shape[1], *outputs[0].shape[1:])
            return others.index_copy(0, firsts, torch.cat(outputs))
        if spare:
            outputs.append(query.new_zeros(spare, *outputs[0].shape[1:]))
        return torch.cat(outputs)

    def _without_sdpa(self, group: Group, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention_with_dropout(
            query,
            key,
            value,
            probability=self.dropout,
            scaling=self.scaling,
            allowed=self._near(group.length, query),
            counts=group.counts,
        )

    def _with_sdpa(self, group: Group, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        allowed = self._near(group.length, query)
        spare = -group.length % _LENGTH_MULTIPLE
        if spare and group.length > _FEW_KEYS and query.element_size() == 2:
            key, value = (nn.functional.pad(part, (0, 0, 0, spare)) for part in (key, value))
            if allowed is None:
                allowed = torch.ones(1, group.length, dtype=torch.bool)
            allowed = nn.functional.pad(allowed, (0, spare))
        return scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, scale=self.scaling
        )

    def on_accelerator(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend by a kernel for packed rows; by padded SDPA where none applies."""
        kernel = varlen.kernel_for(
            query, has_window=self.reach is not None, has_dropout=self.dropout > 0.0
        )
        if kernel == "padded":
            return self._padded(query, key, value)
        packing = self.packing
        q, k, v = (part.transpose(0, 1).contiguous() for part in (query, key, value))
        if kernel == "flash":
            return varlen.flash(
                q,
                k,
                v,
                bounds=packing.bounds,
                longest=packing.longest,
                scaling=self.scaling,
                dropout=self.dropout,
                reach=self.reach,
            )
        return varlen.memory_efficient(
            q,
            k,
            v,
            bounds=packing.bounds,
            longest=packing.longest,
            scaling=self.scaling,
            dropout=self.dropout,
        )

    def _padded(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        packing = self.packing
        n_rows, longest = packing.is_real.shape
        q, k, v = (
            part.new_zeros(len(part), n_rows * longest, part.shape[-1])
            .index_copy(1, packing.real, part)
            .view(len(part), n_rows, longest, -1)
            .transpose(0, 1)
            for part in (query, key, value)
        )
        allowed = packing.is_real[:, None, None, :]
        near = self._near(longest, query)
        if near is not None:
            # Padding attends to itself, since a query without any key gives NaN.
            allowed = allowed & near | torch.eye(longest, dtype=torch.bool, device=query.device)
        attended = scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, dropout_p=self.dropout, scale=self.scaling
        )
        return attended.transpose(1, 2).flatten(0, 1)[packing.real]

    def _near(self, length: int, like: Tensor) -> Tensor | None:
        """Bool `[length, length]`: which places are in reach of each other; None: all are."""
        if self.reach is None or length <= self.reach + 1:
            return None
        places = torch.arange(length, device=like.device)
        return (places[:, None] - places).abs() <= self.reach


def attention_with_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    probability: float,
    scaling: float,
    allowed: Tensor | None = None,
    counts: Sequence[int] | None = None,
) -> Tensor:
    """Scaled dot-product attention with `draw_mask`'s dropout of the weights, on a CPU.

    SDPA takes a slow path on a CPU when it has to drop weights.

    Args:
        query: `[n, h, Q, d]`.
        key, value: `[n, h, L, d]`.
        probability: that a weight is dropped.
        scaling: factor of the scores.
        allowed: bool `[Q, L]`, which keys a query attends to; None: all.
        counts: the number of keys of each of the n sequences before padding; None: L.

    Returns:
        `[n, h, Q, d]`. The results of padding's queries are undefined.
    """
    scores: Tensor = _Scores.apply(  # type: ignore[no-untyped-call]
        query, key, scaling, allowed, counts
    )
    weights = scores.softmax(dim=-1)
    if probability == 0.0:
        return weights @ value
    attended: Tensor = _DroppedSum.apply(weights, value, probability)  # type: ignore[no-untyped-call]
    return attended


class _Scores(torch.autograd.Function):
    """Scaled scores `[n, h, Q, L]`, -inf for keys that a query must not attend to.

    Autograd would also mask the gradient, but after the softmax it is 0 at these keys already.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scaling: float,
        allowed: Tensor | None,
        counts: Sequence[int] | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key)
        ctx.scaling = scaling
        scores = (query * scaling) @ key.transpose(-1, -2)
        if allowed is not None:
            scores.masked_fill_(~allowed, float("-inf"))
        for place, count in enumerate(counts or ()):
            # Queries of padding keep all keys, since a query without any key gives NaN.
            scores[place, :, :count, count:] = float("-inf")
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key = ctx.saved_tensors
        by_query = (gradient @ key).mul_(ctx.scaling)
        by_key = (gradient.transpose(-1, -2) @ query).mul_(ctx.scaling)
        return by_query, by_key, None, None, None


class _DroppedSum(torch.autograd.Function):
    """The values `[n, h, L, d]` summed by weights `[n, h, Q, L]` of which some are dropped.

    Saves a mask instead of the dropped weights, and divides the sums instead of the weights: both are
    smaller.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, value: Tensor, probability: float) -> Tensor:
        mask = draw_mask(weights.shape, probability)
        ctx.kept = keep_share(probability)
        ctx.save_for_backward(weights, value, mask)
        return (masked(weights, mask) @ value).div_(ctx.kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, value, mask = ctx.saved_tensors
        by_sum = gradient / ctx.kept
        by_value = masked(weights, mask).transpose(-1, -2) @ by_sum
        by_weights = mask_(by_sum @ value.transpose(-1, -2), mask)
        return by_weights, by_value, None
