"""Attention within the sequences of a packed row, by the kernels for CUDA GPUs that PyTorch has.

Shapes: a row of N tokens holds W sequences of at most T tokens; h heads of width d.

PyTorch's public function for it, `varlen_attn`, drops no weights and takes half precision alone. What
lies below it can do more, so this module, and no other, calls operators of PyTorch with private names.
Their arguments are given by name, and tried on tensors without data before the first use: where they
have changed, attention is padded instead.
"""

from functools import cache
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["flash", "memory_efficient", "padded"]

_AMPERE = (8, 0)
# Heads that are wider need more shared memory for the backward pass than some GPUs have.
_WIDEST_FLASH_HEAD = 192
# Both kernels read 16 bytes at a time.
_WIDTH_MULTIPLE = 8


def choose_kernel(
    *,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    width: int,
    has_window: bool,
    has_dropout: bool,
    has_operators: bool,
) -> Kernel:
    """Return which kernel attends within the sequences of a packed row.

    With `torch.use_deterministic_algorithms(True)` each of them gives the same bits every time. With
    `warn_only`, PyTorch lets each of them differ in the backward pass and warns.

    Args:
        capability: the GPU's compute capability; None for another device.
        dtype: of queries, keys and values.
        width: d.
        has_window: whether a token attends to its neighbourhood only.
        has_dropout: whether weights are dropped.
        has_operators: whether the operators of this module can be called.
    """
    if capability is None or width % _WIDTH_MULTIPLE > 0:
        return "padded"
    is_half = dtype in (torch.float16, torch.bfloat16)
    if is_half and capability >= _AMPERE and width <= _WIDEST_FLASH_HEAD:
        return "flash" if has_operators or not has_dropout else "padded"
    if not has_operators or has_window:
        return "padded"
    is_known = dtype in (torch.float32, torch.float16) or (
        dtype == torch.bfloat16 and capability >= _AMPERE
    )
    return "memory_efficient" if is_known else "padded"


def kernel_for(query: Tensor, *, has_window: bool, has_dropout: bool) -> Kernel:
    """Return `choose_kernel` for queries `[..., d]`."""
    is_cuda = query.device.type == "cuda"
    return choose_kernel(
        capability=torch.cuda.get_device_capability(query.device) if is_cuda else None,
        dtype=query.dtype,
        width=query.shape[-1],
        has_window=has_window,
        has_dropout=has_dropout,
        has_operators=has_operators(),
    )


@cache
def has_operators() -> bool:
    """Whether this PyTorch has the operators of this module, with the arguments that they get here."""
    if torch.version.hip is not None:  # AMD's are others.
        return False
    rows = torch.empty(3, 1, _WIDTH_MULTIPLE, dtype=torch.float16, device="meta")
    bounds = torch.empty(3, dtype=torch.int32, device="meta")
    settings = {"bounds": bounds, "longest": 2, "scaling": 1.0, "dropout": 0.5}
    try:
        outputs = [
            flash(rows, rows, rows, reach=1, **settings),  # type: ignore[arg-type]
            memory_efficient(rows, rows, rows, **settings),  # type: ignore[arg-type]
        ]
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all((one.shape, one.dtype) == (rows.shape, rows.dtype) for one in outputs)


def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bounds: Tensor,
    longest: int,
    scaling: float,
    dropout: float,
    reach: int | None,
) -> Tensor:
    """Flash attention (Dao 2023).

    Args:
        query, key, value: `[N, h, d]`.
        bounds: where each sequence begins, and the end of the last: int32 `[W + 1]`.
        longest: T.
        scaling: factor of the scores.
        dropout: probability that a weight is dropped.
        reach: how many tokens to either side a token attends to; None: all of its sequence.

    Returns:
        `[N, h, d]`.
    """
    side = -1 if reach is None else reach
    if dropout == 0.0:
        from torch.nn.attention.varlen import varlen_attn

        attended = varlen_attn(
            query,
            key,
            value,
            bounds,
            bounds,
            longest,
            longest,
            scale=scaling,
            window_size=(side, side),
        )
        assert isinstance(attended, Tensor)
        return attended
    output: Tensor = torch.ops.aten._flash_attention_forward.default(
        query=query,
        key=key,
        value=value,
        cum_seq_q=bounds,
        cum_seq_k=bounds,
        max_q=longest,
        max_k=longest,
        dropout_p=dropout,
        is_causal=False,
        return_debug_mask=False,
        scale=scaling,
        window_size_left=side,
        window_size_right=side,
    )[0]
    return output


def memory_efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bounds: Tensor,
    longest: int,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Memory-efficient attention (Rabe and Staats 2021), with the arguments of `flash`."""
    needs_gradient = torch.is_grad_enabled() and any(
        part.requires_grad for part in (query, key, value)
    )
    output: Tensor = torch.ops.aten._efficient_attention_forward.default(
        query=query.unsqueeze(0),
        key=key.unsqueeze(0),
        value=value.unsqueeze(0),
        bias=None,
        cu_seqlens_q=bounds,
        cu_seqlens_k=bounds,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        dropout_p=dropout,
        custom_mask_type=0,  # none
        compute_log_sumexp=needs_gradient,
        scale=scaling,
    )[0]
    return output.squeeze(0)
