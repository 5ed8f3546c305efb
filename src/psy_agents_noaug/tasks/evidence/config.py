"""Settings of the evidence task (`configs/task/evidence.yaml`)."""

from typing import Annotated, Literal

from pydantic import Field

from psy_agents_noaug.config.schema import DataConfig, ModelConfig, Positive, TaskSettings


class EvidenceTaskConfig(TaskSettings):
    """Windows, loss and decoding of the evidence task (`configs/task/evidence.yaml`)."""

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
    bootstrap_resamples: Annotated[int, Field(ge=100)]

    def misfits(self, data: DataConfig, model: ModelConfig) -> list[str]:
        """Return what in other sections does not fit the task, a sentence each."""
        return super().misfits(data, model) + whole_posts_only(self.name, data)


def whole_posts_only(task: str, data: DataConfig) -> list[str]:
    """Return the misfit of a task that finds evidence in posts but is given something else."""
    if data.unit == "post":
        return []
    return [
        f"`data.unit` must be post for the {task} task, which finds the evidence in it, but is "
        f"{data.unit} instead."
    ]
