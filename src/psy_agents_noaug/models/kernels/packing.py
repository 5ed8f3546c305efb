"""Packed execution: the sequences of a micro-batch as one row of tokens, without padding.

An encoder treats each token alone everywhere but in attention. Without padding it therefore needs only
an attention function that knows where the sequences begin. transformers calls the one registered here;
its models stay as they are. Shapes: W sequences of T tokens when padded, N tokens without padding, h
heads of width d, H the width of the encoder.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from psy_agents_noaug.models.kernels.attention import PackedAttention, Packing
from psy_agents_noaug.utils.host import on_host

PACKED_ATTENTION = "psy_agents_packed"
# Packed and padded results are tested to agree for bert, electra, modernbert and roberta; the others
# run roberta's code.
FAMILIES = ("bert", "camembert", "electra", "modernbert", "roberta", "xlm-roberta")
# Families whose positions begin after the padding token's id.
_OFFSET_POSITIONS = ("camembert", "roberta", "xlm-roberta")
# In half precision on a CPU, rows are padded to multiples of this, so that shapes recur.
_ROW_MULTIPLE = 64


class _FirstTokens:
    """A hook after the last layer's attention that drops all tokens but the first of each sequence.

    `rows` are the places of the first tokens, int32 `[W]`; None keeps every token.
    """

    rows: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return inputs if self.rows is None else tuple(rows[:, self.rows] for rows in inputs)


def can_pack(encoder: nn.Module) -> bool:
    """Whether packed and padded execution of this encoder are known to agree."""
    config: Any = encoder.config
    return config.model_type in FAMILIES and not getattr(config, "is_decoder", False)


def prepare(encoder: nn.Module) -> None:
    """Give a transformers model, before adapters are added, what `run_packed` needs. Call it once."""
    model: Any = encoder
    model.set_attn_implementation(PACKED_ATTENTION)
    # ModernBERT adds its last residual where no hook reaches. Its residual sums also grow from layer to
    # layer, so that they need more digits than bf16 has.
    if model.config.model_type != "modernbert":
        model.embeddings.register_forward_hook(_as_autocast)
        last = model.encoder.layer[-1].attention
        last.self.first_tokens = _FirstTokens()
        last.output.register_forward_pre_hook(last.self.first_tokens)


def run_packed(
    encoder: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    first_only: bool,
    lengths: Tensor | None = None,
) -> Tensor:
    """Run a prepared encoder, with or without adapters, packed. One thread at a time may do so.

    The host need not wait for the device, if it knows the lengths.

    Args:
        encoder: the encoder.
        inputs: `[W, T]`: `input_ids`, `attention_mask` (padding at the end), maybe `token_type_ids`.
        first_only: whether only first tokens are wanted.
        lengths: int64 `[W]`, on the host: the tokens of each row; None: `attention_mask` says it.

    Returns:
        The last hidden state, float32: `[W, T, H]`, 0 for padding; with `first_only` `[W, 1, H]`.
    """
    config: Any = encoder.config
    mask = inputs["attention_mask"]
    n_rows, width = mask.shape
    if lengths is None:
        lengths = on_host(mask).sum(dim=1)
    packing = Packing(lengths, width, mask.device, first_only)
    real = packing.real
    offset = config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0
    flat = {name: value.flatten()[real] for name, value in inputs.items()}
    flat["position_ids"] = real % width + offset
    del flat["attention_mask"]
    spare = _spare_tokens(len(real), real.device.type)
    row = {name: nn.functional.pad(value, (0, spare)).unsqueeze(0) for name, value in flat.items()}
    hidden: Tensor = encoder(**row, packing=packing).last_hidden_state[0].float()
    if first_only:
        first = hidden if len(hidden) == n_rows else hidden[packing.bounds[:-1]]
        return first.unsqueeze(1)
    hidden = hidden[: len(real)]
    padded = hidden.new_zeros(n_rows * width, hidden.shape[-1]).index_copy(0, real, hidden)
    return padded.view(n_rows, width, -1)


def _spare_tokens(n_tokens: int, device: str) -> int:
    """How many tokens are appended to a packed row of `n_tokens`; their results are not used."""
    recurs = device == "cpu" and torch.is_autocast_enabled(device)
    return -n_tokens % _ROW_MULTIPLE if recurs else 0


def _as_autocast(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
    """Cast the embeddings to autocast's dtype, for predictions on a CPU.

    The layers then add in that dtype. Casting within each of them takes a tenth of the time.
    """
    device = embedded.device.type
    if device != "cpu" or torch.is_grad_enabled() or not torch.is_autocast_enabled(device):
        return embedded
    return embedded.to(torch.get_autocast_dtype(device))


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend within each sequence, with the arguments that transformers passes.

    Args:
        module: the layer's attention module.
        query, key, value: `[1, h, N, d]`.
        attention_mask: not used, since there is no padding.
        packing: where the sequences lie.
        scaling: factor of the scores.
        dropout: probability that a weight is dropped.
        sliding_window: in ModernBERT's local layers, 1 more than how many tokens a token sees to either
            side.

    Returns:
        `[1, N, h, d]`, and no weights.
    """
    picker = getattr(module, "first_tokens", None)
    if picker is not None:
        picker.rows = packing.bounds[:-1] if packing.first_only else None
    attention = PackedAttention(
        packing,
        scaling,
        dropout,
        reach=None if sliding_window is None else sliding_window - 1,
        first_only=picker is not None and packing.first_only,
    )
    attend = attention.on_cpu if query.device.type == "cpu" else attention.on_accelerator
    return attend(query[0], key[0], value[0]).unsqueeze(0), None


AttentionInterface.register(PACKED_ATTENTION, _packed_attention)
