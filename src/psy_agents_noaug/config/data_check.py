"""The settings of a check of the data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from psy_agents_noaug.config.loading import compose_config, validate, validate_train_config
from psy_agents_noaug.tasks.registry import settings_model

if TYPE_CHECKING:
    from psy_agents_noaug.config.schema import DataCheckConfig, TrainConfig


def load_data_check_config(
    task: str, overrides: Sequence[str]
) -> tuple["DataCheckConfig", "TrainConfig"]:
    """Compose the settings of `data check` with `overrides` (Hydra's syntax) and check them.

    Returns:
        What the check is told, and the configuration of the training that it is about.

    Raises:
        ConfigError: with every unknown key, missing value and wrong type in one message.
    """
    from psy_agents_noaug.config.schema import DataCheckConfig, data_check_config_model

    values = compose_config("data_check", overrides, task=task)
    settings = validate(data_check_config_model(settings_model(task)), values)
    own = DataCheckConfig.model_fields
    trained = {key: value for key, value in values.items() if key not in own}
    return settings, validate_train_config(trained)
