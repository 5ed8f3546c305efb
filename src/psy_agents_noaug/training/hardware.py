"""What the loops compute on, and how they cut and load batches for it."""

from dataclasses import dataclass
from typing import Any

from psy_agents_noaug.training.distributed import DistributedContext
from psy_agents_noaug.training.precision import Precision

# A CPU computes small batches as fast as large ones, in less memory, and padded ones have less padding.
_ON_A_CPU = 1024
# Packed batches have none, and bf16 products are so fast that the casts of each batch count.
_ON_A_CPU_IN_BF16 = 4096
_ON_A_GPU = 16384
# Without gradients only one layer's activations are held.
_EVAL_ON_A_GPU = 65536
# Of one example of many windows, which would be encoded twice beyond this.
_MAX_TOKENS_HELD = 4096


@dataclass(frozen=True)
class Hardware:
    """The processes of the run, what they compute in, and how batches are cut and loaded.

    Padding counts against all token budgets, unless the encoders run packed.

    Args:
        distributed: the processes; `distributed.device` is this one's device.
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
        """Tokens of one example whose activations are held at once."""
        if self.configured_tokens is not None:
            return self.configured_tokens
        return _MAX_TOKENS_HELD if self.distributed.device.type == "cpu" else _ON_A_GPU

    def micro_batch_tokens(self, *, packed: bool) -> int:
        """Tokens of a micro-batch."""
        if self.configured_tokens is not None:
            return self.configured_tokens
        if self.distributed.device.type != "cpu":
            return _ON_A_GPU
        return _ON_A_CPU_IN_BF16 if packed and self.precision.mode == "bf16" else _ON_A_CPU

    def eval_tokens(self, *, packed: bool) -> int:
        """Tokens of a batch that is only predicted."""
        if self.configured_tokens is None and self.distributed.device.type == "cuda":
            return _EVAL_ON_A_GPU
        return self.micro_batch_tokens(packed=packed)
