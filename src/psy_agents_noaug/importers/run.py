"""The story of an import: read, verify, map, write, and report what was read and what was left."""

import csv
import io
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psy_agents_noaug.config.schema import ImportConfig
from psy_agents_noaug.data.alignment import given_spans
from psy_agents_noaug.data.annotators import conflicts
from psy_agents_noaug.data.corpus import Corpus, load_corpus, read_criteria
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE, Criterion
from psy_agents_noaug.data.validation import UNREADABLE, Fault, raise_faults
from psy_agents_noaug.errors import ConfigError, DataError, first_of, not_one_of
from psy_agents_noaug.importers import brat, doccano, inception, labelstudio, spacy
from psy_agents_noaug.importers.documents import Reading
from psy_agents_noaug.importers.labels import LabelMap, read_map, shown_label
from psy_agents_noaug.importers.settings import ReadSettings
from psy_agents_noaug.importers.sources import SourceFile, read_sources
from psy_agents_noaug.importers.tables import ASKED_ALONE, Row, Tables, make_tables
from psy_agents_noaug.importers.whole import Rules
from psy_agents_noaug.metrics.tables import render_table
from psy_agents_noaug.utils.files import (
    check_unused,
    sha256_of_file,
    write_bytes,
    write_json,
    written_whole,
)

REPORT = "import.json"
_Reader = Callable[[Sequence[SourceFile], ReadSettings], Reading]
_TOOLS: dict[str, tuple[_Reader, tuple[str, ...]]] = {
    "labelstudio": (labelstudio.read, labelstudio.SUFFIXES),
    "doccano": (doccano.read, doccano.SUFFIXES),
    "brat": (brat.read, brat.SUFFIXES),
    "inception": (inception.read, inception.SUFFIXES),
    "spacy": (spacy.read, spacy.SUFFIXES),
}
TOOLS = tuple(_TOOLS)
_NOT_NAMED = "(not named)"
_OF_LABEL_STUDIO = ("ground_truth_only", "with_predictions", "fields")
_ANNOTATION_COLUMNS = tuple(Row.__annotations__)
_TYPES = {"status": pa.int8(), "start_char": pa.int64(), "end_char": pa.int64()}


def import_annotations(tool: str, path: Path, config: ImportConfig) -> str:
    """Write the tables of the data contract from the export of an annotation tool.

    Args:
        tool: one of `TOOLS`.
        path: the export: a file, a folder or a zip archive.
        config: what the user says of it.

    Returns:
        The report for the console.

    Raises:
        DataError: lists all faults of the export; nothing is written then.
        ConfigError: a setting is of another tool, or the output folder is in use.
        StorageError: the tables cannot be written.
    """
    if tool not in _TOOLS:
        raise ConfigError(not_one_of("TOOL", TOOLS, tool))
    _check_settings(tool, config)
    if path.name in ("", ".."):  # the current folder or one above it, which have no own name
        path = path.resolve()
    output = Path(config.output) if config.output else path.parent / f"{path.stem}_tables"
    check_unused(output, what="import")
    criteria = _criteria(config)
    labels = read_map(config.map, criteria)
    reader, suffixes = _TOOLS[tool]
    files = read_sources(path, suffixes)
    reading = reader(files, _read_settings(config, labels))
    tables, used = make_tables(
        reading,
        labels=labels,
        rules=_rules(config),
        criteria=criteria,
        keeps_criteria=config.criteria is not None,
    )
    reading.faults += _unwritable(tables, reading)
    _raise_all(path, reading, labels)
    if not tables.rows:
        raise DataError(f"{path}: no document has a label of a criterion. {_left(reading)}")
    with written_whole(output) as folder:
        _write_tables(folder, tables, used, config.format)
        corpus = _checked_corpus(folder, config.format)
        report = _report(tool, path, config, tables, reading, labels, corpus)
        write_json(folder / REPORT, report)
    return _summary(report, output, config.format)


def _check_settings(tool: str, config: ImportConfig) -> None:
    given = [key for key in _OF_LABEL_STUDIO if getattr(config, key)]
    if given and tool != "labelstudio":
        raise ConfigError(f"`{'`, `'.join(given)}` belong to labelstudio, not to {tool}.")


