"""Whether the state of a last checkpoint is whole: PyTorch puts a default for a key that is absent."""

from collections.abc import Iterable, Mapping
from typing import Any

# What AdamW keeps of each parameter that it has updated, and of each group of parameters; and what a
# scheduler's place is.
_ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
_ADAMW_GROUP = ("params", "lr", "betas", "eps", "weight_decay")
_SCHEDULER_STATE = ("base_lrs", "last_epoch", "_last_lr")


def check_complete(
    resume: Mapping[str, Any], *, state: Mapping[str, Any], scaler: Mapping[str, Any]
) -> None:
    """Refuse a state that lacks a key, or the moments of an optimizer that has made updates.

    Args:
        resume: of the checkpoint.
        state: has the keys of the trainer's state.
        scaler: has the keys of the loss scale's state.

    Raises:
        KeyError: naming the first.
    """
    optimizer = resume["optimizer"]
    # Checkpoints of 0.2.0 lack the number of skipped updates.
    of_scaler = [key for key in scaler if key != "skipped_updates"]
    expected: list[tuple[Mapping[str, Any], Iterable[str]]] = [
        (resume["scheduler"], _SCHEDULER_STATE),
        (resume["state"], state),
        (resume["scaler"], of_scaler),
        *((group, _ADAMW_GROUP) for group in optimizer["param_groups"]),
        *((moments, _ADAMW_STATE) for moments in optimizer["state"].values()),
    ]
    for part, keys in expected:
        for key in keys:
            part[key]
    n_made = resume["state"]["step"] - resume["scaler"].get("skipped_updates", 0)
    if n_made > 0 and not optimizer["state"]:
        raise KeyError("the moments of AdamW")
