"""Settings of the evidence task (`configs/task/evidence.yaml`)."""

from typing import Annotated, Literal

from pydantic import Field

from psy_agents_noaug.config.schema import (
    ARCHITECTURES,
    DataConfig,
    ModelConfig,
    Positive,
    TaskSettings,
)


class EvidenceTaskConfig(TaskSettings):
    """Windows, loss and decoding of the evidence task."""

    architectures = ARCHITECTURES
    headline_metrics = (
        "evidence_iou_f1",
        "evidence_token_f1",
        "evidence_detection_average_precision",
    )

    name: Literal["evidence"]
    stride: Annotated[int, Field(ge=0)]
    loss: Literal["marginal", "first_span"]
    n_best_size: Positive
    max_answer_length: Positive
    max_spans: Positive
    snap_to_sentences: bool

    def conflicts(self, data: DataConfig, model: ModelConfig) -> list[str]:
        """Return the settings of other sections that conflict with the task, one sentence each."""
        return super().conflicts(data, model) + requires_whole_posts(self.name, data)


def requires_whole_posts(task: str, data: DataConfig) -> list[str]:
    """Return the conflict of a task that finds evidence in posts with another `data.unit`, if any."""
    if data.unit == "post":
        return []
    return [
        f"`data.unit` must be post for the {task} task, which finds the evidence in a post, but is "
        f"{data.unit} instead."
    ]
