"""What the loops know of a task: these protocols and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

Batch = dict[str, Tensor]
# Name to array whose first dimension counts examples; what a model says about them.
Predictions = dict[str, np.ndarray]
# Decision parameters fitted on val (thresholds and the like); JSON-able.
Calibration = dict[str, Any]
# Flat metric name to figure; None is undefined and has a reason under `<name>_undefined`.
MetricValues = dict[str, float | int | str | None]


class ExampleSource(Protocol):
    """Encoded examples that can be collated in any grouping."""

    @property
    def ids(self) -> Sequence[str]:
        """The identifier of each example, as error messages and predictions name it."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, `[examples]`; of several rows, as padded to the longest."""

    def collate(self, indices: Sequence[int]) -> Batch:
        """Return the padded batch of these examples, in this order; an example may have several rows."""


class Task(Protocol):
    """How examples become tensors, a loss, predictions and metrics."""

    name: str
    model: nn.Module
    # What the columns of `loss` are called in the history; empty where it has none.
    loss_parts: tuple[str, ...] = ()
    # Whether padding costs nothing, so that real tokens alone count against a token budget.
    packs: bool = False

    def source(self, split: str) -> ExampleSource:
        """Return the examples of `train`, `val` or `test`."""

    def epoch_pool(self, epoch: int) -> np.ndarray:
        """Return the indices of the training examples seen in `epoch`, in any order.

        A pure function of the epoch and the seed; every epoch has equally many.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run `model` (perhaps wrapped for several processes) and return a loss an example.

        `[B]`, or `[B, parts]`, of which the loss is the sum.
        """

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Run `model` and return what is known of each example, first dimension B."""

    def calibrate(self, predictions: Predictions) -> Calibration:
        """Fit the decision parameters on predictions of val."""

    def metrics(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> MetricValues:
        """Judge the predictions of a whole split; keys without the split's name."""
