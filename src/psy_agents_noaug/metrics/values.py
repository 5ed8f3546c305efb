"""What metrics are made of: arrays, and figures that may be undefined."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ValueOrReason = float | int | str  # a str is the reason why the metric is undefined

NO_PAIRS = "no pairs"
NO_TRAINING_PAIRS = "there are no training pairs where a corpus is evaluated whole"


@dataclass(frozen=True)
class Metrics:
    """Metrics by key. `undefined` gives the reason for exactly the keys whose value is `None`."""

    values: dict[str, float | int | None]
    undefined: dict[str, str]


def value_of(samples: Floats) -> float | None:
    """Return a figure, the first of its values over samples; None where it is undefined (NaN)."""
    return None if np.isnan(samples[0]) else float(samples[0])


def metrics_of(metrics: Mapping[str, ValueOrReason]) -> Metrics:
    """Return `metrics` with the reasons separated from the values."""
    undefined = {key: value for key, value in metrics.items() if isinstance(value, str)}
    values = {key: None if isinstance(value, str) else value for key, value in metrics.items()}
    return Metrics(values=values, undefined=undefined)
