"""What a run asks of a task beyond what the loops do: its report, its records, its description."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.metrics.classification import Metrics
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

    def follow_ups(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> list[str]:
        """Return the names of further sources, made of these predictions, that a report needs."""
        return []

    def follow_up_report(
        self,
        predictions: Predictions,
        follow_ups: Mapping[str, Predictions],
        *,
        split: str,
        calibration: Calibration,
    ) -> MetricValues:
        """Return the figures that come of the predictions on the sources of `follow_ups`."""
        return {}

    def records(
        self, predictions: Predictions, *, split: str, calibration: Calibration
    ) -> Iterator[dict[str, Any]]:
        """Yield one JSON-able line a prediction: ids, offsets and numbers, no text."""

    def summary(self, metrics: MetricValues) -> str:
        """Render the figures of a report as a table for the console."""


def described_criteria(criteria: Sequence[Criterion]) -> list[dict[str, str]]:
    """Return the criteria as `ReportingTask.metadata` has them."""
    return [{"criterion_id": c.criterion_id, "name": c.name, "text": c.text} for c in criteria]


def example_ids(example: Example) -> dict[str, str]:
    """Return how a prediction line begins."""
    return {
        "example_id": example.example_id,
        "post_id": example.post_id,
        "criterion_id": example.criterion_id,
    }


def flat_metrics(metrics: Metrics) -> MetricValues:
    """Put the reason of an undefined figure beside it."""
    reasons = {f"{key}_undefined": reason for key, reason in metrics.undefined.items()}
    return {**metrics.values, **reasons}
