"""Predictions that do not depend on their batch-mates, to the bit, on a CPU.

There the rounding of a row depends on the shape of the whole tensor in two places: a product of a few
rows takes another routine than one of many, and the last elements of an elementwise function that do
not fill a vector register take another one than the others. So rows go in blocks of one size, and
elements are filled up. The products of an encoder have enough rows that no difference was found.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

_BLOCK = 64  # rows, and elements: a multiple of what a vector register holds


def in_blocks(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Return `function(rows)`, where a row `[..., H]` depends on itself alone.

    Args:
        function: maps `[R, H]` to `[R, K]`, row by row.
        rows: `[..., H]`.
    """
    if not _is_shape_dependent(rows):
        return function(rows)
    flat = rows.reshape(-1, rows.shape[-1])
    filled = pad(flat, (0, 0, 0, -len(flat) % _BLOCK))
    found = torch.cat([function(block) for block in torch.split(filled, _BLOCK)])
    return found[: len(flat)].view(*rows.shape[:-1], -1)


def elementwise(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Return `function(values)` of an elementwise function, where an element depends on itself alone."""
    if not _is_shape_dependent(values):
        return function(values)
    flat = values.flatten()
    found = function(pad(flat, (0, -len(flat) % _BLOCK), value=1.0))
    return found[: len(flat)].view_as(values)


def _is_shape_dependent(values: Tensor) -> bool:
    # The graphs of `torch.compile` and of exports are of any number of rows.
    return values.device.type == "cpu" and not torch.compiler.is_compiling()
