"""Settings of the joint task (`configs/task/joint.yaml`)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from psy_agents_noaug.config.schema import DataConfig, ModelConfig, Section, TaskSettings
from psy_agents_noaug.tasks.criteria.config import CriteriaTaskConfig
from psy_agents_noaug.tasks.evidence.config import EvidenceTaskConfig, requires_whole_posts


class LossWeightsConfig(Section):
    """Weights of the two losses of the joint task."""

    criteria: Annotated[float, Field(ge=0.0)]
    evidence: Annotated[float, Field(ge=0.0)]

    @model_validator(mode="after")
    def _is_not_all_zero(self) -> "LossWeightsConfig":
        if self.criteria == self.evidence == 0.0:
            raise ValueError("`task.loss_weights` must not both be 0.")
        return self


class JointTaskConfig(TaskSettings):
    """Settings of both tasks, and how they share encoders, losses and decisions."""

    headline_metrics = ("joint_score", "f1_macro", "evidence_iou_f1", "supported_f1")

    name: Literal["joint"]
    criteria: CriteriaTaskConfig
    evidence: EvidenceTaskConfig
    fusion: Literal["none", "concat", "evidence_attention"]
    window_pooling: Literal["max", "logsumexp"]
    loss_weights: Literal["uncertainty"] | LossWeightsConfig
    decoding: Literal["independent", "consistent"]

    def conflicts(self, data: DataConfig, model: ModelConfig) -> list[str]:
        """Return the settings of other sections that conflict with the task, one sentence each."""
        conflicts = requires_whole_posts(self.name, data)
        named = model.criteria_encoder or model.evidence_encoder
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
