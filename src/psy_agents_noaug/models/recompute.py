"""Activations that are not kept, but computed again going backward (Chen et al. 2016).

Dropout must draw the same masks again. PyTorch sees to that on CPUs and on CUDA, there on the devices of
the tensors that it is given; elsewhere (MPS) it does not, and this module does.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from psy_agents_noaug.errors import ConfigError


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return `function(*tensors)`, whose activations are computed again going backward.

    Args:
        function: may use modules on the device of `tensors`, but no tensors of its own.
        tensors: at least one, on the device whose random numbers `function` draws.
    """
    device = tensors[0].device
    contexts = noop_context_fn if generator_of(device) is None else partial(_contexts, device)
    result: Tensor = checkpoint(function, *tensors, use_reentrant=False, context_fn=contexts)
    return result


def recompute_activations(encoder: nn.Module, *, is_compiled: bool = False) -> None:
    """Keep no activations inside the layers of a transformers model.

    Args:
        encoder: the model.
        is_compiled: whether it is compiled, where PyTorch has its own way to draw the same numbers.

    Raises:
        ConfigError: the encoder's code does not support it.
    """
    # The older name is deprecated since transformers 5.23; earlier ones have it alone.
    enable: Any = getattr(encoder, "activation_checkpointing_enable", None) or getattr(
        encoder, "gradient_checkpointing_enable", None
    )
    options: dict[str, Any] = {"use_reentrant": False}
    if not is_compiled:
        # The device is known when the encoder runs.
        options["context_fn"] = lambda: _contexts(next(encoder.parameters()).device)
    try:
        enable(options)
    except ValueError as error:
        raise ConfigError(
            f"`training.gradient_checkpointing` does not fit the encoder: {error}"
        ) from error


def generator_of(device: torch.device) -> Any:
    """Return what has `get_rng_state` and `set_rng_state`; None where PyTorch restores the state."""
    return None if device.type in ("cpu", "cuda") else torch.get_device_module(device)


def _contexts(
    device: torch.device,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the forward pass, which begins now, and of its repetition."""
    generator = generator_of(device)
    if generator is None:
        return nullcontext(), nullcontext()
    return nullcontext(), _drawing_from(generator, generator.get_rng_state())


@contextmanager
def _drawing_from(generator: Any, state: Tensor) -> Iterator[None]:
    now = generator.get_rng_state()
    generator.set_rng_state(state)
    try:
        yield
    finally:
        generator.set_rng_state(now)
