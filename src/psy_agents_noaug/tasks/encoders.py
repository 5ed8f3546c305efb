"""The pretrained encoders that a task is built from, by the part they play in it."""

from collections.abc import Mapping
from typing import Any

from psy_agents_noaug.config.schema import ModelConfig, TrainConfig
from psy_agents_noaug.models.encoder import Encoder, load_encoder, rebuild_encoder

ONLY = "encoder"
CRITERIA, EVIDENCE = "criteria_encoder", "evidence_encoder"
_FILES = "_files"

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


def _load(model: ModelConfig, name: str, revision: str | None) -> Encoder:
    return load_encoder(name, revision=revision, dropout=model.encoder_dropout)
