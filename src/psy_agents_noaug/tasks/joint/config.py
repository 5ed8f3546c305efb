"""Settings of the joint task (`configs/task/joint.yaml`)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from psy_agents_noaug.config.schema import DataConfig, ModelConfig, Section, TaskSettings
from psy_agents_noaug.tasks.criteria.config import CriteriaTaskConfig
from psy_agents_noaug.tasks.evidence.config import EvidenceTaskConfig, whole_posts_only


class LossWeightsConfig(Section):
    """What the two losses of the joint task are multiplied by."""

    criteria: Annotated[float, Field(ge=0.0)]
    evidence: Annotated[float, Field(ge=0.0)]

    @model_validator(mode="after")
    def _trains_something(self) -> "LossWeightsConfig":
        if self.criteria == self.evidence == 0.0:
            raise ValueError("`task.loss_weights` must not both be 0.")
        return self


class JointTaskConfig(TaskSettings):
    """How label and evidence are learned together (`configs/task/joint.yaml`)."""

    headline_metrics = ("joint_score", "f1_macro", "evidence_iou_f1", "supported_f1")

    name: Literal["joint"]
    criteria: CriteriaTaskConfig
    evidence: EvidenceTaskConfig
    fusion: Literal["none", "concat", "evidence_attention"]
    window_pooling: Literal["max", "logsumexp"]
    loss_weights: Literal["uncertainty"] | LossWeightsConfig
    decoding: Literal["independent", "consistent"]

    def misfits(self, data: DataConfig, model: ModelConfig) -> list[str]:
        """Return what in other sections does not fit the task, a sentence each."""
        misfits = whole_posts_only(self.name, data)
        named = model.criteria_encoder or model.evidence_encoder
        if model.criteria_encoder and model.evidence_encoder and model.revision:
            misfits.append(
                "`model.revision` pins `model.pretrained_model`, which neither encoder is here; give "
                "folders of the pinned weights instead."
            )
        if named and model.share_encoder:
            misfits.append(
                "`model.share_encoder` leaves no room for `model.criteria_encoder` or "
                "`model.evidence_encoder`; give `model.pretrained_model`."
            )
        return misfits
