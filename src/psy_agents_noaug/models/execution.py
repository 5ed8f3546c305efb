"""How an encoder runs: padded, or packed where that is possible.

The folder `models/kernels` holds the fast paths and is optional. Only this module imports it. Without it
every encoder runs padded, and dropout is PyTorch's own.
"""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn


def kernels_installed() -> bool:
    """Whether `models/kernels` is there."""
    spec = find_spec("psy_agents_noaug.models.kernels")
    # A folder without `__init__.py` (old bytecode, for example) has no origin.
    return spec is not None and spec.origin is not None


def packing_obstacle(encoders: Iterable[nn.Module]) -> str | None:
    """Return why these encoders cannot run packed, or None if they can."""
    if not kernels_installed():
        return "models/kernels is not installed"
    from psy_agents_noaug.models.kernels.packing import FAMILIES, can_pack

    others = sorted({_family(encoder) for encoder in encoders if not can_pack(encoder)})
    return f"{', '.join(others)} cannot be packed; {', '.join(FAMILIES)} can" if others else None


def enable_packing(encoder: nn.Module) -> None:
    """Make `run_encoder` run `encoder` packed.

    Args:
        encoder: a transformers model without `packing_obstacle`, before adapters are added.
    """
    from psy_agents_noaug.models.kernels.packing import prepare, run_packed

    if is_packed(encoder):
        return
    prepare(encoder)
    model: Any = encoder
    model.run_packed = run_packed


def is_packed(encoder: nn.Module) -> bool:
    """Whether `run_encoder` runs `encoder` packed. Adapters pass the attribute on."""
    return hasattr(encoder, "run_packed")


def run_encoder(
    encoder: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    first_only: bool = False,
    lengths: Tensor | None = None,
) -> Tensor:
    """Run an encoder on a padded batch; one thread at a time may do so.

    Args:
        encoder: a transformers model, with or without adapters.
        inputs: `[W, T]`: `input_ids`, `attention_mask` (padding at the end), maybe `token_type_ids`.
        first_only: return the first token of each sequence only.
        lengths: int64 `[W]`, on the host: the tokens of each row. None: `attention_mask` says it, and if
            no `to_device` copied it, the host waits for the device.

    Returns:
        The last hidden state `[W, T, H]`, or `[W, 1, H]`. A packed encoder gives float32, and 0 for
        padding.
    """
    if is_packed(encoder):
        model: Any = encoder
        packed: Tensor = model.run_packed(encoder, inputs, first_only=first_only, lengths=lengths)
        return packed
    hidden: Tensor = encoder(**inputs).last_hidden_state
    return hidden[:, :1] if first_only else hidden


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every dropout of `model` by one that is faster on a CPU, if `models/kernels` is there.

    Its masks differ from those that PyTorch draws with the same seed.
    """
    if not kernels_installed():
        return
    from psy_agents_noaug.models.kernels import dropout

    dropout.use_fast_dropout(model)


def _family(encoder: nn.Module) -> str:
    config: Any = encoder.config
    return str(config.model_type)
