"""Metrics and settings as text for the console."""

from collections.abc import Sequence
from typing import Any


def format_value(value: Any, spec: str = ".3f") -> str:
    """Return a value as text: a float by the format `spec`, None (undefined) as n/a."""
    if value is None:
        return "n/a"
    return format(value, spec) if isinstance(value, float) else str(value)


def render_table(rows: Sequence[Sequence[str]], *, left: int, rules: Sequence[int] = ()) -> str:
    """Return rows as aligned lines.

    Args:
        rows: cells, the same number in each row.
        left: number of columns that are aligned left; the others are aligned right.
        rules: indices of the rows that have a line of dashes above them.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for number, row in enumerate(rows):
        if number in rules:
            lines.append("-" * len(lines[0]))
        cells = (
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells))
    return "\n".join(lines)
