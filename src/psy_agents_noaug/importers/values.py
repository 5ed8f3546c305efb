"""Values of JSON as `table_formats.parse_json` gives them: integers are text. Any may be wrong."""

import re
from collections.abc import Mapping
from typing import Any

_INTEGER = re.compile(r"-?[0-9]{1,15}")


def integer(value: Any) -> int | None:
    """Return a whole number, None for anything else."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    return None


def offsets(start: Any, end: Any) -> tuple[int, int] | None:
    """Return a range, None unless both ends are whole numbers and the range holds something."""
    first, last = integer(start), integer(end)
    if first is None or last is None or not 0 <= first < last:
        return None
    return first, last


def name(value: Any) -> str | None:
    """Return an identifier or a label, None for what is none (true, {}, "")."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return None


def items(value: Any) -> list[Any]:
    """Return a list, an empty one for null, and for anything else one of it."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def mapping(value: Any) -> Mapping[str, Any]:
    """Return an object, an empty one for anything else."""
    return value if isinstance(value, dict) else {}
