"""One process or several: the same calls either way.

`accelerate` places the model, wraps it for data-parallel training and gathers; batches and their order
stay ours, so that a run is the same update for update whatever the number of processes.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor, nn

from psy_agents_noaug.errors import ConfigError

T = TypeVar("T")
_SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


class DistributedContext:
    """The processes of this run, and this one's place among them.

    rank, count: this process and how many there are; `is_main` writes the files.
    """

    def __init__(self, *, device: torch.device) -> None:
        self._accelerator = Accelerator(
            mixed_precision="no",
            cpu=device.type == "cpu",
            # Buffers never change here, and evaluation batches differ between processes.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        if self._accelerator.distributed_type not in _SUPPORTED:
            raise ConfigError(
                f"`accelerate launch` was asked for {self._accelerator.distributed_type.value}, but "
                "only data-parallel training is supported: use --multi_gpu, or torchrun."
            )
        self.device = device if self.count == 1 else self._accelerator.device

    @property
    def rank(self) -> int:
        return int(self._accelerator.process_index)

    @property
    def count(self) -> int:
        return int(self._accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Move `model` to this process's device and average its gradients over all processes."""
        model.to(self.device)
        if self.count == 1:
            return model
        wrapped: nn.Module = self._accelerator.prepare_model(model)
        return wrapped

    def without_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which gradients add up here without being exchanged."""
        context: AbstractContextManager[Any] = self._accelerator.no_sync(model)
        return context

    def to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy a batch to this process's device."""
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def sum(self, values: Tensor) -> Tensor:
        """Add `values` up over all processes."""
        if self.count == 1:
            return values
        summed: Tensor = self._accelerator.reduce(values, reduction="sum")
        return summed

    def gather(self, value: T) -> list[T]:
        """Return every process's `value`, in the order of their ranks."""
        return [value] if self.count == 1 else list(gather_object([value]))

    def from_main(self, value: T) -> T:
        """Return the main process's `value` everywhere."""
        if self.count == 1:
            return value
        shared: list[T] = broadcast_object_list([value])
        return shared[0]

    def wait(self) -> None:
        """Wait until every process is here."""
        self._accelerator.wait_for_everyone()
