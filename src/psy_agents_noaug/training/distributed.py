"""Data-parallel training: the same calls for one process and for several.

`torchrun` and `accelerate launch` start the processes and tell each its place in environment variables.
Which examples a process gets, and in which order, is decided in `batching`.
"""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from psy_agents_noaug.errors import ConfigError

T = TypeVar("T")


class DistributedContext:
    """This process and the others of its training.

    One process needs no process group. Several join one with their first training; later trainings of
    the same processes use it again.

    Attributes:
        rank: the number of this process, from 0.
        count: the number of processes.
        device: where this process computes; with several on CUDA, the GPU of its `LOCAL_RANK`.

    Args:
        device: the configured device; with several processes, its type is what counts.

    Raises:
        ConfigError: the processes cannot connect, or cannot share work on this type of device.
    """

    def __init__(self, *, device: torch.device) -> None:
        self.rank = 0
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = device
        if self.count > 1:
            self.device = _join_process_group(device, count=self.count)
            self.rank = dist.get_rank()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Move `model` to this process's device and average its gradients over all processes."""
        model.to(self.device)
        if self.count == 1:
            return model
        wrapped = DistributedDataParallel(
            model, device_ids=None if self.device.type == "cpu" else [self.device]
        )
        # Buffers are equal everywhere and never change. The argument of this name is deprecated, and
        # its successor is unknown to torch before 2.13.
        wrapped.broadcast_buffers = False
        return wrapped

    def without_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which backward passes add up gradients without averaging them."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy a batch to this process's device."""
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes."""
        if self.count == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: T) -> list[T]:
        """Return the `value` of every process, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: T) -> T:
        """Return the main process's `value` in every process."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            dist.barrier()


def _join_process_group(device: torch.device, *, count: int) -> torch.device:
    """Connect this process to the others unless it is connected, and return its own device."""
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"{count} processes cannot train together on {device.type}; set `training.device=cpu`, "
            "or start one process."
        )
    own = None
    try:
        if device.type == "cuda":
            own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(own)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if own else "gloo", device_id=own)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The {count} processes of this training cannot connect: {error}\nStart them with "
            "`torchrun`, not more on a machine than it has GPUs, or set `training.device=cpu`."
        ) from error
    if own is None and dist.get_backend() == "nccl":
        raise ConfigError(
            "These processes are connected over NCCL, which needs GPUs: set `training.device=cuda`, "
            "or use the CPU in processes started anew."
        )
    return own or device
