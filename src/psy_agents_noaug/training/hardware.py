"""The hardware of the loops, and the batch sizes that suit it."""

from dataclasses import dataclass
from typing import Any

from psy_agents_noaug.training.distributed import DistributedContext
from psy_agents_noaug.training.precision import Precision

# Tokens per batch.
# A CPU is as fast with small batches as with large ones; small ones need less memory and less padding.
_CPU_TOKENS = 1024
# With bf16 the cast of the weights for each batch takes a noticeable share of the time.
_CPU_BF16_TOKENS = 4096
_GPU_TOKENS = 16384
# Without gradients, only the activations of one layer are held.
_GPU_EVAL_TOKENS = 65536
# Of one example with many windows on a CPU; a longer one is encoded twice to save memory.
_CPU_TOKENS_HELD = 4096


@dataclass(frozen=True)
class Hardware:
    """The processes of a run, their precision, and how batches are cut and loaded.

    Token budgets count padding, unless the encoders run packed.

    Args:
        distributed: the processes; `distributed.device` is the device of this one.
        precision: of the forward passes.
        loader_options: keyword arguments of `DataLoader`.
        configured_tokens: `training.micro_batch_tokens`.
    """

    distributed: DistributedContext
    precision: Precision
    loader_options: dict[str, Any]
    configured_tokens: int | None

    @property
    def max_tokens_held(self) -> int:
        """Maximum tokens of one example whose activations are held at once."""
        if self.configured_tokens is not None:
            return self.configured_tokens
        return _CPU_TOKENS_HELD if self.distributed.device.type == "cpu" else _GPU_TOKENS

    def micro_batch_tokens(self, *, packed: bool) -> int:
        """Return the maximum tokens of a micro-batch."""
        if self.configured_tokens is not None:
            return self.configured_tokens
        if self.distributed.device.type != "cpu":
            return _GPU_TOKENS
        return _CPU_BF16_TOKENS if packed and self.precision.mode == "bf16" else _CPU_TOKENS

    def eval_tokens(self, *, packed: bool) -> int:
        """Return the maximum tokens of a batch in an evaluation."""
        if self.configured_tokens is None and self.distributed.device.type == "cuda":
            return _GPU_EVAL_TOKENS
        return self.micro_batch_tokens(packed=packed)
