"""Mixed precision: autocast and, for fp16, gradient scaling."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from psy_agents_noaug.errors import ConfigError


class Precision:
    """The number format of forward and backward passes. Weights stay fp32.

    Args:
        mode: `off`, `bf16`, `fp16` or `auto`: bf16 if the hardware has fast bf16, else off. fp16, which
            needs a loss scale and may skip updates, is never chosen by itself.
        device: of the computation.
        supports_bf16: whether the hardware has fast bf16.
        supports_fp16: whether the hardware has fast fp16.

    Attributes:
        mode: `off`, `bf16` or `fp16`.
        reason: why this mode was chosen, in words.
        skipped_updates: number of updates that were skipped because an fp16 gradient overflowed.

    Raises:
        ConfigError: `fp16` on a device without fast fp16.
    """

    def __init__(
        self, mode: str, *, device: torch.device, supports_bf16: bool, supports_fp16: bool
    ) -> None:
        self.mode, self.reason = mode, "as configured"
        if mode == "auto":
            self.mode = "bf16" if supports_bf16 else "off"
            self.reason = f"the hardware has {'' if supports_bf16 else 'no '}fast bf16"
            if supports_fp16 and not supports_bf16:
                self.reason += "; `training.amp=fp16` is faster on it"
        if self.mode == "fp16" and not supports_fp16:
            raise ConfigError(
                "`training.amp=fp16` needs a CUDA device; use `training.amp=auto` or `off` here."
            )
        if self.mode == "bf16" and not supports_bf16:
            self.reason = "as configured; slow, this hardware has no bf16 units"
        self.skipped_updates = 0
        self._device = device
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.mode)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.mode == "fp16")
        # Kept, because the host waits for the GPU each time that it asks for it.
        self._scale = self._scaler.get_scale()

    @property
    def skips_overflow(self) -> bool:
        """Whether an infinite gradient lowers the loss scale and skips the update, without an error."""
        return self._scaler.is_enabled()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for forward passes with the same weights; weights are cast once in it."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Backpropagate `loss`, scaled for fp16. May be called within `autocast`."""
        with torch.autocast(self._device.type, enabled=False):
            torch.autograd.backward(self._scaler.scale(loss))

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the loss scale, before clipping."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Update the weights and return whether they changed.

        With fp16, a gradient that overflows skips the update and lowers the loss scale.
        """
        self._scaler.step(optimizer)
        self._scaler.update()
        if not self.skips_overflow:
            return True
        before, self._scale = self._scale, self._scaler.get_scale()
        was_made = self._scale >= before
        self.skipped_updates += not was_made
        return was_made

    @property
    def has_collapsed(self) -> bool:
        """Whether the loss scale is so small that fp16 cannot be the cause of infinite gradients."""
        return self.skips_overflow and self._scale < 1.0

    def state_dict(self) -> dict[str, Any]:
        state = self._scaler.state_dict()
        return {**state, "skipped_updates": self.skipped_updates} if state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            # Checkpoints of version 0.2 and earlier lack it.
            self.skipped_updates = state.get("skipped_updates", 0)
            self._scaler.load_state_dict(state)
            self._scale = self._scaler.get_scale()


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element of any tensor is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
