"""Tables from files or from the Hugging Face hub, exactly as they are written there.

Every cell is a `str`, or None where the cell is empty. Nothing is guessed: a post that says "NA" is
a post that says "NA", and the identifier "007" stays one. CSV is read with the standard library and
not with pandas, which shifts or fills records of the wrong length without a word.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from psy_agents_noaug.data.validation import (
    REQUIRED_COLUMNS,
    Fault,
    quote_columns,
    quote_identifier,
    raise_faults,
)
from psy_agents_noaug.errors import DataError, faults_message
from psy_agents_noaug.utils.extras import require

SUFFIXES = (".csv", ".jsonl", ".parquet")

_MAX_FIELD = 2**31 - 1  # characters; what a C long holds on every platform


def read_table(path: Path) -> pd.DataFrame:
    """Read a .csv, .jsonl or .parquet file; record N of the file is row N-1 of the frame.

    CSV: comma, double quotes, UTF-8 with or without a byte order mark; line ends inside quotes are
    kept as they are, blank lines between records are skipped. Numbers of JSONL and Parquet become
    text (`7` is "7"), NaN and "" become None.

    Raises DataError, naming the file and where known the line, if the file is missing, has another
    suffix, is malformed, or holds lists or objects in its cells.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: a table must be a {', '.join(SUFFIXES)} file.")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: the file must be UTF-8, but is not.") from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty.")
    return _read_csv(path, text) if path.suffix.lower() == ".csv" else _read_jsonl(path, text)


def read_hub(
    repo: str, *, revision: str | None, columns: Mapping[str, Mapping[str, str]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Load the posts and the annotations of a hub data set, or of a local directory laid out so.

    They may be files with "posts" and "annotations" in their names, configurations or splits; they
    are told apart by their (mapped) required columns, and parts of one table are joined. The types
    are those `datasets` infers: identifiers with leading zeros need the files themselves.

    Raises DataError if the data set cannot be reached, is gated, or has no such tables;
    ConfigError if `datasets` is not installed.
    """
    require("datasets", extra="hub", purpose="`data.source=hub`")
    from datasets.exceptions import DatasetGenerationError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        parts_read = _hub_parts(repo, revision)
    except GatedRepoError:
        raise DataError(_no_access(repo, "is gated")) from None
    except FileNotFoundError:  # DatasetNotFoundError is one, raised for gated data sets too
        raise DataError(_no_access(repo, "is gated, or is not there")) from None
    except (ConnectionError, HfHubHTTPError):  # includes OfflineModeIsEnabled
        raise DataError(_no_access(repo, "could not be reached")) from None
    except DatasetGenerationError:
        raise DataError(_no_access(repo, "has tables that `datasets` cannot tell apart")) from None
    tables = [_strings(repo, part.column_names, part.to_list()) for part in parts_read]

    found: dict[str, list[pd.DataFrame]] = {"annotations": [], "posts": []}
    for table in tables:
        for kind, parts in found.items():  # annotations first: their text may be named `text` too
            names = [columns.get(kind, {}).get(name, name) for name in REQUIRED_COLUMNS[kind]]
            if set(names) <= set(table.columns):
                parts.append(table)
                break
    if not (found["posts"] and found["annotations"]):
        seen = [
            f"a table with the columns {quote_columns(list(table.columns))}" for table in tables
        ]
        message = f"{repo}: found no table of posts or none of annotations. Check the column map."
        raise DataError(faults_message(message, seen))
    return (
        pd.concat(found["posts"], ignore_index=True),
        pd.concat(found["annotations"], ignore_index=True),
    )


def _hub_parts(repo: str, revision: str | None) -> list[Any]:
    """Every `datasets.Dataset` that may be a table, or a part of one."""
    from datasets import get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        # By file name first: a default configuration would mix tables with different columns.
        return [
            load_dataset(repo, data_files=f"**/*{kind}*", split="train", revision=revision)
            for kind in ("posts", "annotations")
        ]
    except DatasetNotFoundError:
        raise
    except FileNotFoundError:  # no files of these names
        return [
            part
            for name in get_dataset_config_names(repo, revision=revision)
            for part in load_dataset(repo, name, revision=revision).values()
        ]


def _no_access(repo: str, what: str) -> str:
    return (
        f"The data set {repo} {what}. Request access at https://huggingface.co/datasets/{repo} "
        "(ReDSM5: https://huggingface.co/datasets/irlab-udc/redsm5) and run `hf auth login`, or "
        "download its files and use `data=redsm5 data.dir=<their folder>`."
    )


def _read_csv(path: Path, text: str) -> pd.DataFrame:
    limit = csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader)
        records = [(reader.line_num, record) for record in reader if record]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: malformed CSV: {error}.") from None
    finally:
        csv.field_size_limit(limit)
    _check_names(path, header)
    raise_faults(
        f"{path} is malformed:",
        [
            Fault(
                f"row {row} (ends on line {line})",
                "must have as many fields as the header",
                f"{len(record)} instead of {len(header)}",
            )
            for row, (line, record) in enumerate(records, start=1)
            if len(record) != len(header)
        ],
    )
    return _frame(header, [[cell or None for cell in record] for _, record in records])


def _read_jsonl(path: Path, text: str) -> pd.DataFrame:
    records: list[dict[str, Any]] = []
    faults: list[Fault] = []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except json.JSONDecodeError as error:
            faults.append(Fault(f"line {line}", "must be JSON", f"error at column {error.colno}"))
            continue
        if isinstance(record, dict):
            records.append(record)
        else:
            faults.append(Fault(f"line {line}", "must be a JSON object"))
    raise_faults(f"{path} is malformed:", faults)
    return _strings(str(path), list(dict.fromkeys(name for r in records for name in r)), records)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        # ParquetFile, as read_table would add columns for folders named like `key=value`.
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: malformed Parquet ({type(error).__name__}).") from None
    _check_names(path, table.column_names)
    return _strings(str(path), table.column_names, table.to_pylist())


def _strings(
    source: str, names: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """A frame of str and None from typed records."""
    faults: list[Fault] = []
    rows: list[list[str | None]] = []
    for number, record in enumerate(records, start=1):
        row: list[str | None] = []
        for name in names:
            value = record.get(name)
            if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
                row.append(None)
            elif isinstance(value, str | int | float):
                row.append(str(value))
            else:
                place = f"row {number}, column {quote_identifier(name)}"
                rule = "must be text or a number"
                faults.append(Fault(place, rule, f"is a {type(value).__name__}"))
        rows.append(row)
    raise_faults(f"{source} is malformed:", faults)
    return _frame(names, rows)


def _frame(names: Sequence[str], rows: Sequence[Sequence[str | None]]) -> pd.DataFrame:
    # object, as pandas' own str type cannot hold the unpaired surrogates that validation reports.
    return pd.DataFrame(rows, columns=list(names), dtype=object)


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: each column must occur once, but these do not: {quote_columns(twice)}."
        )
