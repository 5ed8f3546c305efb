"""What may leave a run's directory: a checkpoint without traces of posts, machine and user."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PureWindowsPath
from typing import Any

from psy_agents_noaug.config.loading import lay_over
from psy_agents_noaug.run.refits import PLAN, REFIT
from psy_agents_noaug.training.checkpoint import Checkpoint

# Absolute and relative paths of all systems, `~user`, and addresses of servers.
_PLACE = re.compile(r"[/\\~]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|[A-Za-z][\w+.-]*://")
# Settings that say where something is on this machine, and what stands in their place.
_PLACES = {
    "output_dir": "outputs",
    "run_name": None,
    "resume": None,
    "best_config": None,
    "tracking.uri": None,
    "tracking.experiment": None,
    "data.dir": None,
    "data.token_cache": "auto",
}
_TABLES = ("posts", "annotations", "criteria", "splits", "corrections")
_ENCODERS = ("pretrained_model", "criteria_encoder", "evidence_encoder")
_KEY_OF_PLACE = re.compile(r"(file|path|dir)s?$")


def shareable(checkpoint: Checkpoint) -> Checkpoint:
    """Return what others need of a checkpoint: it can be evaluated and predicted with.

    Left out are the state to go on with training; what the training's posts could be recognised by
    (keyed hashes, and the fingerprints of the division and of a refit's cross-validation, which can be
    tried out where there are few authors); and paths, addresses and names of this machine and its user.
    The fingerprint of the corpus stays: only who has every post, annotation and criterion of it can
    compute it.

    Args:
        checkpoint: of a run; of any version that can be read.

    Returns:
        A copy; weights, decision rule and figures are shared with the original.

    Raises:
        ConfigError: the configuration is not valid.
        KeyError: a part is absent, see `training.checkpoint.using`.
    """
    metadata = {
        key: _cleaned_files(value) if key.endswith("_files") else value
        for key, value in checkpoint.metadata.items()
        if key not in ("seen_texts", "seen_posts")
    }
    metadata["fingerprints"] = {"corpus": metadata["fingerprints"]["corpus"]}
    if REFIT in metadata:
        metadata[REFIT] = {key: value for key, value in metadata[REFIT].items() if key != PLAN}
    config = lay_over(_base_names(checkpoint.config), _PLACES | _file_names(checkpoint.config))
    return replace(checkpoint, config=config.model_dump(), metadata=metadata, resume=None)


def _file_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the last part of the settings that name files or folders, by dotted keys."""
    data, model = config["data"], config["model"]
    names = {f"data.{key}": data.get(key) for key in _TABLES}
    hub_names = {"data.repo": data.get("repo")}
    hub_names |= {f"model.{key}": model.get(key) for key in _ENCODERS}
    names |= {key: name for key, name in hub_names.items() if name and _is_folder(name)}
    return {key: _base_name(name) for key, name in names.items() if name}


def _is_folder(name: str) -> bool:
    """Whether what may be a name on the Hub is a folder, which need not be there any more."""
    # `Path.is_dir` raises where a name is too long for one.
    return name.count("/") > 1 or "\\" in name or os.path.isdir(name)  # noqa: PTH112


def _base_names(value: Any) -> Any:
    """Return settings with the last part of a path, at any depth, in place of the path."""
    if isinstance(value, Mapping):
        return {key: _base_names(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_base_names(entry) for entry in value]
    return _base_name(value) if isinstance(value, str) and _PLACE.match(value) else value


def _base_name(path: str) -> str:
    # Its paths have both kinds of slashes.
    return PureWindowsPath(path).name or "unnamed"


def _cleaned_files(files: Mapping[str, str]) -> dict[str, str]:
    """Return the text files of an encoder without the paths that it was loaded from."""
    return {name: _cleaned_file(content) for name, content in files.items()}


def _cleaned_file(content: str) -> str:
    """Return a file as it is, unless a setting of it names a place. Tokens are no settings."""
    try:
        values = json.loads(content)
    except ValueError:
        return content
    if not isinstance(values, dict):
        return content
    kept = {key: value for key, value in values.items() if not _names_a_place(key, value)}
    return content if kept == values else json.dumps(kept, indent=2, ensure_ascii=False) + "\n"


def _names_a_place(key: str, value: Any) -> bool:
    if not isinstance(value, str):
        return False
    # Where it was loaded from, which may be a path that looks like the name of a model on a hub.
    return key.endswith("name_or_path") or bool(_KEY_OF_PLACE.search(key) and _PLACE.match(value))