def _criteria(config: ImportConfig) -> Sequence[Criterion]:
    if config.criteria is None:
        return MAJOR_DEPRESSIVE_EPISODE
    return read_criteria(Path(config.criteria), {})


def _read_settings(config: ImportConfig, labels: LabelMap) -> ReadSettings:
    return ReadSettings(
        text=config.text,
        id=config.id,
        group=config.group,
        fields=None if config.fields is None else tuple(config.fields),
        with_predictions=config.with_predictions,
        ground_truth_only=config.ground_truth_only,
        is_label=labels.knows,
    )


def _rules(config: ImportConfig) -> Rules:
    return Rules(
        unit=config.offset_unit,
        spans_imply_label=config.spans_imply_label,
        empty=config.empty,
        negatives=config.negatives,
        annotators=None if config.annotators is None else [str(a) for a in config.annotators],
        leaves_out_faulty=config.faulty == "leave_out",
    )


def _unwritable(tables: Tables, reading: Reading) -> Iterator[Fault]:
    """Yield a fault for each name in the report that is no text that can be written."""
    rule = "must not have NUL or unpaired surrogates"
    for reason, places in reading.left.places.items():
        place = places[0].encode("utf-8", "backslashreplace").decode()
        if UNREADABLE.search(reason):
            yield Fault(place, f"names of controls, features and attributes {rule}")
        if any(map(UNREADABLE.search, places)):
            yield Fault(place, f"names of files and identifiers of tasks {rule}")
    for label in (*tables.labels, *tables.labels_left_out):
        if UNREADABLE.search(label):
            yield Fault(f"a label of {len(label)} characters", rule)


def _raise_all(path: Path, reading: Reading, labels: LabelMap) -> None:
    """Refuse faults of documents and labels that are not known, in one message."""
    messages = []
    for check in (
        labels.raise_unknown,
        lambda: raise_faults(f"{path} cannot be imported as it is:", reading.faults),
    ):
        try:
            check()
        except DataError as error:
            messages.append(str(error))
    if messages:
        raise DataError("\n".join(messages))


# -------------------------------------------------------------------------------------------- tables


def _write_tables(folder: Path, tables: Tables, criteria: Sequence[Criterion], kind: str) -> None:
    posts = _table(("post_id", "text", "group_id"), tables.posts)
    annotations = _table(_ANNOTATION_COLUMNS, tables.rows)
    own = [(c.criterion_id, c.name, c.text, "|".join(c.aliases) or None) for c in criteria]
    written = {
        "posts": _without_empty(posts, ("group_id",)),
        "annotations": _without_empty(annotations, ("annotator_id", "explanation")),
        "criteria": _table(("criterion_id", "name", "text", "aliases"), own),
    }
    for name, table in written.items():
        write_bytes(folder / f"{name}.{kind}", _content(table, kind), mode=0o600)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> pa.Table:
    cells = list(zip(*rows, strict=True)) or [()] * len(columns)
    return pa.table(
        {
            name: pa.array(values, type=_TYPES.get(name, pa.string()))
            for name, values in zip(columns, cells, strict=True)
        }
    )


def _without_empty(table: pa.Table, names: Sequence[str]) -> pa.Table:
    empty = [name for name in names if table.column(name).null_count == table.num_rows]
    return table.drop_columns(empty)


def _content(table: pa.Table, kind: str) -> bytes:
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(table.column_names)
    writer.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return lines.getvalue().encode()


def _checked_corpus(folder: Path, kind: str) -> Corpus:
    """Read the tables back as a training does."""
    return load_corpus(
        posts=folder / f"posts.{kind}",
        annotations=folder / f"annotations.{kind}",
        criteria=folder / f"criteria.{kind}",
        columns={},
        ignored_criteria=[],
    )


# -------------------------------------------------------------------------------------------- report


