"""Packed execution: the sequences of a micro-batch as one row of tokens, without padding.

An encoder treats tokens one by one everywhere but in attention, so padding can be left out if attention
is told where sequences begin. transformers hands that to an attention function registered under a name
of our own; its models stay as they are. Shapes: W sequences of T tokens as padded, N real tokens in all,
h heads of width d, H an encoder's width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from psy_agents_noaug.models.kernels.dropout import attention_with_dropout

PACKED = "psy_agents_packed"
# Those whose packed and padded results are tested to agree, and their siblings of the same code.
FAMILIES = ("bert", "camembert", "electra", "modernbert", "roberta", "xlm-roberta")
# Positions begin after the padding token's.
_OFFSET_POSITIONS = ("camembert", "roberta", "xlm-roberta")
# On a CPU, oneDNN makes a kernel for every new shape of a product in half precision, which takes longer
# than the product. So packed rows, and what queries attend to, get lengths that come again. Besides,
# AMX multiplies whole tiles (of 16 x 32).
_ROW_MULTIPLE, _SEQUENCE_MULTIPLE = 64, 32
# Of fewer keys than these, SDPA makes less work than padding them.
_FEW_KEYS = 64


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a packed row lie, as the attention function gets it.

    real: int64 `[N]`, each token's place among the W * T padded ones; counts: int64 `[W]`, tokens of
    each sequence; longest: T; first_only: whether the last layer is wanted for first tokens alone.
    """

    real: Tensor
    counts: Tensor
    longest: int
    first_only: bool

    @cached_property
    def bounds(self) -> Tensor:
        """Where sequences begin, and the end of the last: int32 `[W + 1]`."""
        return nn.functional.pad(self.counts.cumsum(0), (1, 0)).to(torch.int32)

    @cached_property
    def groups(self) -> list["_Group"]:
        """Runs of sequences of the same length."""
        return self._groups(1)

    @cached_property
    def recurring_groups(self) -> list["_Group"]:
        """Runs of sequences of about the same length, padded to one that comes again."""
        return self._groups(_SEQUENCE_MULTIPLE)

    def _groups(self, multiple: int) -> list["_Group"]:
        runs = groupby(self.counts.tolist(), key=lambda count: -(-count // multiple) * multiple)
        return [_Group(length, list(run)) for length, run in runs]


@dataclass(frozen=True)
class _Group:
    """Sequences next to each other: the length that they have, or are padded to, and their tokens.

    Shapes: n sequences of L tokens as padded, M real tokens in all.
    """

    length: int
    counts: list[int]

    @property
    def is_padded(self) -> bool:
        return min(self.counts) < self.length

    @cached_property
    def _real(self) -> Tensor:
        """Each token's place among the n * L padded ones: int64 `[M]`."""
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


class _FirstTokens:
    """Shows first tokens alone to what follows the last layer's attention, if no others are used."""

    rows: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return inputs if self.rows is None else tuple(rows[:, self.rows] for rows in inputs)


def can_pack(encoder: nn.Module) -> bool:
    """Whether packed and padded execution of this encoder are known to agree."""
    config: Any = encoder.config
    return config.model_type in FAMILIES and not getattr(config, "is_decoder", False)


def enable_packing(encoder: nn.Module) -> None:
    """Make `run_encoder` run this encoder (a transformers model, not yet adapted) packed."""
    model: Any = encoder
    if is_packed(encoder):
        return
    model.set_attn_implementation(PACKED)
    # ModernBERT's last residual is added where no hook reaches, and its sums grow from layer to layer.
    if model.config.model_type != "modernbert":
        model.embeddings.register_forward_hook(_as_autocast)
        last = model.encoder.layer[-1].attention
        last.self.first_tokens = _FirstTokens()
        last.output.register_forward_pre_hook(last.self.first_tokens)


def _as_autocast(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
    """Cast what the layers add to, for predictions on a CPU: casting in each of them costs a tenth."""
    device = embedded.device.type
    if device != "cpu" or torch.is_grad_enabled() or not torch.is_autocast_enabled(device):
        return embedded
    return embedded.to(torch.get_autocast_dtype(device))


def is_packed(encoder: nn.Module) -> bool:
    """Whether `run_encoder` runs this encoder (perhaps adapted since) packed."""
    config: Any = getattr(encoder, "config", None)
    return getattr(config, "_attn_implementation", None) == PACKED


def run_encoder(
    encoder: nn.Module, inputs: Mapping[str, Tensor], *, first_only: bool = False
) -> Tensor:
    """Return the last hidden state `[W, T, H]` of `inputs` `[W, T]`; of first tokens `[W, 1, H]`.

    `inputs` are `input_ids`, `attention_mask` (padding comes last) and perhaps `token_type_ids`. A
    packed encoder gives float32, and zeros for padding. One thread at a time may run an encoder.
    """
    config: Any = getattr(encoder, "config", None)
    if not is_packed(encoder):
        hidden: Tensor = encoder(**inputs).last_hidden_state
        return hidden[:, :1] if first_only else hidden
    mask = inputs["attention_mask"].bool()
    n_rows, longest = mask.shape
    # On a GPU this waits once for the number of tokens.
    real = mask.flatten().nonzero().squeeze(1)
    packing = Packing(real, mask.sum(dim=1), longest, first_only)
    offset = config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0
    flat = {name: value.flatten()[real] for name, value in inputs.items()}
    flat["position_ids"] = real % longest + offset
    del flat["attention_mask"]
    spare = _spare_tokens(len(real), real.device.type)
    row = {name: nn.functional.pad(value, (0, spare)).unsqueeze(0) for name, value in flat.items()}
    hidden = encoder(**row, packing=packing).last_hidden_state[0].float()
    if first_only:
        first = hidden if len(hidden) == n_rows else hidden[packing.bounds[:-1]]
        return first.unsqueeze(1)
    hidden = hidden[: len(real)]
    padded = hidden.new_zeros(n_rows * longest, hidden.shape[-1]).index_copy(0, real, hidden)
    return padded.view(n_rows, longest, -1)


def _spare_tokens(n_tokens: int, device: str) -> int:
    """How many tokens that nobody looks at a packed row of so many gets."""
    recurs = device == "cpu" and torch.is_autocast_enabled(device)
    return -n_tokens % _ROW_MULTIPLE if recurs else 0


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
    """Attend within each sequence: `[1, h, N, d]` to `[1, N, h, d]`, as transformers calls it.

    `sliding_window` is one more than how far a token sees to either side (ModernBERT's local layers).
    """
    picker = getattr(module, "first_tokens", None)
    if picker is not None:
        picker.rows = packing.bounds[:-1] if packing.first_only else None
    settings = _Attention(
        packing,
        scaling,
        dropout,
        reach=None if sliding_window is None else sliding_window - 1,
        first_only=picker is not None and packing.first_only,
    )
    attend = settings.by_length if query.device.type == "cpu" else settings.on_accelerator
    return attend(query[0], key[0], value[0]).unsqueeze(0), None


class _Attention(NamedTuple):
    """Attention within sequences: queries, keys and values `[h, N, d]` to `[N, h, d]`.

    dropout: of the weights; reach: how far a token sees to either side, None everywhere; first_only:
    whether other results than those of sequences' first tokens may be anything.
    """

    packing: Packing
    scaling: float
    dropout: float
    reach: int | None = None
    first_only: bool = False

    def by_length(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Take runs of sequences of one length together; little is computed for padding."""
        packing, half = self.packing, query.element_size() == 2
        # SDPA's way back in half precision is slow on a CPU, several times so for short sequences.
        own = self.dropout > 0.0 or (half and torch.is_grad_enabled())
        groups = packing.recurring_groups if own and half else packing.groups
        tokens = [sum(group.counts) for group in groups]
        spare = query.shape[1] - sum(tokens)
        queries, keys, values = (
            part.split_with_sizes([*tokens, spare], dim=1)[:-1] for part in (query, key, value)
        )
        if self.first_only:
            firsts = packing.bounds[:-1].long()
            sequences = [len(group.counts) for group in groups]
            queries = query.index_select(1, firsts).split_with_sizes(sequences, dim=1)
        attend = self._own if own else self._of_torch
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

    def _own(self, group: _Group, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention_with_dropout(
            query,
            key,
            value,
            probability=self.dropout,
            scaling=self.scaling,
            allowed=self._near(group.length, query),
            counts=group.counts,
        )

    def _of_torch(self, group: _Group, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        allowed = self._near(group.length, query)
        spare = -group.length % _SEQUENCE_MULTIPLE
        if spare and group.length > _FEW_KEYS and query.element_size() == 2:
            key, value = (nn.functional.pad(part, (0, 0, 0, spare)) for part in (key, value))
            if allowed is None:
                allowed = torch.ones(1, group.length, dtype=torch.bool)
            allowed = nn.functional.pad(allowed, (0, spare))
        return scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, scale=self.scaling
        )

    def on_accelerator(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Flash attention over the packed row; where it does not apply, padded SDPA."""
        if self.dropout > 0.0 or not _has_flash_attention(query):
            return self._padded(query, key, value)
        from torch.nn.attention.varlen import varlen_attn

        packing = self.packing
        q, k, v = (part.transpose(0, 1).contiguous() for part in (query, key, value))
        output = varlen_attn(
            q,
            k,
            v,
            packing.bounds,
            packing.bounds,
            packing.longest,
            packing.longest,
            scale=self.scaling,
            window_size=(-1, -1) if self.reach is None else (self.reach, self.reach),
        )
        assert isinstance(output, Tensor)
        return output

    def _padded(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        packing = self.packing
        n_rows, longest = len(packing.counts), packing.longest
        q, k, v = (
            part.new_zeros(len(part), n_rows * longest, part.shape[-1])
            .index_copy(1, packing.real, part)
            .view(len(part), n_rows, longest, -1)
            .transpose(0, 1)
            for part in (query, key, value)
        )
        places = torch.arange(longest, device=query.device)
        allowed = (places < packing.counts[:, None])[:, None, None, :]
        near = self._near(longest, query)
        if near is not None:
            # Every token sees itself, padding too, as attending to nothing makes NaN.
            allowed = allowed & near | torch.eye(longest, dtype=torch.bool, device=query.device)
        attended = scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, dropout_p=self.dropout, scale=self.scaling
        )
        return attended.transpose(1, 2).flatten(0, 1)[packing.real]

    def _near(self, length: int, like: Tensor) -> Tensor | None:
        """Bool `[length, length]`: whether two places reach each other; None where all do."""
        if self.reach is None or length <= self.reach + 1:
            return None
        places = torch.arange(length, device=like.device)
        return (places[:, None] - places).abs() <= self.reach


def _has_flash_attention(query: Tensor) -> bool:
    """Whether torch's varlen kernel takes these `[h, N, d]`: half precision, Ampere or newer."""
    width = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and width % 8 == 0
        and width <= 256
    )


AttentionInterface.register(PACKED, _packed_attention)
