"""`best_config.yaml`: the settings of the best trial of a search, and how they were found.

The file holds overrides by dotted keys and a section `hpo`. `best_config=FILE` applies the overrides;
the command line wins over them. A training reads `hpo` only to warn if its data, versions or number of
threads differ from those of the search.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psy_agents_noaug.config.loading import read_overrides_file, yaml_of
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.utils.files import write_text

_REQUIRED = ("study", "trial", "value", "monitor", "params", "base", "space", "top")
_HEADER = """\
# The best trial of a search. This trains it again, bit-identically on the same data and versions:
#   python scripts/train_best.py task={task} best_config={path}
"""


@dataclass(frozen=True)
class BestConfig:
    """The best trial of a search, from which a later stage starts.

    Args:
        study: its name.
        trial: number of the trial.
        value: of the monitor.
        monitor: the metric by which trials were compared, such as `val/f1_macro`.
        overrides: all settings of the trial, by dotted keys.
        base: the overrides that all trials have in common.
        params: the overrides that were searched.
        space: the search space, as returned by `SearchSpace.to_json`.
        top: `params` of each of the best trials (a quarter of all).
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
    """Read a file of `write_best_config`.

    Raises:
        ConfigError: the file is missing, is of another task, or was not written by a search.
    """
    overrides, provenance = read_overrides_file(path, task=task)
    missing = [key for key in _REQUIRED if key not in provenance]
    if missing:
        raise ConfigError(
            f"{path} must have been written by a search, but its `hpo` section lacks "
            f"{', '.join(missing)}."
        )
    return BestConfig(overrides=overrides, **{key: provenance[key] for key in _REQUIRED})


def write_best_config(
    path: Path, overrides: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write the settings of the best trial.

    Args:
        path: the file.
        overrides: by dotted keys.
        provenance: the section `hpo`: the task, and every other attribute of `BestConfig`.
    """
    content = {"hpo": dict(provenance), **overrides}
    header = _HEADER.format(task=provenance["task"], path=path)
    write_text(path, header + yaml_of(content))
