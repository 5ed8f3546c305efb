"""What a run asks of a task beyond what the loops do: its report, its records, its description."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.metrics.classification import Metrics
from psy_agents_noaug.models.encoder import Encoder
from psy_agents_noaug.training.protocols import Calibration, MetricValues, Predictions, Task


class ReportingTask(Task, Protocol):
    """A task that can tell people and files about its results."""

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint needs to rebuild the model and read its outputs; JSON-able."""

    def monitors(self) -> dict[str, Literal["max", "min"]]:
        """Return the keys of `metrics` that training may steer by, and which way is better."""

    def notes(self, split: str) -> list[str]:
        """Return what a user should know of how the model gets to see `split`, a line each."""

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


def description(criteria: Sequence[Criterion], encoder: Encoder) -> dict[str, Any]:
    """Return the part of `ReportingTask.metadata` that every task with one encoder has."""
    return {
        "criteria": [
            {"criterion_id": c.criterion_id, "name": c.name, "text": c.text} for c in criteria
        ],
        "encoder_files": dict(encoder.files),
    }


def flat_metrics(metrics: Metrics) -> MetricValues:
    """Put the reason of an undefined figure beside it."""
    reasons = {f"{key}_undefined": reason for key, reason in metrics.undefined.items()}
    return {**metrics.values, **reasons}
