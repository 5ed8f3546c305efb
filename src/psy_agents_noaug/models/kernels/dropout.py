"""Dropout that does not slow a CPU down: random numbers a word at a time instead of one by one.

PyTorch's own draws each element from a serial generator, and takes SDPA's slow path on a CPU.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 2**16
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class FastDropout(nn.Dropout):
    """`nn.Dropout`, its masks drawn by `draw_kept` on a CPU; the rate is that of `keep_share`."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0 or input.device.type != "cpu":
            return super().forward(input)
        dropped: Tensor = _Masked.apply(input, self.p)  # type: ignore[no-untyped-call]
        return dropped


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every `nn.Dropout` in `model` by `FastDropout` at the same rate."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, FastDropout(child.p))


def keep_share(probability: float) -> float:
    """The share of elements that are kept: 1 - `probability` in steps of 2^-16."""
    return 1.0 - _threshold(probability) / _LEVELS


def draw_kept(shape: torch.Size, probability: float) -> Tensor:
    """Return int16 `shape` on the CPU: 1 with probability `keep_share(probability)`, else 0.

    Of a generator of NumPy's seeded from PyTorch's, so that `torch.manual_seed` decides what it returns.
    """
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw(-(-shape.numel() // 4))
    levels = torch.from_numpy(words.view(np.int16)[: shape.numel()]).view(shape)
    return levels.ge_(_threshold(probability) - _LEVELS // 2)


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
    """Scaled dot-product attention with dropped weights: queries `[n, h, Q, d]` to `[n, h, Q, d]`.

    Keys and values are `[n, h, L, d]`. `allowed`: bool `[Q, L]`, the keys that a query sees; None: all.
    `counts`: how many keys each of the n has, before padding; queries after as many may have any result.
    """
    attended: Tensor = _DroppedAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, probability, scaling, allowed, counts
    )
    return attended


def _threshold(probability: float) -> int:
    return min(round(probability * _LEVELS), _LEVELS - 1)


def _bits(values: Tensor) -> Tensor:
    """`values` as integers of the same width, whose operations are several times as fast in bf16."""
    return values.view(_INTEGERS[values.element_size()])


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, probability: float) -> Tensor:
        # All bits where an element is kept, none elsewhere.
        mask = draw_kept(input.shape, probability).neg_()
        ctx.kept = keep_share(probability)
        ctx.save_for_backward(mask)
        return _Masked._keep(input, mask, ctx.kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return _Masked._keep(gradient, mask, ctx.kept), None

    @staticmethod
    def _keep(values: Tensor, mask: Tensor, kept: float) -> Tensor:
        scaled = values / kept
        _bits(scaled).bitwise_and_(mask)
        return scaled


class _DroppedAttention(torch.autograd.Function):
    """Keeps the weights for the way back, those not dropped negative, and nothing else of their size."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        probability: float,
        scaling: float,
        allowed: Tensor | None,
        counts: Sequence[int] | None,
    ) -> Tensor:
        scores = (query * scaling) @ key.transpose(-1, -2)
        if allowed is not None:
            scores.masked_fill_(~allowed, float("-inf"))
        for place, count in enumerate(counts or ()):
            # Padding's own queries see something, as attending to nothing makes NaN.
            scores[place, :, :count, count:] = float("-inf")
        signed = scores.softmax(dim=-1)
        bits = _bits(signed)
        sign = torch.iinfo(bits.dtype).min
        if probability > 0.0:
            bits.add_(draw_kept(signed.shape, probability), alpha=sign)
        else:
            # Also of what may have it already: NaN, which has to stay.
            bits.bitwise_or_(sign)
        minus_kept = -keep_share(probability)
        ctx.save_for_backward(query, key, value, signed)
        ctx.scaling, ctx.minus_kept = scaling, minus_kept
        return (_negative(signed) @ value).div_(minus_kept)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, signed = ctx.saved_tensors
        by_minus_kept = gradient / ctx.minus_kept
        by_value = _negative(signed).transpose(-1, -2) @ by_minus_kept
        by_weights = by_minus_kept @ value.transpose(-1, -2)
        bits = _bits(signed)
        # Of a negative integer, the sign alone is shifted in: all bits where a weight is kept.
        _bits(by_weights).bitwise_and_(bits >> torch.iinfo(bits.dtype).bits - 1)
        weights = (bits & torch.iinfo(bits.dtype).max).view(signed.dtype)
        by_scores = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)
        by_query = (by_scores @ key).mul_(-ctx.scaling)
        by_key = (by_scores.transpose(-1, -2) @ query).mul_(-ctx.scaling)
        return by_query, by_key, by_value, None, None, None, None


def _negative(values: Tensor) -> Tensor:
    """`values` < 0, others 0; floating-point numbers have the sign of their bits as an integer."""
    return _bits(values).clamp(max=0).view(values.dtype)
