"""Settings as a command line has them: KEY=VALUE in Hydra's grammar, and texts as people write them."""

import functools
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from psy_agents_noaug.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides. A setting that is a text takes what is written, and no setting has two values.

    Raises:
        ConfigError: a line is no KEY=VALUE, or is a sweep; says how a text is quoted.
    """
    parser = OverridesParser.create()
    parsed = [_parse_one(parser, line) for line in overrides]
    sweeps = [str(override.input_line) for override in parsed if override.is_sweep_override()]
    if sweeps:
        raise ConfigError(
            f"`{'`, `'.join(sweeps)}`: a setting has one value. A list is written KEY=[A,B]; a text "
            "with a comma is quoted for Hydra and for the shell, "
            f"{' '.join(map(_quoted, sweeps))}; psy-agents tune searches over values."
        )
    return parsed


def hydra_literal(value: Any) -> str:
    """Spell a YAML value in Hydra's override grammar."""
    if isinstance(value, str):
        # A backslash stands for itself in Hydra's grammar, but before a quote.
        escaped = re.sub(r"(\\*)(')", r"\1\1\\'", value)
        trailing = len(value) - len(value.rstrip("\\"))
        return "'" + escaped + "\\" * trailing + "'"
    if isinstance(value, list):
        return f"[{','.join(hydra_literal(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{hydra_literal(v)}" for k, v in value.items()) + "}"
    # Not looked up by value: 1.0 and 0 are equal to True and False.
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def one_line(error: BaseException) -> str:
    """Return the message of Hydra's errors in one line, without the paths that it searched."""
    text = str(error).split("Config search path")[0]
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _parse_one(parser: OverridesParser, line: str) -> Override:
    """Parse an override. What Hydra cannot read, and a number where a text belongs, is a text."""
    key, _, value = line.partition("=")
    as_text = f"{key}={hydra_literal(os.path.expanduser(value))}"  # noqa: PTH111 (not only paths)
    try:
        override = parser.parse_override(line)
    except HydraException as error:
        if _is_plain(line):
            return parser.parse_override(as_text)
        advice = f" A text is quoted for Hydra and for the shell: {_quoted(line)}" if value else ""
        raise ConfigError(
            f"The command line must hold key=value pairs: {one_line(error)}.{advice}"
        ) from error
    if override.is_sweep_override() or override.is_delete():
        return override
    is_text = not isinstance(override.value(), bool | int | float)
    # Hydra reads 2024_11_03 as 20241103, and a commit like 12e4567 as infinity.
    if is_text or override.key_or_group not in _text_settings():
        return override
    return parser.parse_override(as_text)


def _is_plain(line: str) -> bool:
    """Whether a line is KEY=TEXT, and the text is none of Hydra's lists, mappings and quoted texts."""
    key, assigned, value = line.partition("=")
    has_key = re.fullmatch(r"\+{0,2}[A-Za-z_][\w./-]*", key) is not None
    is_text = (
        value.isprintable() and not value.startswith(("[", "{", "'", '"')) and "${" not in value
    )
    return bool(assigned) and has_key and is_text


def _quoted(line: str) -> str:
    """Spell KEY=TEXT for a shell, so that Hydra takes the text as it is."""
    key, _, value = line.partition("=")
    spelled = f"{key}={hydra_literal(value)}"
    return shlex.quote(spelled) if re.search(r'["$`\\!]', spelled) else f'"{spelled}"'


@functools.cache
def _text_settings() -> frozenset[str]:
    """Return the dotted keys of the settings that are texts."""
    from psy_agents_noaug.config import schema

    schemas = (
        schema.TrainConfig,
        schema.EvaluateConfig,
        schema.PredictConfig,
        schema.ExportConfig,
        schema.ImportConfig,
    )
    return frozenset(key for schema in schemas for key in _text_keys(schema, ""))


def _text_keys(schema: type["BaseModel"], prefix: str) -> Iterator[str]:
    from pydantic import BaseModel

    for name, field in schema.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _text_keys(annotation, f"{prefix}{name}.")
            continue
        alternatives = get_args(annotation) or (annotation,)
        # Of Annotated[str, ...] the first argument is the type.
        types = {(get_args(one) or (one,))[0] for one in alternatives} - {type(None)}
        if types == {str}:
            yield f"{prefix}{name}"
