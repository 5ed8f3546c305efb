"""The settings of `psy-agents adapt`: those of a training, and which posts it reads."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from psy_agents_noaug.config.loading import compose_config, given, validate
from psy_agents_noaug.config.schema import Share, TaskSettings, TrainConfig
from psy_agents_noaug.errors import ConfigError

POSTS = "data.posts"


class AdaptTaskConfig(TaskSettings):
    """The section `task` of `configs/adapt.yaml`.

    Args:
        mask_probability: share of the words that are masked, and predicted.
        held_out: share of the posts that is not trained on, for the perplexity.
    """

    name: Literal["adapt"]
    mask_probability: Share
    held_out: Annotated[float, Field(gt=0.0, le=0.5)]


class AdaptConfig(TrainConfig):
    """All settings of an adaptation (`configs/adapt.yaml`).

    `data` is the corpus whose posts of val and test are left out.

    Args:
        posts: the file of unlabelled posts; written `data.posts` on the command line.
        columns: our names of its columns to the file's.
    """

    task: AdaptTaskConfig
    posts: str
    columns: dict[str, str]

    @model_validator(mode="after")
    def _trains_whole_encoders(self) -> "AdaptConfig":
        faults = []
        if self.model.lora is not None:
            faults.append("`model.lora` is of the tasks; an adaptation trains the whole encoder")
        if self.posts == "-":
            faults.append("`data.posts` must be a file, as standard input cannot be read again")
        if faults:
            raise ValueError(".\n  - ".join(faults) + ".")
        return self


def load_adapt_config(overrides: Sequence[str]) -> AdaptConfig:
    """Compose the settings of an adaptation with `overrides` (Hydra's syntax) and check them.

    Raises:
        ConfigError: with every unknown key, missing value and wrong type in one message.
    """
    return validate(AdaptConfig, adapt_settings(overrides))


def adapt_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings of an adaptation, unchecked.

    `data.posts` is the file of unlabelled posts. The posts of the corpus are those that its data
    configuration names, or `corpus_posts`.

    Raises:
        ConfigError: neither names them, or a key is unknown.
    """
    others = [item for item in overrides if item.lstrip("+").partition("=")[0] != POSTS]
    composed = compose_config("adapt", others)
    corpus_posts = composed.pop("corpus_posts")
    if isinstance(composed["data"], dict):
        if corpus_posts is not None:
            composed["data"]["posts"] = corpus_posts
        elif composed["data"].get("posts") == "???":
            raise ConfigError(
                "`corpus_posts` must be given: the file with the posts of the corpus, of which val and "
                "test are left out. `data.posts` is that of the unlabelled posts."
            )
    return {**composed, "posts": given(overrides).get(POSTS, composed["posts"])}
