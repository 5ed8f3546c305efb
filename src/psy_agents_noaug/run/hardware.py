"""The hardware, as a configuration wants it used."""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.training.distributed import DistributedContext
from psy_agents_noaug.training.precision import Precision
from psy_agents_noaug.utils.memory import keep_freed_memory
from psy_agents_noaug.utils.reproducibility import (
    get_device,
    get_optimal_dataloader_kwargs,
    set_seed,
    set_tf32,
)

# A CPU computes small batches as fast as large ones, in less memory, and padded ones have less padding.
_ON_A_CPU = 1024
# Packed ones have none, and bf16 products are so fast that what each batch casts anew counts.
_ON_A_CPU_IN_BF16 = 4096
_ON_A_GPU = 16384
# Without gradients only one layer's activations are held.
_EVAL_ON_A_GPU = 65536
# Of one example of many windows, which would be encoded twice beyond this.
_MAX_TOKENS_HELD = 4096

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hardware:
    """The processes of the run, what they compute in, and how batches are cut and loaded.

    configured_tokens: of a batch, if the configuration says so; max_tokens: whose activations are held
    at once where one example has more than a micro-batch. Padding counts, unless encoders run packed.
    """

    processes: DistributedContext
    precision: Precision
    loader_options: dict[str, Any]
    configured_tokens: int | None
    max_tokens: int

    def micro_batch_tokens(self, *, packed: bool) -> int:
        """The tokens of a micro-batch."""
        if self.configured_tokens is not None:
            return self.configured_tokens
        if self.processes.device.type != "cpu":
            return _ON_A_GPU
        return _ON_A_CPU_IN_BF16 if packed and self.precision.mode == "bf16" else _ON_A_CPU

    def eval_tokens(self, *, packed: bool) -> int:
        """The tokens of a batch that is only predicted."""
        if self.configured_tokens is None and self.processes.device.type == "cuda":
            return _EVAL_ON_A_GPU
        return self.micro_batch_tokens(packed=packed)


def prepare_hardware(config: TrainConfig) -> Hardware:
    """Seed everything, choose device, kernels and precision, and log the choice.

    Raises:
        ConfigError: a device or precision that this machine does not have.
    """
    training = config.training
    set_seed(
        config.seed,
        deterministic=training.deterministic,
        warn_only=training.deterministic_warn_only,
        cudnn_benchmark=training.cudnn_benchmark,
    )
    try:
        info = get_device(training.device)
    except ValueError as error:
        raise ConfigError(f"`training.device` is not usable: {error}") from None
    if training.num_threads is not None:
        torch.set_num_threads(training.num_threads)
    keeps = training.keep_freed_memory
    kept = (info.device.type == "cpu" if keeps is None else keeps) and keep_freed_memory()
    set_tf32(training.tf32 and info.supports_tf32)
    precision = Precision(
        training.amp,
        device=info.device,
        supports_bf16=info.supports_bf16,
        supports_fp16=info.supports_fp16,
    )
    logger.info("%s; mixed precision %s (%s).", info.describe(), precision.mode, precision.reason)
    if info.device.type == "cpu":
        logger.info(
            "%d threads (%s); freed memory is %s.",
            torch.get_num_threads(),
            "PyTorch's choice" if training.num_threads is None else "as configured",
            "kept for the next tensors" if kept else "given back",
        )
    loader_options = get_optimal_dataloader_kwargs(
        device=info.device,
        num_workers=training.num_workers,
        pin_memory=training.pin_memory,
        persistent_workers=training.persistent_workers,
        prefetch_factor=training.prefetch_factor,
    )
    return Hardware(
        DistributedContext(device=info.device),
        precision,
        loader_options,
        configured_tokens=training.micro_batch_tokens,
        max_tokens=training.micro_batch_tokens
        or (_MAX_TOKENS_HELD if info.device.type == "cpu" else _ON_A_GPU),
    )
