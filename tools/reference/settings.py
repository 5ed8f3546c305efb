"""The page of the settings: their types from the schema, the rest from configs/ and docstrings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comments import comments_of_file, comments_of_group
from docstrings import arguments_of
from pages import code, table
from pages import page as page_of
from pydantic import BaseModel, create_model

from psy_agents_noaug.config.adaptation import AdaptTaskConfig
from psy_agents_noaug.config.loading import CONFIG_DIR, compose_config, group_choices
from psy_agents_noaug.config.overrides import hydra_literal
from psy_agents_noaug.config.schema import (
    CompareConfig,
    DataCheckConfig,
    EvaluateConfig,
    ExportConfig,
    FoldsConfig,
    ImportConfig,
    MergeConfig,
    PredictConfig,
    ReportConfig,
    SeriesConfig,
    TrecConfig,
    train_config_model,
)
from psy_agents_noaug.hpo.settings import StageConfig
from psy_agents_noaug.run.listing import RunsConfig
from psy_agents_noaug.tasks.registry import settings_model, task_names

INTRODUCTION = """Every setting with its type, its allowed values and its default. A setting is given as
`KEY=VALUE`, a list as `KEY=[1,2]`, a mapping as `'KEY={a:1}'`. An unknown key or a wrong type is an
error.
The default is that of the command without any setting; where a choice of a group has another one, it
stands behind it."""
SECTION_OF_VERB = {
    "train": "A training",
    "cv": "Cross-validation",
    "eval": "Evaluation",
    "predict": "Prediction",
    "merge": "Merging",
    "compare": "Comparison",
    "export": "Export",
    "tune": "Search",
    "train-best": "A training",
    "import": "Import",
    "adapt": "Adaptation",
    "data": "Check of the data",
    "report": "Report",
    "runs": "List of runs",
    "trec": "Ranking",
}
TASK = "criteria"  # of the defaults
GROUPS = ("data", "model", "training", "tracking")
MISSING = "???"
STAGE = "stage1_coarse"  # of the defaults
LONG = 60  # characters of a default; longer ones are read in their file


@dataclass(frozen=True)
class Defaults:
    """The value of each setting of a command.

    Args:
        values: nested, as they are composed.
        others: the same for other choices of groups, by `GROUP=CHOICE`.
    """

    values: Mapping[str, Any]
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def shown(self, key: str, schema: Mapping[str, Any]) -> str:
        """Return the default of a setting, and of which choices it has another one."""
        missing = schema.get("default", MISSING)
        value = _lookup(self.values, key, missing)
        by_value: dict[str, list[str]] = {}
        for choice, values in self.others.items():
            other = _lookup(values, key, missing)
            if _value(other) != _value(value):
                by_value.setdefault(_value(other), []).append(code(choice))
        others = [f"{shown} with {', '.join(choices)}" for shown, choices in by_value.items()]
        return "; ".join([_value(value), *others])


def page(repository: Path) -> str:
    """Return the page."""
    return page_of("# Settings", INTRODUCTION, *_training(), *_other_commands())


def _training() -> Iterator[str]:
    described = _comments_of_training()
    defaults = _defaults_of_training()
    schema = train_config_model(settings_model(TASK)).model_json_schema()
    sections = (*GROUPS, "task", "protocol")
    yield f"## {SECTION_OF_VERB['train']}"
    yield "Of `train`, and of every training of `cv`, `tune` and `train-best`."
    own = {name: part for name, part in schema["properties"].items() if name not in sections}
    yield _table({"properties": own}, schema, defaults, described)
    for group in GROUPS:
        yield f"### {group}"
        yield f"Choices: {', '.join(code(f'{group}={name}') for name in group_choices()[group])}."
        yield _table(_section(schema, group), schema, defaults, described, prefix=f"{group}.")
    yield "### protocol"
    protocols = ", ".join(code(f"protocol={name}") for name in group_choices()["protocol"])
    yield f"Choices: {protocols}. [What they fix and report](../paper-to-command.md)."
    yield "### task"
    for task in task_names():
        yield f"Of {code(f'task={task}')}:"
        of_task = train_config_model(settings_model(task)).model_json_schema()
        values = Defaults(compose_config("train", [], task=task))
        told = comments_of_file(CONFIG_DIR / "task" / f"{task}.yaml", "task")
        yield _table(_section(of_task, "task"), of_task, values, told, prefix="task.")


def _other_commands() -> Iterator[str]:
    series = _comments("cv")
    predict = {**_comments_of_training(), **_comments("predict")}
    own = Defaults(compose_config("cv", [], task=TASK))
    evaluation = Defaults(compose_config("eval", [], task=TASK))
    stages = {f"hpo.{key}": told for key, told in _comments_of_stages().items()}
    yield "## Several seeds"
    yield "Of `train`, beside those of a training."
    yield _of(SeriesConfig, own, series)
    for verb, sentence, model, defaults, told in (
        ("cv", "Of `cv`, and of `refit`, beside those of a training.", FoldsConfig, own, series),
        (
            "eval",
            "Of `eval`. Those of the training are the checkpoint's, unless they are given.",
            EvaluateConfig,
            evaluation,
            _comments("eval"),
        ),
        (
            "predict",
            "Of `predict`. What is not given is as in the training.",
            PredictConfig,
            Defaults(compose_config("predict", [])),
            predict,
        ),
        ("merge", "Of `merge`.", MergeConfig, Defaults({}), {}),
        ("compare", "Of `compare`.", CompareConfig, Defaults({}), {}),
        (
            "export",
            "Of `export`.",
            ExportConfig,
            Defaults(compose_config("export", [])),
            _comments("export"),
        ),
        (
            "import",
            "Of `import`.",
            ImportConfig,
            Defaults(compose_config("import", [])),
            _comments("import"),
        ),
        (
            "adapt",
            "Of `adapt`, beside those of a training; `data` is the corpus that is left out.",
            create_model(
                "Own", task=(AdaptTaskConfig, ...), posts=(str, ...), columns=(dict[str, str], ...)
            ),
            Defaults(compose_config("adapt", [])),
            {"task.name": "adapt", **_comments("adapt")},
        ),
        (
            "data",
            "Of `data check`, beside those of a training.",
            DataCheckConfig,
            Defaults(compose_config("data_check", [], task=TASK)),
            _comments("data_check"),
        ),
        ("report", "Of `report`.", ReportConfig, Defaults({}), {}),
        ("runs", "Of `runs`, beside `task`.", RunsConfig, Defaults({}), {}),
        ("trec", "Of `trec`.", TrecConfig, Defaults({}), {}),
    ):
        yield f"## {SECTION_OF_VERB[verb]}"
        yield sentence
        yield _of(model, defaults, told)
    yield f"## {SECTION_OF_VERB['tune']}"
    yield "Of `tune`, beside those of a training."
    yield _of(StageConfig, _defaults_of_stages(), stages, prefix="hpo.")


def _defaults_of_training() -> Defaults:
    others = {
        f"{group}={name}": compose_config("train", [f"{group}={name}"], task=TASK)
        for group in GROUPS
        for name in group_choices()[group]
    }
    others |= {f"task={task}": compose_config("train", [], task=task) for task in task_names()}
    return Defaults(compose_config("train", [], task=TASK), others)


def _defaults_of_stages() -> Defaults:
    stages = {name: {"hpo": compose_config(f"hpo/{name}", [])} for name in group_choices()["hpo"]}
    others = {f"hpo={name}": values for name, values in stages.items()}
    return Defaults(stages[STAGE], others)


def _comments(name: str) -> dict[str, str]:
    return comments_of_file(CONFIG_DIR / f"{name}.yaml", "")


def _comments_of_training() -> dict[str, str]:
    found = comments_of_group(CONFIG_DIR / "task", "task")
    for group in GROUPS:
        found |= comments_of_group(CONFIG_DIR / group, group)
    return {**found, **_comments("train")}


def _comments_of_stages() -> dict[str, str]:
    return comments_of_group(CONFIG_DIR / "hpo", "hpo")


def _of(
    model: type[BaseModel], defaults: Defaults, described: Mapping[str, str], *, prefix: str = ""
) -> str:
    """Return the table of a model that is no part of another one."""
    schema = model.model_json_schema()
    return _table(schema, schema, defaults, described, prefix=prefix)


def _table(
    section: Mapping[str, Any],
    root: Mapping[str, Any],
    defaults: Defaults,
    described: Mapping[str, str],
    *,
    prefix: str = "",
) -> str:
    """Return a table of settings.

    Args:
        section: the part of a JSON schema whose settings are listed.
        root: the JSON schema, for its references.
        defaults: the values of all settings.
        described: what each setting does, by key; else its model's docstring says so.
        prefix: what stands before the names.

    Raises:
        LookupError: nothing says what a setting does; with all such settings.
    """
    rows, unknown = [], []
    for key, part, told in _settings(section, root, prefix):
        told = described.get(key) or told
        if not told:
            unknown.append(key)
        rows.append((code(key), _type(part, root), defaults.shown(key, part), told))
    if unknown:
        raise LookupError(f"Say in configs/, or in its model, what it does: {', '.join(unknown)}.")
    return table(("setting", "value", "default", "what it does"), rows)


def _lookup(values: Mapping[str, Any], key: str, missing: Any) -> Any:
    """Return the value of a dotted key, `missing` where there is none."""
    found: Any = values
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return missing
        found = found[name]
    return found


def _value(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if value == MISSING:
        return "must be given"
    text = value if isinstance(value, str) else hydra_literal(value)
    return code(text) if len(text) <= LONG else "in its file"


def _settings(
    section: Mapping[str, Any], root: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yield the key of each setting, its JSON schema, and what the docstring says of it."""
    told = arguments_of(section.get("description", ""))
    for name, part in section["properties"].items():
        key = f"{prefix}{name}"
        if "$ref" not in part:
            yield key, part, told.get(name, "")
        for nested in (part, *part.get("anyOf", ())):
            if "$ref" in nested:
                yield from _settings(_resolved(nested, root), root, f"{key}.")


def _resolved(part: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = root["$defs"][part["$ref"].rpartition("/")[2]]
    return found


def _section(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return _resolved(schema["properties"][name], schema)


def _type(part: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Return what a value may be, in words."""
    if "$ref" in part:
        return "the settings below"
    if "anyOf" in part:
        return " or ".join(_type(one, root) for one in part["anyOf"])
    if "enum" in part or "const" in part:
        return ", ".join(code(value) for value in part.get("enum", [part.get("const")]))
    match part.get("type"):
        case "boolean":
            return "`true`, `false`"
        case "integer" | "number" as kind:
            return f"{kind}{_bounds(part)}"
        case "array":
            size = part.get("minItems", 0)
            some = f" of {size}" if size == part.get("maxItems") else ""
            return f"list{some}: {_type(part['items'], root)}"
        case "string":
            return "text"
        case "object":
            return "mapping"
        case "null":
            return "`null`"
    return "anything"


def _bounds(part: Mapping[str, Any]) -> str:
    names = {
        "minimum": ">=",
        "exclusiveMinimum": ">",
        "maximum": "<=",
        "exclusiveMaximum": "<",
    }
    return ",".join(f" {sign} {part[name]:.10g}" for name, sign in names.items() if name in part)