def _report(
    tool: str,
    path: Path,
    config: ImportConfig,
    tables: Tables,
    reading: Reading,
    labels: LabelMap,
    corpus: Corpus,
) -> dict[str, Any]:
    by_criterion = {
        c.criterion_id: {"name": c.name, "posts_met": 0, "spans": 0, "status_0": 0}
        for c in corpus.criteria
    }
    met = {(row.post_id, row.criterion_id) for row in tables.rows if row.status}
    for criterion_id, number in Counter(criterion_id for _, criterion_id in met).items():
        by_criterion[criterion_id]["posts_met"] = number
    for row in tables.rows:
        own: dict[str, Any] = by_criterion[row.criterion_id]
        own["spans"] += row.start_char is not None and row.status
        own["status_0"] += not row.status
    disagreements = conflicts(corpus.annotations, spans=given_spans(corpus.annotations))
    return {
        "format": 1,
        "tool": tool,
        "file": path.name,
        "sha256": sha256_of_file(path) if path.is_file() else None,
        "settings": config.model_dump(exclude={"map", "output", "criteria"}),
        "posts": len(tables.posts),
        "annotations": len(tables.rows),
        "documents": tables.counts["documents"],
        "annotators": {name or _NOT_NAMED: n for name, n in sorted(tables.annotators.items())},
        "criteria": by_criterion,
        "labels": {label: dict(own) for label, own in sorted(tables.labels.items())},
        "labels_left_out": dict(tables.labels_left_out),
        "map_entries_without_label": labels.unused(),
        "offset_units": {unit: n for unit, n in tables.units.items() if n},
        "counts": {k: n for k, n in tables.counts.items() if n and k != "documents"},
        "left": reading.left.to_json(),
        "notes": reading.notes,
        "pairs_of_disagreement": len(disagreements),
    }


def _left(reading: Reading) -> str:
    counts = [f"{number:,} {reason}" for reason, number in reading.left.counts().items()]
    return f"Left: {'; '.join(counts)}." if counts else ""


def _summary(report: dict[str, Any], output: Path, kind: str) -> str:
    rows = [["criterion", "", "posts met", "spans", "rows of status 0"]]
    for criterion_id, own in report["criteria"].items():
        counts = (own["posts_met"], own["spans"], own["status_0"])
        rows.append([criterion_id, own["name"], *(f"{number:,}" for number in counts)])
    annotators = [f"{name} {number:,}" for name, number in report["annotators"].items()]
    units = [f"{unit} {number:,}" for unit, number in report["offset_units"].items()]
    lines = [
        "",
        render_table(rows, left=2),
        "",
        f"{report['documents']:,} documents: {report['posts']:,} posts, "
        f"{report['annotations']:,} annotations",
        f"documents by annotator: {first_of(annotators)}",
        *([f"documents by unit of their offsets: {', '.join(units)}"] if units else []),
        *(f"{text}: {number:,}" for text, number in report["counts"].items()),
    ]
    if report["left"]:
        lines += ["left out:", *(f"  {own['n']:,} {r}" for r, own in report["left"].items())]
    if report["labels_left_out"]:
        names = [f"{shown_label(n)} {k:,}" for n, k in report["labels_left_out"].items()]
        lines.append(f"labels that the map leaves out: {first_of(names)}")
    if unused := report["map_entries_without_label"]:
        lines.append(f"no label of the map: {first_of(list(map(shown_label, unused)))}")
    lines += report["notes"]
    if number := report["pairs_of_disagreement"]:
        lines.append(
            f"Annotators disagree on {number:,} pairs of a post and a criterion: data.merge says whose "
            "labels count (docs/how-to/annotators.md)."
        )
    folder = f"data.dir={output}"
    tables = [f"data.{n}={n}.csv" for n in ("posts", "annotations", "criteria")]
    words = ["data=imported", folder, *(tables if kind == "csv" else [])]
    # Rows that are nobody's have no vote.
    words += ["data.merge=majority"] if number and _NOT_NAMED not in report["annotators"] else []
    words += ["data.unannotated_pairs=drop"] if ASKED_ALONE in report["counts"] else []
    command = shlex.join(["psy-agents", "train", "task=criteria", *words])
    return "\n".join([*lines, "", f"tables: {output}", f"to train: {command}"])
