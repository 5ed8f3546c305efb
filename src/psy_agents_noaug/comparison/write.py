"""The files of a comparison: JSON, CSV and LaTeX."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from psy_agents_noaug.comparison.compare import SystemComparison, compare_systems
from psy_agents_noaug.comparison.systems import read_systems
from psy_agents_noaug.comparison.tables import answer, introduction, tables_of
from psy_agents_noaug.report.page import Section, Table, Text, render
from psy_agents_noaug.report.tables import as_latex
from psy_agents_noaug.utils.files import make_folder, write_json, write_text
from psy_agents_noaug.utils.shown import spreadsheet_cell


def compare_and_write(
    words: Sequence[str], *, split: str, output: Path | None
) -> tuple[SystemComparison, Path]:
    """Compare systems, and write the files of the comparison.

    Args:
        words: the systems, see `read_systems`.
        split: val, test or all.
        output: a folder; None: one that is named by the time, in `outputs/comparisons`.

    Returns:
        The comparison, and the folder.

    Raises:
        ConfigError: the systems cannot be compared; nothing was written.
        StorageError: a file cannot be written.
    """
    comparison = compare_systems(read_systems(words, split=split), split=split)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = output or Path("outputs") / "comparisons" / stamp
    make_folder(folder)
    write_json(folder / "comparison.json", asdict(comparison))
    write_text(folder / "figures.csv", _csv(_figures(comparison)))
    for name in ("agreement", "posts"):
        rows = (
            {"system_1": pair.first, "system_2": pair.second, **asdict(row)}
            for pair in comparison.pairs
            for row in getattr(pair, name)
        )
        write_text(folder / f"{name}.csv", _csv(rows))
    tables = [tables_of(comparison, number) for number in range(len(comparison.pairs))]
    write_text(folder / "comparison.tex", "\n".join(_latex(t) for own in tables for t in own))
    write_text(folder / "comparison.html", _page(comparison, tables))
    return comparison, folder


def _latex(table: Table) -> str:
    """Return a table with its notes in its caption."""
    return as_latex(replace(table, caption=". ".join([table.caption, *table.notes])))


def _page(comparison: SystemComparison, tables: Sequence[Sequence[Table]]) -> str:
    """Return the page: what was compared, then a section for each two systems."""
    lead, *notes = introduction(comparison)
    sections = [
        Section(f"{pair.first} against {pair.second}", [Text([answer(pair)], style="answer"), *own])
        for pair, own in zip(comparison.pairs, tables, strict=True)
    ]
    runs = [[name, ", ".join(paths)] for name, paths in comparison.runs.items()]
    systems = Table("systems", "Systems", ["system", "runs"], runs, left=2)
    about = Section("What is compared", [Text([lead]), Text(notes, style="note"), systems])
    return render("base.html.jinja", title="Comparison of systems", sections=[about, *sections])


def _figures(comparison: SystemComparison) -> Iterable[dict[str, Any]]:
    """Yield a row per figure of two systems."""
    for pair in comparison.pairs:
        for row in (*pair.headline, *pair.criteria):
            yield {
                "system_1": pair.first,
                "system_2": pair.second,
                "figure": row.figure,
                "criterion": row.criterion,
                **(asdict(row.found) if row.found else {}),
                "p_adjusted": row.p_adjusted,
                "result": row.result,
            }


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: spreadsheet_cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()
