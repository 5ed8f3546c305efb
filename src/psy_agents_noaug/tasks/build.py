"""From a configuration to its task."""

from collections.abc import Mapping, Sequence

from psy_agents_noaug.config.schema import (
    CriteriaTaskConfig,
    EvidenceTaskConfig,
    JointTaskConfig,
    TrainConfig,
)
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.models.encoder import recompute_activations
from psy_agents_noaug.models.execution import use_fast_dropout
from psy_agents_noaug.tasks.base import ReportingTask
from psy_agents_noaug.tasks.criteria.task import build_criteria_task
from psy_agents_noaug.tasks.encoders import ONLY, Encoders, choose_execution
from psy_agents_noaug.tasks.evidence.task import build_evidence_task
from psy_agents_noaug.tasks.joint.task import build_joint_task


def build_task(
    config: TrainConfig,
    *,
    encoders: Encoders,
    criteria: Sequence[Criterion],
    examples: Mapping[str, Sequence[Example]],
    max_tokens: int,
) -> ReportingTask:
    """Assemble the task that `config` names, on the examples of the splits that may be looked at.

    `max_tokens`: padded tokens whose activations may be held at once.
    """
    packs = choose_execution(config, encoders)
    task: ReportingTask
    match config.task:
        case CriteriaTaskConfig():
            task = build_criteria_task(
                config, config.task, encoder=encoders[ONLY], criteria=criteria, examples=examples
            )
        case EvidenceTaskConfig():
            task = build_evidence_task(
                config,
                config.task,
                encoder=encoders[ONLY],
                criteria=criteria,
                examples=examples,
                max_tokens=max_tokens,
            )
        case JointTaskConfig():
            task = build_joint_task(
                config,
                config.task,
                encoders=encoders,
                criteria=criteria,
                examples=examples,
                max_tokens=max_tokens,
            )
    task.packs = packs
    if not config.training.compile:  # cannot trace where its masks come from
        use_fast_dropout(task.model)
    if config.training.gradient_checkpointing:
        for encoder in encoders.values():
            recompute_activations(encoder.model)
    if config.training.compile:
        task.model.compile(dynamic=True)
    return task
