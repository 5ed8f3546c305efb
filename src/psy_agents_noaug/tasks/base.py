"""What a run asks of a task beyond what the loops do: its report, its records, its description."""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

from psy_agents_noaug.training.protocols import Calibration, MetricValues, Predictions, Task


class ReportingTask(Task, Protocol):
    """A task that can tell people and files about its results."""

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint needs to rebuild the model and read its outputs; JSON-able."""

    def monitors(self) -> dict[str, Literal["max", "min"]]:
        """Return the keys of `metrics` that training may steer by, and which way is better."""

    def truncation(self, split: str) -> MetricValues:
        """Return how many texts of `split` lost their end to `model.max_length`, and the share."""

    def report(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> MetricValues:
        """Return `metrics`, their bootstrap intervals, and the baselines on the same split."""

    def records(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> Iterator[dict[str, Any]]:
        """Yield one JSON-able line a prediction: ids, offsets and numbers, no text."""

    def summary(self, metrics: MetricValues) -> str:
        """Render the figures of a report as a table for the console."""
