"""Load the encoders of a configuration and build its task."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.models.encoder import (
    Encoder,
    load_encoder,
    rebuild_encoder,
)
from psy_agents_noaug.models.execution import (
    enable_packing,
    packing_obstacle,
    use_fast_dropout,
)
from psy_agents_noaug.models.recompute import recompute_activations
from psy_agents_noaug.tasks.base import Encoders, Task, TaskInputs
from psy_agents_noaug.tasks.registry import task_class

_FILES = "_files"  # suffix of an encoder's part in `Task.metadata`

logger = logging.getLogger(__name__)


def load_encoders(config: TrainConfig) -> dict[str, Encoder]:
    """Load the pretrained encoders of the task that `config` names, by part.

    Raises:
        ConfigError: the weights cannot be loaded.
    """
    sources = task_class(config.task.name).encoder_sources(config.model)
    return {
        part: load_encoder(name, revision=revision, dropout=config.model.encoder_dropout)
        for part, (name, revision) in sources.items()
    }


def rebuild_encoders(config: TrainConfig, metadata: Mapping[str, Any]) -> dict[str, Encoder]:
    """Build the encoders of a checkpoint from its metadata, without their weights.

    Raises:
        KeyError: the metadata lack the files of one.
    """
    parts = task_class(config.task.name).encoder_sources(config.model)
    return {part: rebuild_encoder(metadata[part + _FILES]) for part in parts}


def build_task(
    config: TrainConfig,
    inputs: TaskInputs,
    *,
    make: Callable[[TrainConfig, TaskInputs], Task] | None = None,
) -> Task:
    """Build a task, and choose how its encoders run (packed or padded).

    Args:
        config: of the run.
        inputs: of the task.
        make: builds the task; None: the one that `config` names.
    """
    packs = choose_execution(config, inputs.encoders)
    task = (make or task_class(config.task.name))(config, inputs)
    task.packs = packs
    if not config.training.compile:  # it cannot trace the source of the masks
        use_fast_dropout(task.model)
    if config.training.gradient_checkpointing:
        for encoder in inputs.encoders.values():
            recompute_activations(encoder.model, is_compiled=config.training.compile)
    if config.training.compile:
        task.model.compile(dynamic=True)
    return task


def choose_execution(config: TrainConfig, encoders: Encoders) -> bool:
    """Make the encoders run packed if `training.execution` and they allow it. Return whether they do.

    Raises:
        ConfigError: `training.execution=packed`, which the encoders or `training.compile` exclude.
    """
    wanted = config.training.execution
    obstacle = packing_obstacle(encoder.model for encoder in encoders.values())
    if obstacle is None and config.training.compile:
        obstacle = "`training.compile` needs batches of few shapes"
    if wanted == "packed" and obstacle:
        raise ConfigError(
            f"`training.execution=packed` is not possible: {obstacle}. Use `training.execution=auto`."
        )
    packed = wanted != "padded" and obstacle is None
    if packed:
        for encoder in encoders.values():
            enable_packing(encoder.model)
    reason = "as configured" if wanted == "padded" else obstacle or "without padding"
    logger.info("Execution: %s (%s).", "packed" if packed else "padded", reason)
    return packed
