"""What a training that learns val too is given in place of val."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psy_agents_noaug.tasks.base import DecisionRule


@dataclass(frozen=True)
class RefitDecisions:
    """What a cross-validation on train and val has decided.

    Args:
        epochs: passes over the training data, after which training ends. The learning rate follows the
            schedule of `training.epochs`, as it did where they were counted.
        rule: fitted on out-of-fold predictions.
        lines: these predictions.
        origin: where epochs and rule come from, for checkpoint and manifest; JSON-able.
    """

    epochs: float
    rule: DecisionRule
    lines: Sequence[Mapping[str, Any]]
    origin: Mapping[str, Any]
