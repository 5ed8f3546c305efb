"""The pretrained encoders that a task is built from, by the part they play in it."""

import logging
from collections.abc import Mapping
from typing import Any

from psy_agents_noaug.config.schema import ModelConfig, TrainConfig
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.models.encoder import Encoder, load_encoder, rebuild_encoder
from psy_agents_noaug.models.execution import enable_packing, packing_obstacle

ONLY = "encoder"
CRITERIA, EVIDENCE = "criteria_encoder", "evidence_encoder"
_FILES = "_files"

logger = logging.getLogger(__name__)

Encoders = Mapping[str, Encoder]


def load_encoders(config: TrainConfig) -> dict[str, Encoder]:
    """Load the pretrained encoder, or, for a joint task that shares none, both of them.

    Raises:
        ConfigError: the weights cannot be had.
    """
    model = config.model
    if config.task.name != "joint" or model.share_encoder:
        return {ONLY: _load(model, model.pretrained_model, model.revision)}
    named = {CRITERIA: model.criteria_encoder, EVIDENCE: model.evidence_encoder}
    return {
        part: _load(model, name or model.pretrained_model, None if name else model.revision)
        for part, name in named.items()
    }


def rebuild_encoders(metadata: Mapping[str, Any]) -> dict[str, Encoder]:
    """Build the encoders that a checkpoint describes, their weights still to be filled in."""
    return {
        key.removesuffix(_FILES): rebuild_encoder(files)
        for key, files in metadata.items()
        if key.endswith(_FILES)
    }


def described(encoders: Encoders) -> dict[str, dict[str, str]]:
    """Return what `rebuild_encoders` reads."""
    return {f"{part}{_FILES}": dict(encoder.files) for part, encoder in encoders.items()}


def choose_execution(config: TrainConfig, encoders: Encoders) -> bool:
    """Make the encoders run packed if `training.execution` and they allow it. Return whether they do.

    Raises:
        ConfigError: `packed` where it is not possible.
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
    reason = "as configured" if wanted == "padded" else obstacle or "no work for padding"
    logger.info("Execution: %s (%s).", "packed" if packed else "padded", reason)
    return packed


def _load(model: ModelConfig, name: str, revision: str | None) -> Encoder:
    return load_encoder(name, revision=revision, dropout=model.encoder_dropout)
