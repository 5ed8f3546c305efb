"""Settings of the criteria task (`configs/task/criteria.yaml`)."""

from typing import Annotated, Literal

from pydantic import Field

from psy_agents_noaug.config.schema import ARCHITECTURES, Positive, TaskSettings


class LabelConfig(TaskSettings):
    """Loss and decision rule of labels."""

    architectures = ARCHITECTURES
    has_protocols = True
    headline_metrics = ("f1_macro", "auroc_macro", "average_precision_macro")

    name: Literal["criteria"]
    loss: Literal["cross_entropy", "focal"]
    focal_gamma: Annotated[float, Field(ge=0.0)]
    class_weights: (
        Literal["none", "balanced"]
        | Annotated[list[Annotated[float, Field(gt=0.0)]], Field(min_length=2, max_length=2)]
    )
    thresholds: Literal["global", "per_criterion"]
    threshold_min_support: Positive


class CriteriaTaskConfig(LabelConfig):
    """Settings of the criteria task."""

    has_soft_labels = True

    # The defaults are for configurations of 0.2.0 and earlier.
    long_posts: Literal["windows", "truncate"] = "truncate"
    window_pooling: Literal["max", "logsumexp"] = "max"
