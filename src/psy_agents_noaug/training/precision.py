"""Mixed precision: autocast and, for fp16, gradient scaling."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from psy_agents_noaug.errors import ConfigError


class Precision:
    """What to compute in; weights stay fp32.

    mode: `off`, `bf16`, `fp16`, or `auto`: bf16 where the hardware is fast at it, else fp16 on CUDA,
    else off. `reason` says why in words.

    Raises:
        ConfigError: fp16 on a device without fp16 arithmetic worth the name.
    """

    def __init__(
        self, mode: str, *, device: torch.device, supports_bf16: bool, supports_fp16: bool
    ) -> None:
        self.mode, self.reason = mode, "as configured"
        if mode == "auto":
            self.mode = "bf16" if supports_bf16 else "fp16" if supports_fp16 else "off"
            self.reason = {
                "bf16": "the hardware has fast bf16",
                "fp16": "the GPU has fp16 but no bf16",
                "off": "the hardware has neither fast bf16 nor fp16",
            }[self.mode]
        if self.mode == "fp16" and not supports_fp16:
            raise ConfigError(
                "`training.amp=fp16` needs a CUDA device; use `training.amp=auto` or `off` here."
            )
        if self.mode == "bf16" and not supports_bf16:
            self.reason = "as configured; slow, this hardware has no bf16 units"
        self._device = device
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.mode)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.mode == "fp16")

    @property
    def skips_overflow(self) -> bool:
        """Whether an infinite gradient is answered with a smaller scale rather than an error."""
        return self._scaler.is_enabled()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for forward passes with the same weights, which casts trained ones once."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Backpropagate `loss`, scaled where fp16 needs it, within `autocast` or not."""
        with torch.autocast(self._device.type, enabled=False):
            torch.autograd.backward(self._scaler.scale(loss))

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients back to the loss's scale, before clipping."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Update the weights; with fp16 an overflow skips that and lowers the scale.

        Return whether the weights were updated.
        """
        scale = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        return not self.skips_overflow or self._scaler.get_scale() >= scale

    @property
    def has_collapsed(self) -> bool:
        """Whether gradients stayed infinite however small fp16 made the loss: they are really so."""
        return self.skips_overflow and self._scaler.get_scale() < 1.0

    def state_dict(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self._scaler.load_state_dict(state)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element of any tensor is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
