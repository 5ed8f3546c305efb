"""What the comments in configs/ say of each setting."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_COMMENT = re.compile(r"\s+#\s?(.*)")


def comments_of_group(folder: Path, package: str) -> dict[str, str]:
    """Return the comments of all files of a group by dotted key; those of an earlier file win.

    Args:
        folder: of the group; the names of what others are made of begin with an underscore.
        package: where the settings of the group are, such as `data`.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.yaml")):
        found = {**comments_of_file(path, package), **found}
    return found


def comments_of_file(path: Path, package: str) -> dict[str, str]:
    """Return the comments of a file, and of the files that its defaults name, by dotted key.

    A comment stands behind its key, and goes on in the lines below that are indented further; or above.
    """
    text = path.read_text(encoding="utf-8")
    if text.startswith("# @package _global_"):
        package = ""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found: dict[str, str] = {}
    if not isinstance(root, yaml.MappingNode):
        return found
    for name, place in _parts(yaml.safe_load(text).get("defaults", [])):
        found |= comments_of_file(path.parent / f"{name}.yaml", place or package)
    lines = text.splitlines()
    for key, node in _nodes(root, package):
        if comment := _comment(lines, *node):
            found[key] = comment
    return found


def _parts(defaults: list[Any]) -> Iterator[tuple[str, str]]:
    """Yield the files of the same group that a defaults list names, and their packages, if given."""
    for entry in defaults:
        if isinstance(entry, str) and entry != "_self_":
            name, _, package = entry.partition("@")
            yield name, package


def _nodes(
    mapping: yaml.MappingNode, prefix: str
) -> Iterator[tuple[str, tuple[yaml.Node, yaml.Node]]]:
    """Yield each key, dotted, with its own node and that of its value."""
    for key, value in mapping.value:
        if key.value == "defaults" and not prefix:
            continue
        dotted = f"{prefix}.{key.value}" if prefix else key.value
        yield dotted, (key, value)
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _nodes(value, dotted)


def _comment(lines: list[str], key: yaml.Node, value: yaml.Node) -> str:
    is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    end = key.end_mark if is_block else value.end_mark
    column = end.column + 1 if is_block else end.column  # behind the colon
    found: list[str] = []
    above = key.start_mark.line - 1
    while (
        above > 0
        and lines[above].strip().startswith("#")
        and _indent(lines[above]) == key.start_mark.column
    ):
        found.insert(0, lines[above].strip(" #"))
        above -= 1
    if above == 0 and lines[0].startswith("#"):
        found = []  # the head of the file
    if behind := _COMMENT.match(lines[end.line][column:]):
        found.append(behind[1].strip())
        for line in lines[end.line + 1 :]:
            if not line.strip().startswith("#") or _indent(line) <= key.start_mark.column:
                break
            found.append(line.strip(" #"))
    return " ".join(found)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
