"""The table of a series for the console."""

from collections.abc import Mapping, Sequence
from typing import Any

from psy_agents_noaug.metrics.comparison import MIN_TRAININGS
from psy_agents_noaug.metrics.tables import (
    beaten_line,
    format_value,
    posts_table,
    render_table,
    with_interval,
)
from psy_agents_noaug.run.series.plan import Series
from psy_agents_noaug.tasks.base import BASELINE

_OF_CRITERIA = {
    "F1": "f1",
    "AUROC": "auroc",
    "AP": "average_precision",
    "IOU F1": "evidence_iou_f1",
}


def series_table(series: Series, figures: Mapping[str, Any], *, headline: Sequence[str]) -> str:
    """Return the pooled figures, the baseline beside them, and the spread over folds and seeds.

    Args:
        series: the runs.
        figures: by name, without the split.
        headline: the main figures of the task.
    """
    parts = [_introduction(series, figures), _criteria(figures), _systems(figures, headline)]
    if "per_post/n_judged" in figures:
        parts.append(posts_table(figures))
    return "\n\n".join(filter(None, [*parts, _spread(series, figures)]))


def _introduction(series: Series, figures: Mapping[str, Any]) -> str:
    n_seeds = len(series.seeds)
    seeds = "1 seed" if n_seeds == 1 else f"{n_seeds} seeds"
    if series.folds:
        lines = [
            f"{len(series.folds.members)} folds, {seeds}: each post is judged by models that were "
            "trained, calibrated and given thresholds without it and its author.",
            "F1 is of the decisions on all folds; AUROC and AP are means over folds, whose scores are "
            "not comparable.",
        ]
    else:
        lines = [f"{seeds}, on {series.split}, on which the thresholds were fitted too."]
    if "n_posts" in figures:
        about = "other posts and other seeds"
        if n_seeds < MIN_TRAININGS:
            about = (
                f"other posts alone, as the spread over seeds needs {MIN_TRAININGS} seeds or more"
            )
        lines.append(f"{figures['n_posts']} posts; intervals are for {about}.")
    return "\n".join(lines)


def _criteria(figures: Mapping[str, Any]) -> str:
    suffix = "/n_pairs"
    names = [key.split("/")[1] for key in figures if key.endswith(suffix) and key.count("/") == 2]
    names = [name for name in names if f"per_criterion/{name}{suffix}" in figures]
    columns = {
        shown: key
        for shown, key in _OF_CRITERIA.items()
        if any(f"per_criterion/{name}/{key}" in figures for name in names)
    }
    if not columns:
        return ""
    rows = [["criterion", "met/pairs", *columns]]
    for name in names:
        prefix = f"per_criterion/{name}/"
        support = f"{figures.get(f'{prefix}n_positive', '')}/{figures[f'{prefix}n_pairs']}"
        rows.append(
            [name, support, *(with_interval(figures, prefix + k) for k in columns.values())]
        )
    macro = [key if key.startswith("evidence") else f"{key}_macro" for key in columns.values()]
    rows.append(["macro", "", *(with_interval(figures, key) for key in macro)])
    return render_table(rows, left=1, rules=(1, len(rows) - 1))


def _systems(figures: Mapping[str, Any], headline: Sequence[str]) -> str:
    prefix = f"baseline_{BASELINE}/"
    compared = [key for key in headline if f"{prefix}{key}_gain" in figures]
    if not compared:
        return ""
    rows = [["system", *(f"{key} [95 % interval]" for key in compared)]]
    for shown, before in (("model", ""), ("TF-IDF + LR", prefix)):
        rows.append([shown, *(with_interval(figures, before + key) for key in compared)])
    beaten = beaten_line(figures, {BASELINE: "TF-IDF + LR"}, key=compared[0], name=compared[0])
    return f"{render_table(rows, left=1)}\n{beaten}"


def _spread(series: Series, figures: Mapping[str, Any]) -> str:
    units = {"mean of runs": "mean_of_runs"}
    if series.folds:
        units["sd over folds"] = "sd_over_folds"
    if len(series.seeds) > 1:
        units["sd over seeds"] = "sd_over_seeds"
    names = [
        key.removeprefix("mean_of_runs/") for key in figures if key.startswith("mean_of_runs/")
    ]
    names = [name for name in names if not name.endswith("_undefined")]
    rows = [["each run by itself", *units]]
    for name in names:
        rows.append([name, *(format_value(figures.get(f"{u}/{name}")) for u in units.values())])
    return render_table(rows, left=1)
