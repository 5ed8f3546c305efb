"""The hardware, as a configuration wants it used."""

import logging
from dataclasses import dataclass
from typing import Any

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.training.distributed import Processes
from psy_agents_noaug.training.precision import Precision
from psy_agents_noaug.utils.reproducibility import (
    get_device,
    get_optimal_dataloader_kwargs,
    set_seed,
    set_tf32,
)

# A CPU computes small batches as fast as large ones, and these have less padding.
_MICRO_BATCH_TOKENS = {"cpu": 1024}
_ON_A_GPU = 16384
# Of one example of many windows, which would be encoded twice beyond this.
_MAX_TOKENS_HELD = 4096

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machine:
    """The processes of the run, what they compute in, and how batches are cut and loaded.

    micro_batch_tokens: padded tokens of a micro-batch. max_tokens: padded tokens whose activations are
    held at once where a single example has more than a micro-batch.
    """

    processes: Processes
    precision: Precision
    loader_options: dict[str, Any]
    micro_batch_tokens: int
    max_tokens: int


def prepare_machine(config: TrainConfig) -> Machine:
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
    set_tf32(training.tf32 and info.supports_tf32)
    precision = Precision(
        training.amp,
        device=info.device,
        supports_bf16=info.supports_bf16,
        supports_fp16=info.supports_fp16,
    )
    logger.info("%s; mixed precision %s (%s).", info.describe(), precision.mode, precision.reason)
    loader_options = get_optimal_dataloader_kwargs(
        device=info.device,
        num_workers=training.num_workers,
        pin_memory=training.pin_memory,
        persistent_workers=training.persistent_workers,
        prefetch_factor=training.prefetch_factor,
    )
    tokens = training.micro_batch_tokens or _MICRO_BATCH_TOKENS.get(info.device.type, _ON_A_GPU)
    return Machine(
        Processes(device=info.device),
        precision,
        loader_options,
        tokens,
        max_tokens=training.micro_batch_tokens or max(tokens, _MAX_TOKENS_HELD),
    )
