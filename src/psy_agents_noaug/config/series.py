"""The settings of several trainings of one configuration: folds, seeds, workers."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from psy_agents_noaug.config.loading import (
    compose_config,
    given,
    to_overrides,
    validate,
    validate_train_config,
)
from psy_agents_noaug.errors import ConfigError, faults_message
from psy_agents_noaug.tasks.registry import settings_model

if TYPE_CHECKING:
    from psy_agents_noaug.config.schema import SeriesConfig, TrainConfig

# What a series is: a cross-validation, several seeds, or a cross-validation that a refit is decided by.
Kind = Literal["cv", "train", "refit"]
SeriesVerb = Literal["cv", "train"]


def load_series_config(
    verb: SeriesVerb, task: str, overrides: Sequence[str]
) -> tuple["SeriesConfig", "TrainConfig"]:
    """Compose the settings of `cv` or `train` with `overrides` (Hydra's syntax) and check them.

    Returns:
        What differs between the trainings, with the seeds in any case but that of a single training;
        and the configuration of the first training, without the division into folds. With `refit` it is
        that of the final training.

    Raises:
        ConfigError: with every unknown key, missing value and wrong type in one message.
    """
    from psy_agents_noaug.config.schema import FoldsConfig, series_config_model

    values = compose_config(verb, overrides, task=task)
    settings = validate(series_config_model(FoldsConfig, settings_model(task)), values)
    explicit = given(overrides)
    refits = values.get("refit") is not None
    if verb == "train" and not refits and "folds" in explicit:
        raise ConfigError(
            "`folds` is of a cross-validation: use `psy-agents cv`, or give refit=train+val too."
        )
    if verb == "train" and not refits and settings.seeds is None:
        if settings.workers > 1:
            raise ConfigError(
                "`workers` is of several trainings: give their `seeds` too, such as seeds=[1,2,3]."
            )
        return settings, _first_training(values)
    kind: Kind = "refit" if verb == "train" and refits else verb
    _refuse_set_here(kind, {**explicit, "refit": values.get("refit")})
    seeds = settings.seeds or [values["seed"]]
    fixed: dict[str, object] = {"seed": seeds[0]}
    if verb == "cv":
        fixed["data.splits"] = None
    if settings.workers > 1 and "training.num_threads" not in explicit:
        fixed["training.num_threads"] = max(1, (os.cpu_count() or 1) // settings.workers)
    values = compose_config(verb, [*overrides, *to_overrides(fixed)], task=task)
    trained = _first_training(values)
    if kind != "train" and trained.protocol.divides:
        named = "`psy-agents cv`" if kind == "cv" else "refit=train+val"
        raise ConfigError(
            f"{named} divides the posts into folds, but protocol={trained.protocol.name} divides them "
            "itself; use `psy-agents train` with it, or protocol=none."
        )
    return settings.model_copy(update={"seeds": seeds}), trained


def _first_training(values: Mapping[str, Any]) -> "TrainConfig":
    """Return the settings of a training among those of a series."""
    from psy_agents_noaug.config.schema import FoldsConfig

    return validate_train_config(
        {key: value for key, value in values.items() if key not in FoldsConfig.model_fields}
    )


def _refuse_set_here(kind: Kind, explicit: dict[str, object]) -> None:
    """Refuse settings that differ between the trainings, all in one message."""
    reasons = {}
    if explicit.get("resume") != "auto":  # which a series does in any case
        reasons["resume"] = "the same command goes on where it was stopped"
    if "seeds" in explicit:
        reasons["seed"] = "`seeds` holds that of each training"
    if kind == "cv":
        reasons["data.splits"] = "folds=FILE gives the division"
        reasons["refit"] = "`psy-agents train` and train-best train a final model"
    if kind == "refit":
        reasons["seeds"] = "there is one final model, with `seed`"
        reasons.pop("seed", None)
    faults = [
        f"`{key}`: {reason}." for key, reason in reasons.items() if explicit.get(key) is not None
    ]
    if faults:
        named = "refit=train+val" if kind == "refit" else f"`psy-agents {kind}`"
        raise ConfigError(faults_message(f"Not possible with {named}:", faults))
