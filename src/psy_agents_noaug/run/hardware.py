"""The hardware, prepared as a configuration wants it used."""

import logging
import os

import torch

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.run.launcher import check_launcher
from psy_agents_noaug.training.distributed import DistributedContext
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.training.precision import Precision
from psy_agents_noaug.utils.memory import keep_freed_memory
from psy_agents_noaug.utils.reproducibility import (
    cuda_obstacle,
    get_device,
    get_optimal_dataloader_kwargs,
    set_seed,
    set_tf32,
)

logger = logging.getLogger(__name__)


def prepare_hardware(config: TrainConfig) -> Hardware:
    """Seed everything, choose device, kernels and precision, and log the choice.

    Raises:
        ConfigError: a device or precision that this machine does not have, or an option of
            `accelerate launch` that would be ignored.
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
    if training.device == "auto" and (obstacle := cuda_obstacle()):
        logger.warning("%s Training uses the %s.", obstacle, info.device.type.upper())
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
    check_launcher(os.environ, amp=precision.mode)
    processes = DistributedContext(device=info.device)
    if processes.device.type == "cuda":
        # Some kernels and libraries use the current device and not that of their tensors.
        torch.cuda.set_device(processes.device)
    if processes.count > 1:
        logger.info("%d processes train together.", processes.count)
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
        prefetch_factor=training.prefetch_factor,
        timeout=training.loader_timeout,
    )
    return Hardware(
        processes,
        precision,
        loader_options,
        configured_tokens=training.micro_batch_tokens,
    )
