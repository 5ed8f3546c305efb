"""Figures as text for the console."""

from collections.abc import Sequence
from typing import Any


def format_value(value: Any, spec: str = ".3f") -> str:
    """Render a figure or a setting: a float by `spec`, an undefined figure (None) as n/a."""
    if value is None:
        return "n/a"
    return format(value, spec) if isinstance(value, float) else str(value)


def render_table(rows: Sequence[Sequence[str]], *, left: int, rules: Sequence[int] = ()) -> str:
    """Align the cells of rows; the first `left` columns to the left, with a rule above some rows."""
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
