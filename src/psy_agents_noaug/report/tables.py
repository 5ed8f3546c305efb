"""Tables of a report, from the figures of metrics.json as they are; and tables as CSV and LaTeX."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from psy_agents_noaug.metrics.names import (
    AGAINST_OTHERS,
    CALIBRATION_FIGURES,
    DECISION_FIGURES,
    EVIDENCE_FIGURES,
    HEADLINES,
    LABEL_FIGURES,
    MERGED_BY,
    those_against,
)
from psy_agents_noaug.metrics.subgroups import FIGURES as SUBGROUP_FIGURES
from psy_agents_noaug.metrics.tables import format_value, with_interval
from psy_agents_noaug.report.page import Cell, Table
from psy_agents_noaug.utils.shown import spreadsheet_cell

Figures = Mapping[str, Any]
_OUTCOMES = {
    "found": "true_positives",
    "missed": "false_negatives",
    "false alarms": "false_positives",
    "rightly unmet": "true_negatives",
}
# Intervals that would be dots, and figures without an interval by criterion.
_NOT_DRAWN = ("specificity", "npv", *EVIDENCE_FIGURES.values())


def cell(figures: Figures, key: str, *, spec: str = ".3f", is_drawn: bool = True) -> Cell:
    """Return a figure with its interval, where it has one, as the console shows it.

    Args:
        figures: of a split.
        key: of the figure.
        spec: its format.
        is_drawn: whether the interval is drawn beside it; only of figures in [0, 1].
    """
    value = figures[key]
    if f"{key}_ci_low" not in figures:
        return Cell(format_value(value, spec), value)
    low, high = (figures[f"{key}_ci_{end}"] for end in ("low", "high"))
    return Cell(with_interval(figures, key, spec=spec), value, low, high, is_drawn=is_drawn)


def criteria_tables(
    figures: Figures, criteria: Mapping[str, str], *, split: str
) -> Iterator[Table]:
    """Yield the tables that have a row per criterion, those that the figures have.

    Args:
        figures: of the split.
        criteria: the names, by id.
        split: for the captions.
    """
    kinds = (
        ("labels", "Labels by criterion", LABEL_FIGURES, ("n_positive", "n_pairs"), "met / pairs"),
        ("decisions", "Decisions by criterion", DECISION_FIGURES, None, ""),
        (
            "evidence",
            "Evidence by criterion",
            EVIDENCE_FIGURES,
            ("n_answerable", "evidence_n_pairs"),
            "answerable",
        ),
    )
    for name, caption, columns, support, shown in kinds:
        keys = [f"per_criterion/{one}/" for one in criteria]
        columns = {n: key for n, key in columns.items() if keys and f"{keys[0]}{key}" in figures}
        if not columns:
            continue
        if support and not all(f"{keys[0]}{count}" in figures for count in support):
            support = None
        rows = [
            [one, criteria[one]]
            + ([f"{figures[p + support[0]]}/{figures[p + support[1]]}"] if support else [])
            + [cell(figures, p + key, is_drawn=key not in _NOT_DRAWN) for key in columns.values()]
            for one, p in zip(criteria, keys, strict=True)
        ]
        head = ["criterion", "name", *([shown] if support else []), *columns]
        averages = _averages(figures, columns, support)
        if name == "labels" and "annotators/f1_macro" in figures:
            head.append("F1 of annotators")
            of_annotators = [*(f"{key}f1" for key in keys), "f1_macro", "f1_micro"]
            for row, key in zip([*rows, *averages], of_annotators, strict=True):
                row.append(cell(figures, f"annotators/{key}"))
        yield Table(
            f"{name}_{split}",
            f"{caption}, {split}",
            head,
            [*rows, *averages],
            left=2,
            n_last=len(averages),
        )


def _averages(
    figures: Figures, columns: Mapping[str, str], support: tuple[str, str] | None
) -> list[list[str | Cell]]:
    """Return the rows of the macro average and, of labels, of all pairs."""
    rows: list[list[str | Cell]] = []
    for kind, suffix in (("macro", ""), ("macro", "_macro"), ("micro", "_micro")):
        if not support or not all(f"{key}{suffix}" in figures for key in columns.values()):
            continue
        counts = f"{figures[support[0]]}/{figures[support[1]]}"
        n = figures.get("evidence_n_criteria_in_macro" if not suffix else "n_criteria_in_macro")
        name = f"mean of {n} criteria" if kind == "macro" else "all pairs together"
        cells = [
            cell(figures, f"{key}{suffix}", is_drawn=key not in _NOT_DRAWN)
            for key in columns.values()
        ]
        rows.append([kind, name, counts, *cells])
    return rows


def outcomes_table(figures: Figures, criteria: Mapping[str, str], *, split: str) -> Table:
    """Return the confusion of each criterion."""
    rows = [
        [one, name, *(str(figures[f"per_criterion/{one}/{key}"]) for key in _OUTCOMES.values())]
        for one, name in criteria.items()
    ]
    head = ["criterion", "name", *_OUTCOMES]
    return Table(f"confusion_{split}", f"Confusion by criterion, {split}", head, rows, left=2)


def systems_tables(figures: Figures, *, split: str) -> Iterator[Table]:
    """Yield a table of the model and its baselines for each figure that systems are compared by."""
    for key, (name, baselines) in HEADLINES.items():
        judged = {
            own: shown for own, shown in baselines.items() if f"baseline_{own}/{key}" in figures
        }
        if key not in figures:
            continue
        rows: list[list[str | Cell]] = [["model", cell(figures, key), ""]]
        for own, shown in judged.items():
            prefix = f"baseline_{own}/{key}"
            gain = cell(figures, f"{prefix}_gain", spec="+.3f", is_drawn=False)
            rows.append([shown, cell(figures, prefix), gain])
        for prefix, shown in AGAINST_OTHERS.items():
            if f"{prefix}{key}" in figures:
                shown = shown.format(others=those_against(figures.get(MERGED_BY)))
                row: list[str | Cell] = [shown, cell(figures, f"{prefix}{key}"), ""]
                if f"{prefix}{key}_gain" in figures:
                    row[2] = cell(figures, f"{prefix}{key}_gain", spec="+.3f", is_drawn=False)
                rows.append(row)
        head = ["system", f"{name} [95 % interval]", "model minus baseline, paired"]
        yield Table(f"systems_{key}_{split}", f"Model and baselines by {name}, {split}", head, rows)


def calibration_table(figures: Figures, *, split: str) -> Table | None:
    """Return the measures of the probabilities as they are, and after calibration."""
    rows: list[list[str | Cell]] = [
        [
            name,
            *(cell(figures, prefix + key, is_drawn=False) for key in CALIBRATION_FIGURES.values()),
        ]
        for name, prefix in {"raw": "", "calibrated": "calibrated/"}.items()
        if f"{prefix}brier_skill" in figures
    ]
    head = ["probabilities", *CALIBRATION_FIGURES]
    return Table(f"calibration_{split}", f"Calibration, {split}", head, rows) if rows else None


def subgroup_prefixes(figures: Figures) -> dict[tuple[str, str], str]:
    """Return the prefix of the figures of each subgroup, by what divides the pairs and its value."""
    prefixes = {}
    for key in figures:
        if key.startswith("subgroup/") and key.endswith("/n_pairs"):
            _, name, value, _ = key.split("/", 3)
            prefixes[name, value] = key.removesuffix("n_pairs")
    return prefixes


def subgroups_table(figures: Figures, *, split: str) -> Table:
    """Return a row per subgroup of the pairs."""
    counts = ("n_pairs", "n_positive")
    rows: list[list[str | Cell]] = [
        [name, value]
        + [str(figures[f"{prefix}{count}"]) for count in counts]
        + [cell(figures, f"{prefix}{figure}") for figure in SUBGROUP_FIGURES]
        for (name, value), prefix in subgroup_prefixes(figures).items()
    ]
    head = ["divided by", "value", "pairs", "met", "macro-F1", "micro-F1", "AUROC (all pairs)"]
    return Table(f"subgroups_{split}", f"Subgroups, {split}", head, rows, left=2)


def figures_table(figures: Figures, names: Mapping[str, str], *, name: str, caption: str) -> Table:
    """Return a row per figure.

    Args:
        figures: of a split.
        names: the keys, by the shown names.
        name: of the table.
        caption: of the table.
    """
    rows: list[list[str | Cell]] = [
        [shown, cell(figures, key, is_drawn=False)] for shown, key in names.items()
    ]
    return Table(name, caption, ["figure", "value"], rows)


def top_level(figures: Figures) -> list[str]:
    """Return the keys of the figures of a whole split: no parts of it, no ends of intervals."""
    return [
        key
        for key, value in figures.items()
        if "/" not in key
        and not key.endswith(("_ci_low", "_ci_high", "_undefined"))
        and not isinstance(value, str)
    ]


def as_csv(table: Table) -> str:
    """Return a table as CSV. A figure has its own column, unrounded, and so has each end."""
    parted = _parted_columns(table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [
        column
        for name, is_parted in zip(table.head, parted, strict=True)
        for column in ([name, f"{name}, low", f"{name}, high"] if is_parted else [name])
    ]
    writer.writerow([spreadsheet_cell(name) for name in head])
    for row in table.rows:
        cells: list[object] = []
        for one, is_parted in zip(row, parted, strict=True):
            if is_parted and isinstance(one, Cell):
                cells += [one.value, one.low, one.high]
            else:
                own = one.value if isinstance(one, Cell) and one.value is not None else str(one)
                cells += [own, "", ""] if is_parted else [own]
        writer.writerow(["" if c is None else spreadsheet_cell(c) for c in cells])
    return text.getvalue()


def _parted_columns(table: Table) -> list[bool]:
    return [
        any(isinstance(row[n], Cell) and row[n].low is not None for row in table.rows)  # type: ignore[union-attr]
        for n in range(len(table.head))
    ]


def as_latex(table: Table) -> str:
    """Return a table as LaTeX of the package booktabs, with its caption and label."""
    columns = "l" * table.left + "r" * (len(table.head) - table.left)
    lines = [
        r"\begin{table}",
        rf"\caption{{{_escaped(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_row(table.head),
        r"\midrule",
        *(_latex_row(row) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str | Cell]) -> str:
    # A bracket at the start of a row would be read as an argument of the `\\` before it.
    shown = [_escaped(str(one)) for one in cells]
    return " & ".join(f"{{{one}}}" if one.startswith("[") else one for one in shown) + r" \\"


def _escaped(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    }
    return "".join(special.get(sign, sign) for sign in text)
