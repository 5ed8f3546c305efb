"""Dropout with random numbers that are cheap to draw on a CPU.

PyTorch draws one number per element from a serial generator. `draw_mask` draws 64 bits at a time and
uses them for four elements.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 2**16
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class FastDropout(nn.Dropout):
    """`nn.Dropout` that takes its masks from `draw_mask` on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0 or input.device.type != "cpu":
            return super().forward(input)
        dropped: Tensor = _Dropped.apply(input, self.p)  # type: ignore[no-untyped-call]
        return dropped


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every `nn.Dropout` in `model` by a `FastDropout` of the same rate."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, FastDropout(child.p))


def keep_share(probability: float) -> float:
    """Return the share of elements that `draw_mask` keeps: 1 - `probability`, rounded to 2^-16."""
    return 1.0 - _threshold(probability) / _LEVELS


def draw_mask(shape: torch.Size, probability: float) -> Tensor:
    """Draw which elements are kept, for `masked` and `mask_`.

    The random numbers come from a NumPy generator that PyTorch's generator seeds. `torch.manual_seed`
    therefore decides the result.

    Args:
        shape: the shape of the result.
        probability: that an element is dropped.

    Returns:
        int16 of `shape` on the CPU: all bits set where an element is kept, none where it is dropped.
    """
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw(-(-shape.numel() // 4))
    levels = torch.from_numpy(words.view(np.int16)[: shape.numel()]).view(shape)
    return levels.ge_(_threshold(probability) - _LEVELS // 2).neg_()


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """Return `values` where `mask` keeps them, and 0 elsewhere."""
    return (_bits(values) & mask).view(values.dtype)


def mask_(values: Tensor, mask: Tensor) -> Tensor:
    """Do what `masked` does in place, and return `values`."""
    _bits(values).bitwise_and_(mask)
    return values


def _bits(values: Tensor) -> Tensor:
    """View `values` as integers, whose operations are several times as fast in bf16."""
    return values.view(_INTEGERS[values.element_size()])


def _threshold(probability: float) -> int:
    return min(round(probability * _LEVELS), _LEVELS - 1)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, probability: float) -> Tensor:
        mask = draw_mask(input.shape, probability)
        ctx.kept = keep_share(probability)
        ctx.save_for_backward(mask)
        return mask_(input / ctx.kept, mask)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return mask_(gradient / ctx.kept, mask), None
