"""Write the report of a run into its directory."""

from collections.abc import Iterable
from pathlib import Path

from psy_agents_noaug.data.splits import shown_split
from psy_agents_noaug.report.facts import RunFacts, facts_of
from psy_agents_noaug.report.figures import drawing
from psy_agents_noaug.report.page import Pictures, Section, Table, render
from psy_agents_noaug.report.run_report import run_sections
from psy_agents_noaug.report.series_facts import series_facts
from psy_agents_noaug.report.series_report import counted, series_sections
from psy_agents_noaug.report.tables import as_csv, as_latex
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.run.series.recorded import RecordedSeries, read_series
from psy_agents_noaug.tracking.base import without_private_parts
from psy_agents_noaug.utils.files import make_folder, storing, write_bytes, write_text


def write_report(folder: Path) -> Path:
    """Write report.html, and its figures and tables as files, from what a run has left behind.

    A second call on the same files writes the same bytes. Figures and tables of an earlier report that
    this one has not are removed.

    Args:
        folder: the directory of a run, a folder in its `evaluations/`, or that of a cross-validation or
            of several seeds.

    Returns:
        The page. Beside it are figures/ (PNG and PDF) and tables/ (CSV and LaTeX).

    Raises:
        ConfigError: there is nothing to report.
        DataError: metrics.json is damaged.
        StorageError: a file cannot be written.
    """
    series = read_series(folder)
    with drawing():
        title, lead, sections = _of_run(folder) if series is None else _of_series(series)
    page = render("report.html.jinja", title=title, sections=sections, lead=lead)
    directory = RunDirectory(folder)
    write_text(directory.report, page)
    write_only_parts(sections, directory)
    return directory.report


def write_only_parts(sections: Iterable[Section], directory: RunDirectory) -> None:
    """Write the figures and tables of sections, and remove those of an earlier page.

    Raises:
        StorageError: a file cannot be written or removed.
    """
    written = write_parts(sections, directory)
    # A figure of an earlier report may show what is no longer so.
    for path in (*directory.figures_folder.iterdir(), *directory.tables_folder.iterdir()):
        if path not in written and path.suffix in (".png", ".pdf", ".csv", ".tex"):
            with storing(path):
                path.unlink(missing_ok=True)


def write_parts(sections: Iterable[Section], directory: RunDirectory) -> set[Path]:
    """Write the figures and tables of sections into `figures/` and `tables/`, and return the files.

    Raises:
        StorageError: a file cannot be written.
    """
    figures, tables = directory.figures_folder, directory.tables_folder
    for folder in (figures, tables):
        make_folder(folder)
    content: dict[Path, bytes] = {}
    for part in (part for section in sections for part in section.parts):
        if isinstance(part, Table):
            content[tables / f"{part.name}.csv"] = as_csv(part).encode()
            content[tables / f"{part.name}.tex"] = as_latex(part).encode()
        elif isinstance(part, Pictures):
            for one in part.pictures:
                for kind in ("png", "pdf"):
                    content[figures / f"{one.name}.{kind}"] = one.files[kind]
    for path, data in content.items():
        write_bytes(path, data)
    return set(content)


def _of_run(folder: Path) -> tuple[str, str, list[Section]]:
    """Return title, lead and sections of the report of a run."""
    facts = facts_of(folder)
    what = "Evaluation" if facts.is_apart else "Run"
    lead = _lead(facts, f"on {shown_split(facts.splits[0].name)}")
    return f"{what} {facts.folder.name}: {facts.task}", lead, run_sections(facts)


def _of_series(series: RecordedSeries) -> tuple[str, str, list[Section]]:
    """Return title, lead and sections of the report of a series."""
    facts = series_facts(series)
    what = "Cross-validation" if series.has_folds else "Seeds"
    title = f"{what} {facts.pooled.folder.name}: {facts.pooled.task}"
    return title, _lead(facts.pooled, f"over {counted(facts)}"), series_sections(facts)


def _lead(facts: RunFacts, judged: str) -> str:
    model, made = (facts.manifest.get(key) for key in ("pretrained_model", "created_at"))
    parts = [
        f"The task {facts.task} {judged}",
        f"model {model}" if model else "",
        f"trained {str(made)[:10]}" if made else "",
    ]
    return without_private_parts(", ".join(filter(None, parts))) + "."
