"""AdamW with decay where it belongs, and schedules by name."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

from psy_agents_noaug.errors import ConfigError


def build_optimizer(
    model: nn.Module,
    *,
    encoders: Sequence[nn.Module],
    learning_rate: float,
    head_learning_rate: float | None,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
) -> torch.optim.AdamW:
    """Return fused AdamW (Loshchilov and Hutter 2019) over the weights that train.

    Args:
        encoders: the pretrained modules of `model`; every other parameter belongs to the head.
        learning_rate: of the encoders, and of the head unless it has its own.
        head_learning_rate: of the head; None for `learning_rate`.
        weight_decay: of matrices; biases and the parameters of norms (all vectors) have none.
        betas: decay rates of the running means of the gradient and of its square.
        epsilon: added to the denominator of an update.
    """
    pretrained = {parameter for encoder in encoders for parameter in encoder.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        is_head = parameter not in pretrained
        rate = head_learning_rate if is_head and head_learning_rate else learning_rate
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        betas=betas,
        eps=epsilon,
        fused=True,
    )


def build_scheduler(
    name: str, optimizer: torch.optim.Optimizer, *, total_steps: int, warmup_ratio: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of that name in `transformers.get_scheduler`, one `step()` an update.

    Raises:
        ConfigError: no such schedule, or one that needs settings of its own.
    """
    # These follow a metric or need arguments that no setting here gives.
    unusable = {"reduce_lr_on_plateau", "warmup_stable_decay", "greedy"}
    names = [kind.value for kind in SchedulerType if kind.value not in unusable]
    if name not in names:
        raise ConfigError(
            f"`training.scheduler` must be one of {', '.join(names)}, but is {name!r} instead."
        )
    specific = {"min_lr_rate": 0.1} if "min_lr" in name else None
    scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=int(total_steps * warmup_ratio),
        num_training_steps=total_steps,
        scheduler_specific_kwargs=specific,
    )
    return scheduler


def trainable(model: nn.Module) -> Iterable[nn.Parameter]:
    """The parameters that receive updates."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)
