"""The settings of a prediction: some of its own, and what it may replace of a checkpoint's."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from psy_agents_noaug.config.loading import (
    compose_config,
    given,
    group_choices,
    known_keys,
    validate,
)
from psy_agents_noaug.errors import ConfigError, faults_message

if TYPE_CHECKING:
    from psy_agents_noaug.config.schema import PredictConfig

GROUPS = ("data",)
# Sections in which a setting may replace that of the training.
OVERRIDABLE = ("training", "model", "task")


def load_predict_config(overrides: Sequence[str]) -> "PredictConfig":
    """Compose the settings of a prediction with `overrides` (Hydra's syntax) and check them.

    Raises:
        ConfigError: with every unknown key, missing value and wrong type; before that, with every
            setting of a training that has no effect on predictions.
    """
    from psy_agents_noaug.config.schema import PredictConfig

    _refuse_without_effect(overrides)
    return validate(PredictConfig, predict_settings(overrides))


def predict_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a prediction, unchecked; of a data configuration what describes posts."""
    composed = compose_config("predict", overrides)
    own = given(overrides)
    data = composed["data"]
    posts = {"source": "files", **{key: data.get(key) for key in ("dir", "posts", "columns")}}
    if "data.posts" in own:
        # A file of one's own is neither in the bundled folder nor in one that is not given.
        posts["dir"] = None if posts["dir"] == "???" else posts["dir"]
    elif data.get("source") == "bundled":
        posts["source"] = "bundled"
    else:
        posts["posts"] = posts["posts"] or "???"
    tables = posts["columns"]
    posts["columns"] = {"posts": tables.get("posts", {})} if isinstance(tables, Mapping) else tables
    # Slips, for the schema to report.
    names = [key.split(".")[1] for key in own if key.startswith("data.")]
    posts |= {name: data[name] for name in names if name not in posts}
    return {**composed, "data": posts}


def _refuse_without_effect(overrides: Sequence[str]) -> None:
    """Refuse settings of a training that a prediction does not read."""
    from psy_agents_noaug.config.schema import PredictConfig, TrainConfig

    read = {*known_keys(PredictConfig, {}, ""), *GROUPS}.difference((*OVERRIDABLE, "data.source"))
    trained = {*known_keys(TrainConfig, {}, ""), *group_choices()}
    faults = [
        f"`{key}` has no effect on predictions; leave it out."
        for key in given(overrides)
        if key in trained - read or (key.startswith("data.columns.") and ".posts" not in key)
    ]
    if faults:
        raise ConfigError(faults_message("The configuration is not valid:", faults))
