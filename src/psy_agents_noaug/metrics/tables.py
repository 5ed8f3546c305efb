"""Metrics and settings as text for the console."""

from collections.abc import Mapping, Sequence
from typing import Any

from psy_agents_noaug.metrics.names import (
    AGAINST_OTHERS,
    LABEL_BASELINES,
    MERGED_BY,
    those_against,
)
from psy_agents_noaug.metrics.values import NO_TRAINING_PAIRS


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


def compared_systems(
    metrics: Mapping[str, Any],
    baselines: Mapping[str, str],
    *,
    key: str,
    name: str,
    columns: Mapping[str, str],
    more_rows: Sequence[Sequence[str]] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return a row for the model and each baseline, and lines on which of them the model beats.

    Args:
        metrics: of a report, with those of each baseline after `baseline_<key of the baseline>/`.
        baselines: the shown name of each baseline; those without figures are said to be left out.
        key: of the compared figure.
        name: the shown name of the figure.
        columns: the keys of further figures, by their shown names.
        more_rows: below those of the systems.
        notes: lines below the table.
    """
    judged = {own: shown for own, shown in baselines.items() if f"baseline_{own}/{key}" in metrics}
    rows = [["system", f"{name} [95 % interval]", *columns]]
    for shown, prefix in {"model": "", **{v: f"baseline_{k}/" for k, v in judged.items()}}.items():
        cells = [format_value(metrics[prefix + column]) for column in columns.values()]
        rows.append([shown, with_interval(metrics, prefix + key), *cells])
    lines = [render_table([*rows, *more_rows], left=2), *notes]
    if absent := [shown for own, shown in baselines.items() if own not in judged]:
        lines.append(f"Left out, as {NO_TRAINING_PAIRS}: {', '.join(absent)}.")
    return "\n".join([*lines, beaten_line(metrics, judged, key=key, name=name)])


def against_others(
    metrics: Mapping[str, Any], key: str, *, n_columns: int, further: Sequence[str] = ()
) -> list[list[str]]:
    """Return the rows of the annotators and the model against the labels of other annotators.

    Args:
        metrics: of a report; without figures of annotators there are no rows.
        key: of the figure.
        n_columns: the number of columns after it.
        further: keys of figures of the first of these columns; the others are empty.
    """
    return [
        [
            shown.format(others=those_against(metrics.get(MERGED_BY))),
            with_interval(metrics, f"{prefix}{key}"),
            *(format_value(metrics[f"{prefix}{one}"]) for one in further),
            *[""] * (n_columns - len(further)),
        ]
        for prefix, shown in AGAINST_OTHERS.items()
        if f"{prefix}{key}" in metrics
    ]


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


def posts_table(metrics: Mapping[str, Any]) -> str:
    """Return the figures of whole posts in a few lines."""
    error, bias = (
        with_interval(metrics, f"per_post/n_met_{name}", spec=spec)
        for name, spec in (("mae", ".2f"), ("bias", "+.2f"))
    )
    lines = [
        f"{name} on whole posts, by their most probable sentence: macro-F1 "
        f"{with_interval(metrics, f'{prefix}per_post/f1_macro')}, "
        f"AUROC {format_value(metrics[f'{prefix}per_post/auroc_macro'])}"
        for name, prefix in (("model", ""), ("TF-IDF + LR", "baseline_tfidf_lr/"))
        if f"{prefix}per_post/f1_macro" in metrics
    ]
    compared = "per_post/f1_macro"
    if f"baseline_tfidf_lr/{compared}_gain" in metrics:
        systems = {"tfidf_lr": LABEL_BASELINES["tfidf_lr"]}
        lines.append(beaten_line(metrics, systems, key=compared, name="macro-F1 on whole posts"))
    lines.append(
        f"criteria met per post ({metrics['per_post/n_judged']} posts): mean absolute error {error}, "
        f"bias {bias}"
    )
    if "false_alarms_per_post" in metrics:
        lines.append(
            f"false alarms per post: {format_value(metrics['false_alarms_per_post'], '.2f')}"
        )
    if "per_post/episode/recall" in metrics:
        prefix = "per_post/episode/"
        cells = [
            f"{shown} {with_interval(metrics, prefix + name)}"
            for shown, name in (
                ("sensitivity", "recall"),
                ("specificity", "specificity"),
                ("PPV", "precision"),
            )
        ]
        count = f"{metrics[prefix + 'n_positive']} of {metrics[prefix + 'n_pairs']} posts"
        lines.append(f"five criteria or more, with A.1 or A.2 ({count}): {', '.join(cells)}")
    return "\n".join(lines)
