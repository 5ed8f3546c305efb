"""Tensors on a device, and their values on the host.

To read a tensor of a GPU, the host waits until the GPU has done all that it was asked to do before. What
came from the host can be read there.
"""

import torch
from torch import Tensor


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to `device` without waiting. The copy remembers what it is a copy of.

    Neither of them may be changed in place.
    """
    moved = value.to(device, non_blocking=True)
    if moved is not value:
        moved.host_copy = value  # type: ignore[attr-defined]
    return moved


def on_host(value: Tensor) -> Tensor:
    """Return the values of a tensor on the host; at once if `to_device` has copied it from there."""
    if value.device.type == "cpu":
        return value
    copied: Tensor | None = getattr(value, "host_copy", None)
    return value.cpu() if copied is None else copied
