"""Examples as the pairs that `metrics` score."""

from collections.abc import Sequence

import numpy as np

from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.metrics.classification import PairPredictions
from psy_agents_noaug.tasks.base import DecisionRule


def pair_predictions(examples: Sequence[Example], probabilities: np.ndarray) -> PairPredictions:
    """Return the labels of examples beside the probabilities of a model, `[examples]`."""
    return PairPredictions(
        labels=np.asarray([example.label for example in examples], dtype=np.int64),
        probabilities=probabilities.astype(np.float64),
        criterion_ids=np.asarray([example.criterion_id for example in examples]),
        group_ids=np.asarray([example.group_id for example in examples]),
    )


def pair_cutoffs(pairs: PairPredictions, rule: DecisionRule) -> np.ndarray:
    """Return the threshold of each pair, float64 `[pairs]`."""
    thresholds = rule["thresholds"]
    return np.asarray([thresholds[name] for name in pairs.criterion_ids.tolist()], dtype=np.float64)
