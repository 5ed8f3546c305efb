"""`best_config.yaml`: the settings that a search found best, and where they come from.

The file holds overrides by dotted keys, which `best_config=FILE` puts under the command line, and a
section `hpo` that a training reads only to warn of other conditions than the search's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psy_agents_noaug.config.loading import read_overrides_file, yaml_of
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.utils.files import write_text

_NEEDED = ("study", "trial", "value", "monitor", "params", "base", "space", "top")
_HEADER = """\
# The best trial of a search. Train it again, on the same data with the same versions to the last bit:
#   python scripts/train_best.py task={task} best_config={path}
"""


@dataclass(frozen=True)
class BestConfig:
    """What another stage starts from.

    overrides: all of the trial's; base: those that all trials had in common; params: those that were
    searched; space: as `SearchSpace.to_json` gives it; top: the params of the best quarter of trials.
    """

    study: str
    trial: int
    value: float
    monitor: str
    overrides: Mapping[str, Any]
    base: Mapping[str, Any]
    params: Mapping[str, Any]
    space: Mapping[str, Any]
    top: Sequence[Mapping[str, Any]]


def read_best_config(path: Path, *, task: str) -> BestConfig:
    """Read what `write_best_config` wrote.

    Raises:
        ConfigError: there is no such file, it is of another task, or of no search.
    """
    overrides, provenance = read_overrides_file(path, task=task)
    missing = [key for key in _NEEDED if key not in provenance]
    if missing:
        raise ConfigError(
            f"{path} must have been written by a search, but its `hpo` section lacks "
            f"{', '.join(missing)}."
        )
    return BestConfig(overrides=overrides, **{key: provenance[key] for key in _NEEDED})


def write_best_config(
    path: Path, overrides: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write the overrides and where they come from; `provenance` holds the task and what is needed."""
    content = {"hpo": dict(provenance), **overrides}
    header = _HEADER.format(task=provenance["task"], path=path)
    write_text(path, header + yaml_of(content))
