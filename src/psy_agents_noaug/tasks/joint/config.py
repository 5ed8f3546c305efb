"""Settings of the joint task (`configs/task/joint.yaml`)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from psy_agents_noaug.config.schema import (
    ARCHITECTURES,
    DataConfig,
    ModelConfig,
    Section,
    TaskSettings,
)
from psy_agents_noaug.tasks.criteria.config import LabelConfig
from psy_agents_noaug.tasks.evidence.config import EvidenceTaskConfig, requires_whole_posts


class LossWeightsConfig(Section):
    """Weights of the losses of the joint task; `attention` is part of the evidence's."""

    criteria: Annotated[float, Field(ge=0.0)]
    evidence: Annotated[float, Field(ge=0.0)]
    attention: Annotated[float, Field(ge=0.0)] = 3.0

    @model_validator(mode="after")
    def _is_not_all_zero(self) -> "LossWeightsConfig":
        if self.criteria == self.evidence == 0.0:
            raise ValueError("`task.loss_weights` must not both be 0.")
        return self


class JointTaskConfig(TaskSettings):
    """Settings of both tasks, and how they share encoders, losses and decisions."""

    architectures = ARCHITECTURES
    has_protocols = True
    headline_metrics = ("joint_score", "f1_macro", "evidence_iou_f1", "supported_f1")

    name: Literal["joint"]
    criteria: LabelConfig
    evidence: EvidenceTaskConfig
    fusion: Literal["none", "concat", "evidence_attention"]
    window_pooling: Literal["max", "logsumexp"]
    loss_weights: Literal["uncertainty"] | LossWeightsConfig
    decoding: Literal["independent", "consistent"]

    def conflicts(self, data: DataConfig, model: ModelConfig) -> list[str]:
        """Return the settings of other sections that conflict with the task, one sentence each."""
        conflicts = requires_whole_posts(self.name, data)
        named = model.criteria_encoder or model.evidence_encoder
        if model.architecture == "label_attention" and (named or not model.share_encoder):
            conflicts.append(
                "`model.architecture=label_attention` has one encoder: `model.share_encoder` must be "
                "true, without `model.criteria_encoder` and `model.evidence_encoder`."
            )
        if model.architecture == "label_attention" and self.loss_weights == "uncertainty":
            conflicts.append(
                "`task.loss_weights` must be numbers with `model.architecture=label_attention`."
            )
        if model.architecture == "label_attention" and self.fusion != "none":
            conflicts.append(
                f"`task.fusion` must be none with `model.architecture=label_attention`, whose label "
                f"always reads the evidence's tokens, but is {self.fusion} instead."
            )
        if model.criteria_encoder and model.evidence_encoder and model.revision:
            conflicts.append(
                "`model.revision` belongs to `model.pretrained_model`, which is not used here; use "
                "folders with the weights of the wanted revisions instead."
            )
        if named and model.share_encoder:
            conflicts.append(
                "`model.share_encoder` excludes `model.criteria_encoder` and "
                "`model.evidence_encoder`; set `model.pretrained_model`."
            )
        return conflicts
