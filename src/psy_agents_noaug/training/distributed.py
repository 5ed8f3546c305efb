"""Data-parallel training: the same calls for one process and for several.

`torchrun` and `accelerate launch` start the processes and tell each its place in environment variables.
Which examples a process gets, and in which order, is decided in `batching`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from psy_agents_noaug.errors import ConfigError, OtherProcessError, PsyAgentsError
from psy_agents_noaug.utils.host import to_device
from psy_agents_noaug.utils.out_of_memory import is_out_of_memory

T = TypeVar("T")

# Gradients are summed in so many parts at a time. On two CPU processes this takes a tenth more time
# than DistributedDataParallel; one part takes half as much again.
_N_PARTS = 4


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
        # A cluster may set WORLD_SIZE for its own use; a launcher sets RANK too.
        self.count = int(os.environ.get("WORLD_SIZE") or "1") if os.environ.get("RANK") else 1
        self.device = device
        if self.count > 1:
            self.device = _join_process_group(device, count=self.count)
            self.rank = dist.get_rank()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def place(self, model: nn.Module) -> None:
        """Move `model` to this process's device, with the main process's weights everywhere."""
        with self.shared_errors():
            model.to(self.device)
        if self.count > 1:
            with _lost_processes_named():
                for tensor in model.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy a batch to this process's device, without waiting; see `utils.host`."""
        return {name: to_device(value, self.device) for name, value in batch.items()}

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes."""
        if self.count == 1:
            return values
        total = values.clone()
        with _lost_processes_named():
            dist.all_reduce(total)
        return total

    def any(self, condition: bool) -> bool:
        """Return whether `condition` holds in any process."""
        if self.count == 1:
            return condition
        return bool(self.sum(torch.tensor(float(condition), device=self.device)) > 0)

    def sum_gradients(self, flat: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes.

        `DistributedDataParallel` would sum while the backward pass runs, but it regroups the gradients
        after its first update. From three processes on, the last bit of a sum depends on its place in
        the group, so that a resumed run would differ from one that was not stopped. It also leaves the
        other processes waiting when one fails in its backward pass.

        Args:
            flat: from `flat_gradients`, with several processes.
            parameters: the same as there.
        """
        with _lost_processes_named():
            for work in [dist.all_reduce(part, async_op=True) for part in flat.chunk(_N_PARTS)]:
                work.wait()
        has_gradient = flat[-len(parameters) :].tolist()
        place = 0
        for parameter, n_processes in zip(parameters, has_gradient, strict=True):
            total = flat[place : place + parameter.numel()]
            parameter.grad = total.view_as(parameter) if n_processes > 0 else None
            place += parameter.numel()

    @contextmanager
    def shared_errors(self) -> Iterator[None]:
        """Make an error of one process in this context an error of all of them, instead of a wait.

        The processes must not exchange anything within.

        Raises:
            PsyAgentsError: of another process, as it is there.
            OtherProcessError: another process failed otherwise.
        """
        if self.count == 1:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001  (raised below)
            own = error
        # A signal or an exit ends this process, which the others notice by themselves.
        if not self.any(own is not None):
            return
        errors = self.gather(_sendable(own, rank=self.rank))
        found = [error for error in errors if error is not None]
        mine = found[0] if own is None else own
        if isinstance(mine, PsyAgentsError):
            mine.is_shown_elsewhere = not self.is_main and str(mine) == str(found[0])
        raise mine

    def gather(self, value: T) -> list[T]:
        """Return the `value` of every process, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _lost_processes_named():
            dist.all_gather_object(values, value)
        return values

    def from_main(self, value: T) -> T:
        """Return the main process's `value` in every process."""
        if self.count == 1:
            return value
        values = [value]
        with _lost_processes_named():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            with _lost_processes_named():
                dist.barrier()


def flat_gradients(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return all gradients in one tensor, for `DistributedContext.sum_gradients`.

    It ends with a 1 for each parameter that has a gradient and a 0 for each that has none.
    """
    gradients = [
        (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters
    ]
    has_gradient = gradients[0].new_tensor([p.grad is not None for p in parameters])
    return torch.cat([*gradients, has_gradient])


@contextmanager
def _lost_processes_named() -> Iterator[None]:
    """Say what it means when an exchange with the other processes fails."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise OtherProcessError(
            f"Another process of this training has ended, or the connection to it is lost: {error}\n"
            "Its own output may say why. Start all processes again with resume=auto."
        ) from error


def _sendable(error: Exception | None, *, rank: int) -> PsyAgentsError | None:
    """Return what other processes raise. They cannot build any exception, nor should they."""
    if error is None or isinstance(error, PsyAgentsError):
        return error
    return OtherProcessError(
        f"Process {rank} of this training failed with {type(error).__name__}; its own output says why."
    )


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
