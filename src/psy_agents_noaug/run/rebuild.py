"""A trained model again, from its checkpoint alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.dsm5 import Criterion
from psy_agents_noaug.data.examples import Example
from psy_agents_noaug.errors import CheckpointError, first_of
from psy_agents_noaug.tasks.base import Task, TaskInputs
from psy_agents_noaug.tasks.build import build_task, rebuild_encoders
from psy_agents_noaug.training.checkpoint import Checkpoint, using
from psy_agents_noaug.training.hardware import Hardware


def trained_criteria(checkpoint: Checkpoint, path: Path) -> list[Criterion]:
    """Return the criteria that a checkpoint was trained on, in their order.

    Args:
        checkpoint: the contents.
        path: of the file, for error messages.

    Raises:
        CheckpointError: it does not hold them.
    """
    with using(path):
        return [Criterion(**criterion) for criterion in checkpoint.metadata["criteria"]]


def rebuilt_task(
    checkpoint: Checkpoint,
    path: Path,
    config: TrainConfig,
    hardware: Hardware,
    *,
    criteria: Sequence[Criterion],
    examples: Mapping[str, Sequence[Example]],
    held_out: Sequence[Criterion] = (),
) -> Task:
    """Build the task of a checkpoint with its weights, on the device of `hardware`.

    Args:
        checkpoint: the contents.
        path: of the file, for error messages.
        config: the checkpoint's, with the settings that replace some of it.
        hardware: where the model runs.
        criteria: those of the checkpoint.
        examples: see `TaskInputs`; none are needed to predict others.
        held_out: criteria that the model was not trained on.

    Raises:
        CheckpointError: the checkpoint lacks a part, or its weights do not fit its configuration.
    """
    with using(path):
        encoders = rebuild_encoders(config, checkpoint.metadata)
    task = build_task(
        config, TaskInputs(encoders, criteria, examples, hardware.max_tokens_held, held_out)
    )
    with using(path):
        task.model.load_state_dict(checkpoint.weights)
    if absent := task.evaluation.absent_from(checkpoint.decision_rule):
        raise CheckpointError(f"{path} lacks {first_of(absent)} in its decision rule.")
    task.model.to(hardware.distributed.device)
    return task
