"""From the Hydra tree and a command line to a checked, typed configuration."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from psy_agents_noaug.config.overrides import hydra_literal, one_line, parse_overrides
from psy_agents_noaug.errors import (
    ConfigError,
    did_you_mean,
    faults_message,
    not_one_of,
    similar_names,
)
from psy_agents_noaug.tasks.registry import config_folders, settings_model

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    from psy_agents_noaug.config.schema import (
        EvaluateConfig,
        ExportConfig,
        ImportConfig,
        TrainConfig,
    )

ModelT = TypeVar("ModelT", bound="BaseModel")
_MAX_DEPTH = 50  # of YAML; deeper than any configuration
RECIPE = "recipe"  # the group without a section: its values are those of other sections
PROTOCOL = "protocol"  # the group whose section no command line changes

# A wheel carries the tree inside the package; a checkout has it at its root.
CONFIG_DIR = Path(__file__).parents[1] / "configs"
if not CONFIG_DIR.is_dir():
    CONFIG_DIR = Path(__file__).parents[3] / "configs"


def load_train_config(task: str, overrides: Sequence[str]) -> "TrainConfig":
    """Compose the training configuration of `task` with `overrides` (Hydra's syntax) and check it.

    `best_config=FILE` puts that file's values under the other overrides, so the command line wins.

    Raises:
        ConfigError: with every unknown key, missing value and wrong type in one message.
    """
    config = validate_train_config(compose_config("config", overrides, task=task))
    if config.task.name != task:
        other = config.task.name
        raise ConfigError(
            f"`task` must be {task} here, but is {other} instead; use `psy-agents train task={other}`."
        )
    if config.refit is not None:
        raise ConfigError(
            "`refit` is of `psy-agents train` and train-best, which cross-validate for it first; leave "
            "it out here."
        )
    return config


def validate_train_config(values: Mapping[str, Any]) -> "TrainConfig":
    """Check a resolved training configuration; all faults in one ConfigError."""
    from psy_agents_noaug.config.schema import train_config_model

    task = values.get("task")
    name = task.get("name") if isinstance(task, Mapping) else None
    if name == "adapt":  # no task of the registry
        from psy_agents_noaug.config.adaptation import AdaptConfig

        return validate(AdaptConfig, values)
    return validate(train_config_model(settings_model(str(name))), values)


def load_evaluate_config(
    task: str, overrides: Sequence[str]
) -> tuple["EvaluateConfig", dict[str, Any]]:
    """Return what to evaluate, and the values given explicitly, to lay over the checkpoint's own.

    The second part maps dotted keys to values (`{"data": {...}, "training.amp": "off"}`): a group
    choice replaces its whole section, a value override one key.
    """
    from psy_agents_noaug.config.schema import EvaluateConfig

    composed = compose_config("eval", overrides, task=task)
    own = {key: composed[key] for key in EvaluateConfig.model_fields if key in composed}
    evaluation = validate(EvaluateConfig, own)
    explicit: dict[str, Any] = {}
    for override in parse_overrides(overrides):
        key = override.key_or_group
        if override.is_delete():
            raise ConfigError(f"An evaluation replaces settings, it cannot delete one: ~{key}.")
        if key == RECIPE:
            explicit[key] = override.value()
        elif key == PROTOCOL:
            explicit |= {key: composed[key], **flat(composed[key].get("fixes") or {})}
        elif key not in EvaluateConfig.model_fields:
            explicit[key] = _lookup(composed, key)
    return evaluation, explicit


def load_export_config(overrides: Sequence[str]) -> "ExportConfig":
    """Compose the settings of an export and check them.

    Raises:
        ConfigError: with every unknown key, missing value and wrong type in one message.
    """
    from psy_agents_noaug.config.schema import ExportConfig

    return validate(ExportConfig, compose_config("export", overrides))


def load_import_config(overrides: Sequence[str]) -> "ImportConfig":
    """Compose the settings of an import and check them.

    Raises:
        ConfigError: with every unknown key, missing value and wrong type in one message.
    """
    from psy_agents_noaug.config.schema import ImportConfig

    return validate(ImportConfig, compose_config("import", overrides))


def given(argv: Sequence[str]) -> dict[str, Any]:
    """Return the overrides of a command line by key; of several for one key the last.

    Raises:
        ConfigError: a line that is no override, or that deletes a key.
    """
    overrides = parse_overrides(argv)
    deleted = [override.key_or_group for override in overrides if override.is_delete()]
    if deleted:
        raise ConfigError(f"Settings are replaced here, not deleted: ~{', ~'.join(deleted)}.")
    return {override.key_or_group: override.value() for override in overrides}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted keys; an empty section stays one."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def to_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return overrides in Hydra's syntax that give `values`, by dotted keys; groups choose."""
    groups = group_choices()
    return [
        f"{key}={value}" if key in groups else f"++{key}={hydra_literal(value)}"
        for key, value in values.items()
    ]


def read_overrides_file(path: Path, *, task: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a best configuration: overrides by dotted keys, and what its `hpo` section says of them.

    Where data goes (`tracking`, `output_dir`, `data.token_cache`) is not the file's to say: such
    settings are left out.

    Raises:
        ConfigError: the file cannot be read, holds no mapping, or was searched for another task.
    """
    if not path.is_file():
        raise ConfigError(f"`best_config` must be a file, but {path} is not there.")
    try:
        _check_yaml(path.read_text(encoding="utf-8"))
        content = OmegaConf.load(path)
    # A number of too many digits is a ValueError.
    except (yaml.YAMLError, ValueError, RecursionError, OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"`best_config` {path} cannot be read: {one_line(error)}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(f"`best_config` {path} must hold a mapping of keys to values.")
    # The file may be a stranger's: nothing of it is looked up, such as `${oc.env:NAME}`.
    if looked_up := list(_interpolations(content)):
        raise ConfigError(
            f"`best_config` {path} must hold values, but `{'`, `'.join(looked_up)}` refer to other "
            "settings or to the environment (${...}): write the values themselves."
        )
    values = _plain(content)
    provenance = values.pop("hpo", None) or {}
    if not isinstance(provenance, dict):
        raise ConfigError(f"`hpo` in `best_config` {path} must be a mapping.")
    for name in ("data", "packages"):
        if not isinstance(provenance.get(name) or {}, dict):
            raise ConfigError(f"`hpo.{name}` in `best_config` {path} must be a mapping.")
    searched_for = provenance.get("task", task)
    if searched_for != task:
        raise ConfigError(
            f"`best_config` {path} was searched for the task {searched_for}, but this is {task}."
        )
    overrides = flat(as_of_today(values))
    kept = {key: value for key, value in overrides.items() if not _says_where_data_goes(key)}
    return kept, provenance


def _check_yaml(text: str) -> None:
    """Refuse YAML that is nested too deep, or without end, for what reads it later.

    Raises:
        yaml.YAMLError: saying which.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"it repeats a part by an alias (*{event.anchor}); write it out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {_MAX_DEPTH} deep")


def as_of_today(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration that an earlier version recorded, without settings that are gone.

    Args:
        recorded: nested settings, or settings by dotted keys.
    """
    gone = ("bootstrap_resamples", "persistent_workers")  # both up to 0.2.0
    return {
        key: as_of_today(value) if isinstance(value, Mapping) else value
        for key, value in recorded.items()
        if str(key).rpartition(".")[2] not in gone
    }


def _says_where_data_goes(key: str) -> bool:
    return key.split(".")[0] in ("tracking", "output_dir") or key == "data.token_cache"


def lay_over(config: Mapping[str, Any], explicit: Mapping[str, Any]) -> "TrainConfig":
    """Return `config` (a resolved training configuration) with `explicit` dotted keys replaced.

    Both are taken as they are: a text such as `${oc.env:NAME}` in a checkpoint stays that text.
    """
    merged: dict[str, Any] = copy.deepcopy(as_of_today(config))
    for key, value in explicit.items():
        *sections, name = key.split(".")
        section = merged
        for part in sections:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        section[name] = copy.deepcopy(value)
    return validate_train_config(merged)


def group_choices() -> dict[str, list[str]]:
    """Return the groups and the choices of each, of other packages too, in alphabetical order."""
    choices: dict[str, set[str]] = {}
    for path in (p for root in (_config_dir(), *config_folders()) for p in root.glob("*/*.yaml")):
        if not path.stem.startswith("_"):
            choices.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(names) for group, names in sorted(choices.items())}


def compose_config(
    config_name: str, overrides: Sequence[str], *, task: str | None = None
) -> dict[str, Any]:
    """Compose the tree without a schema: plain dictionaries, interpolations resolved.

    A value that must be given and is not stays `???`, for `validate` to report.

    Args:
        config_name: a file of `configs/`, without its suffix.
        overrides: in Hydra's syntax.
        task: the choice of the group `task`, where the file has that group.
    """
    parsed = parse_overrides(overrides)
    _check_protocol_is_whole(parsed)
    best = [override.value() for override in parsed if override.key_or_group == "best_config"]
    from_file: Mapping[str, Any] = {}
    if best and best[-1] is not None:
        from_file, _ = read_overrides_file(Path(str(best[-1])), task=str(task))
    arguments = [] if task is None else [f"task={task}"]
    if folders := config_folders():
        places = [f"file://{folder}" for folder in folders]
        arguments.append(f"hydra.searchpath={hydra_literal(places)}")
    values = flat({override.key_or_group: override.value() for override in parsed})
    arguments += _recipe(task, {**from_file, **values})
    arguments += [*to_overrides(from_file), *(_unrestricted(override) for override in parsed)]
    try:
        with initialize_config_dir(str(_config_dir()), version_base="1.3"):
            config = compose(config_name, overrides=arguments)
        return _plain(config)
    # The last for a group that is null.
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        chosen: list[tuple[str, Any]] = [] if task is None else [("task", task)]
        chosen += from_file.items()
        chosen += [(override.key_or_group, override.value()) for override in parsed]
        faults = _unknown_choices(chosen) or [one_line(error)]
        raise ConfigError(
            faults_message("The configuration cannot be composed:", faults)
        ) from error


def validate(schema: type[ModelT], values: Mapping[str, Any], *, prefix: str = "") -> ModelT:
    """Check `values` against `schema`.

    Args:
        schema: what the settings must be.
        values: the settings, nested.
        prefix: what stands before their keys on a command line, such as `hpo.`.

    Raises:
        ConfigError: with all faults in one message; for an unknown key the ones that it may stand for.
    """
    from pydantic import ValidationError

    faults = [f"`{key}` must be given: {key}=..." for key in _missing(prefix, values)]
    try:
        validated = schema.model_validate(dict(values))
    except ValidationError as error:
        known = list(known_keys(schema, values, prefix))
        found = _faults(error, values, known=known, prefix=prefix)
        faults += [fault for fault in found if fault not in faults]
    if faults:
        raise ConfigError(faults_message("The configuration is not valid:", faults))
    return validated


def to_yaml(config: "BaseModel") -> str:
    """Render a configuration as YAML that `load_train_config` reads back to an equal one."""
    return yaml_of(config.model_dump())


def yaml_of(values: Mapping[str, Any]) -> str:
    """Render settings as YAML that is read back to equal ones."""
    # OmegaConf quotes what it would itself read as a number (1e-4) and PyYAML would not.
    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))


def closest_keys(key: str, known: Iterable[str]) -> list[str]:
    """Return up to three known dotted keys that an unknown one may stand for, the likeliest first.

    Keys of the same name in other sections, else similar names in its own section, else similar names
    anywhere: `epochs` and `training.epoch` both stand for `training.epochs`.
    """
    section, _, name = key.rpartition(".")
    by_name: dict[str, list[str]] = {}
    siblings = []
    for candidate in known:
        its_section, _, its_name = candidate.rpartition(".")
        by_name.setdefault(its_name, []).append(candidate)
        if its_section == section:
            siblings.append(its_name)
    if name in by_name:
        return by_name[name][:3]
    names = similar_names(name, siblings)
    if names:
        return [f"{section}.{match}" if section else match for match in names]
    return [key for match in similar_names(name, by_name) for key in by_name[match]][:3]


def _unknown_choices(chosen: Iterable[tuple[str, Any]]) -> list[str]:
    """Return a line for each choice that its group does not have."""
    groups = group_choices()
    return [
        not_one_of(key, groups[key], value)
        for key, value in chosen
        if key in groups and isinstance(value, str | None) and value not in groups[key]
    ]


def _missing(prefix: str, values: Mapping[str, Any]) -> list[str]:
    keys: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            keys += _missing(f"{prefix}{key}.", value)
        elif value == "???":
            keys.append(prefix + key)
    return keys


def known_keys(annotation: Any, values: Any, prefix: str) -> Iterator[str]:
    """Yield the dotted keys of the models in an annotation; of tasks, those of the one in `values`."""
    from pydantic import BaseModel

    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        for alternative in get_args(annotation):
            yield from known_keys(alternative, values, prefix)
        return
    values = values if isinstance(values, Mapping) else {}
    fields = annotation.model_fields
    names = get_args(fields["name"].annotation) if "name" in fields else ()
    if names and values.get("name") not in names:
        return
    for key, field in fields.items():
        yield prefix + key
        yield from known_keys(field.annotation, values.get(key), f"{prefix}{key}.")


def _faults(
    error: "ValidationError", values: Mapping[str, Any], *, known: Sequence[str], prefix: str
) -> list[str]:
    """One line a fault; a key whose alternatives all fail is named once with all of them."""
    reasons: dict[str, list[str]] = {}
    for fault in error.errors(include_url=False):
        if fault["type"] == "value_error":
            # A rule over several settings, which names them itself.
            reasons[fault["msg"].removeprefix("Value error, ")] = []
            continue
        key = prefix + _existing_key(fault["loc"], values)
        message = fault["msg"]
        if fault["type"] == "extra_forbidden":
            message = f"is not a known key{did_you_mean(closest_keys(key, known))}"
        elif fault["type"] == "missing":
            message = "must be given"
        else:
            message = f"is {fault['input']!r}: {message[0].lower()}{message[1:]}"
        if message not in reasons.setdefault(key, []):
            reasons[key].append(message)
    return [
        f"`{key}` {'; or '.join(messages)}" if messages else key
        for key, messages in reasons.items()
    ]


def _existing_key(location: tuple[int | str, ...], values: Mapping[str, Any]) -> str:
    """Leave pydantic's names of union alternatives out of a location."""
    known: list[str] = []
    here: Any = values
    for part in location:
        if isinstance(here, Mapping) and (part in here or len(known) == 0):
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int):
            here = here[part]
        elif isinstance(here, Mapping) and location[-1] == part:
            here = None
        elif isinstance(here, Mapping):
            continue
        else:
            break
        known.append(str(part))
    return ".".join(known)


def _unrestricted(override: Override) -> str:
    """Let an unknown value key through composing, so that the schema reports it with the rest."""
    line = override.input_line or ""
    is_group = (_config_dir() / override.key_or_group).is_dir()
    return line if is_group or line.startswith(("+", "~")) else f"++{line}"


def _check_protocol_is_whole(overrides: Sequence[Override]) -> None:
    """Refuse to change a protocol under its name.

    Raises:
        ConfigError: naming the keys.
    """
    keys = [o.key_or_group for o in overrides if o.key_or_group.startswith(f"{PROTOCOL}.")]
    if keys:
        raise ConfigError(
            f"`{'`, `'.join(keys)}`: a protocol is chosen as it is, protocol=NAME. For another one, "
            "write a file such as those of configs/protocol/, with a name of its own."
        )


def _recipe(task: str | None, chosen: Mapping[str, Any]) -> list[str]:
    """Return the choice of the task's recipe for `model.architecture`, if it has one of its own."""
    recipe = f"{task}_{chosen.get('model.architecture')}"
    return [f"{RECIPE}={recipe}"] if recipe in group_choices()[RECIPE] else []


def _lookup(values: Mapping[str, Any], dotted: str) -> Any:
    here: Any = values
    for part in dotted.split("."):
        here = here[part]
    return here


def _interpolations(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys whose values refer to something else."""
    keys: Iterable[Any] = config if isinstance(config, DictConfig) else range(len(config))
    for key in keys:
        if OmegaConf.is_interpolation(config, key):
            yield f"{prefix}{key}"
        elif OmegaConf.is_config(config[key]):
            yield from _interpolations(config[key], f"{prefix}{key}.")


def _plain(config: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _config_dir() -> Path:
    if not CONFIG_DIR.is_dir():
        raise ConfigError(
            f"The configuration tree {CONFIG_DIR} is not there: install the project again, from a "
            "wheel or from its checkout with `pip install -e .`."
        )
    return CONFIG_DIR
