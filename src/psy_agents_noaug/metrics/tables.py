"""Metrics and settings as text for the console."""

from collections.abc import Mapping, Sequence
from typing import Any


def format_value(value: Any, spec: str = ".3f") -> str:
    """Return a value as text: a float by the format `spec`, None (undefined) as n/a."""
    if value is None:
        return "n/a"
    return format(value, spec) if isinstance(value, float) else str(value)


def with_interval(metrics: Mapping[str, Any], key: str, *, spec: str = ".3f") -> str:
    """Return a figure with its interval, `0.460 [0.381, 0.508]`; `too few` where it has none."""
    value = format_value(metrics[key], spec)
    if metrics[key] is None:
        return value
    low, high = metrics[f"{key}_ci_low"], metrics[f"{key}_ci_high"]
    if low is None or high is None:
        return f"{value} [too few]"
    return f"{value} [{format_value(low, spec)}, {format_value(high, spec)}]"


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


def beaten_line(
    metrics: Mapping[str, Any], baselines: Mapping[str, str], *, key: str, name: str
) -> str:
    """Return a sentence on the baselines that the model does not beat beyond the paired interval.

    Args:
        metrics: with `baseline_<key of the baseline>/<key>_gain` and its interval.
        baselines: the shown name of each baseline.
        key: of the compared figure.
        name: the shown name of the figure.
    """
    not_better, worse = [], []
    for baseline, shown in baselines.items():
        prefix = f"baseline_{baseline}/{key}_gain"
        low, high = metrics[f"{prefix}_ci_low"], metrics[f"{prefix}_ci_high"]
        difference = f"{shown} (difference {with_interval(metrics, prefix, spec='+.3f')})"
        if high is not None and high < 0:
            worse.append(difference)
        elif low is None or low <= 0:
            not_better.append(difference)
    lines = []
    if worse:
        lines.append(f"By {name} the model is WORSE than: {'; '.join(worse)}.")
    if not_better:
        lines.append(
            f"By {name} the model is NOT shown to be better than: {'; '.join(not_better)}."
        )
    if not lines:
        beaten = "each baseline" if len(baselines) > 1 else next(iter(baselines.values()))
        lines.append(f"By {name} the model is better than {beaten} (paired 95 % intervals).")
    return "\n".join(lines)
