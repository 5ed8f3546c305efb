"""Tables from files or from the Hugging Face hub, exactly as they are written there.

Every cell is a `str`, or None where the cell is empty. Nothing is guessed: a post that says "NA" is
a post that says "NA", and the identifier "007" stays one. CSV is read with the standard library and
not with pandas, which shifts or fills records of the wrong length without a word.
"""

import codecs
import csv
import io
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from psy_agents_noaug.data.validation import (
    Fault,
    columns_of_file,
    quote_columns,
    quote_identifier,
    raise_faults,
    required_columns_of_file,
)
from psy_agents_noaug.errors import DataError, faults_message
from psy_agents_noaug.utils.extras import require

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")

_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}  # the usual one first
_MAX_FIELD = 2**31 - 1  # characters; what a C long holds on every platform
# UTF-32 first, as its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class _Record(dict[str, Any]):
    """A JSON object. `repeated` holds the keys that it has more than once."""

    repeated: frozenset[str] = frozenset()


def read_table(path: Path, wanted: Collection[str] | None = None) -> pd.DataFrame:
    """Read a table; record N of the file is row N-1 of the frame.

    CSV and TSV: double quotes; comma, semicolon, tab or bar, whichever makes the header hold the
    wanted columns; line ends inside quotes are kept as they are, blank lines between records are
    skipped. JSON and JSONL: one array of objects, or one object per line. Text is UTF-8, or UTF-16 or
    UTF-32 with a byte order mark. Numbers become text (`7` is "7"), NaN and "" become None. Spaces
    around column names are left out.

    Args:
        path: of the file.
        wanted: the columns that are read and checked; the cells of others are None. None: all.

    Raises:
        DataError: the file is missing, has another suffix, is malformed, or a wanted column holds
            lists or objects. Names the file and where known the line, never its text.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: a table must be a {', '.join(SUFFIXES)} file.")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    if suffix == ".parquet":
        return _read_parquet(path, wanted)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    text = _decode(path, content)
    if not text.strip():
        raise DataError(f"{path}: the file is empty.")
    if suffix in _DELIMITERS:
        return _read_csv(path, text, wanted, delimiters=_DELIMITERS[suffix])
    return _read_json(path, text, wanted)


def read_hub(
    repo: str,
    *,
    revision: str | None,
    columns: Mapping[str, Mapping[str, str]],
    subgroups: Sequence[str] = (),
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
    found: dict[str, list[pd.DataFrame]] = {"annotations": [], "posts": []}
    for part in parts_read:
        for kind, parts in found.items():  # annotations first: their text may be named `text` too
            mapped = columns.get(kind, {})
            if required_columns_of_file(kind, mapped) <= set(part.column_names):
                cells = {name: list(part[name]) for name in part.column_names}
                wanted = columns_of_file(kind, mapped, subgroups)
                parts.append(_strings(repo, part.column_names, list(cells.values()), wanted))
                break
    if not (found["posts"] and found["annotations"]):
        seen = [
            f"a table with the columns {quote_columns(part.column_names)}" for part in parts_read
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


def _decode(path: Path, content: bytes) -> str:
    encoding = next(
        (name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8-sig"
    )
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise DataError(
                f"{path}: the file begins as {encoding.upper()}, but is none. Save it as UTF-8."
            ) from None
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: the file must be UTF-8, but is not. Save it as UTF-8 (in Excel "
            '"CSV UTF-8"); if it comes from Windows, its encoding is probably cp1252: '
            "`iconv -f cp1252 -t utf-8 OLD > NEW` converts it."
        ) from None
    if "\0" in text.lstrip("\r\n").partition("\n")[0]:
        raise DataError(
            f"{path}: the first line holds NUL characters; the file is probably UTF-16 without a byte "
            "order mark. Save it as UTF-8."
        )
    return text


def _read_csv(
    path: Path, text: str, wanted: Collection[str] | None, *, delimiters: str
) -> pd.DataFrame:
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        delimiter = max(delimiters, key=lambda d: len(_header(text, d) & set(wanted or ())))
        header, records = _records(path, text, delimiter)
        rows = [record for _, record in records]
        if len(header) > 1 and all(
            cell[:1] == " " for row in (header, *rows) for cell in row[1:] if cell
        ):
            # The delimiter is written with a space, as in `p1, "a text, with a comma"`.
            header, records = _records(path, text, delimiter, skipinitialspace=True)
    finally:
        csv.field_size_limit(limit)
    names = [name.strip() for name in header]
    _check_names(path, names, wanted)
    raise_faults(
        f"{path} is malformed (a cell that holds {delimiter!r} or a line end must stand in double "
        "quotes, and a double quote in it twice):",
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
    columns = list(zip(*(record for _, record in records), strict=True)) or [()] * len(names)
    return _strings(str(path), names, columns, wanted)


def _header(text: str, delimiter: str) -> set[str]:
    """Return the column names that a delimiter makes of the first line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        return {name.strip() for name in next((record for record in reader if record), [])}
    except csv.Error:
        return set()


def _records(
    path: Path, text: str, delimiter: str, *, skipinitialspace: bool = False
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and the other records with the lines that they end on."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        strict=True,
        delimiter=delimiter,
        skipinitialspace=skipinitialspace,
    )
    try:
        records = [(reader.line_num, record) for record in reader if record]
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: malformed CSV: {error}. A cell that begins with a double "
            "quote must end with one, and hold others twice."
        ) from None
    if not records:
        raise DataError(f"{path}: the file is empty.")
    return records[0][1], records[1:]


def _read_json(path: Path, text: str, wanted: Collection[str] | None) -> pd.DataFrame:
    faults: list[Fault] = []
    records: list[_Record] = []
    for place, value in _json_values(path, text, faults):
        if not isinstance(value, _Record):
            faults.append(Fault(place, "must be a JSON object"))
            continue
        records.append(value)
        repeated = sorted(value.repeated if wanted is None else value.repeated & set(wanted))
        if repeated:
            faults.append(Fault(place, "must have each key once", quote_columns(repeated)))
    raise_faults(f"{path} is malformed:", faults)
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = [[record.get(name) for record in records] for name in names]
    return _strings(str(path), names, columns, wanted)


def _json_values(path: Path, text: str, faults: list[Fault]) -> list[tuple[str, Any]]:
    """Return the records of an array or of lines, each with its place, and add what is no JSON."""
    if text.lstrip().startswith("["):
        try:
            values = _parse_json(text)
        except (ValueError, RecursionError) as error:
            place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise DataError(
                f"{path}{place}: must be one JSON array of objects, or one object per line."
            ) from None
        return [(f"record {number}", value) for number, value in enumerate(values, start=1)]
    found = []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            found.append((f"line {line}", _parse_json(content)))
        except (ValueError, RecursionError) as error:
            detail = (
                f"error at column {error.colno}"
                if isinstance(error, json.JSONDecodeError)
                else "too deep"
            )
            faults.append(Fault(f"line {line}", "must be JSON", detail))
    if not found and faults:
        raise_faults(
            f"{path} is malformed (pandas writes what is read here with `to_json(FILE, "
            "orient='records')`):",
            [Fault("the file", "must be one array of objects, or one object per line"), *faults],
        )
    return found


def _parse_json(text: str) -> Any:
    # Integers stay text, of any length.
    return json.loads(text, object_pairs_hook=_record, parse_int=str)


def _record(pairs: list[tuple[str, Any]]) -> _Record:
    record = _Record((name.strip(), value) for name, value in pairs)
    if len(record) < len(pairs):
        counts = Counter(name.strip() for name, _ in pairs)
        record.repeated = frozenset(name for name, count in counts.items() if count > 1)
    return record


def _read_parquet(path: Path, wanted: Collection[str] | None) -> pd.DataFrame:
    try:
        # ParquetFile, as read_table would add columns for folders named like `key=value`.
        with pq.ParquetFile(path) as file:
            stored = file.schema_arrow.names
            names = [name.strip() for name in stored]
            _check_names(path, names, wanted)
            read = [own for own, name in zip(stored, names, strict=True) if _is_in(name, wanted)]
            table = file.read(columns=read)
            cells = {name: table.column(name).to_pylist() for name in read}
            n_rows = file.metadata.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: malformed Parquet ({type(error).__name__}).") from None
    columns = [cells[own] if own in cells else [None] * n_rows for own in stored]
    return _strings(str(path), names, columns, wanted)


def _strings(
    source: str,
    names: Sequence[str],
    columns: Sequence[Sequence[Any]],
    wanted: Collection[str] | None,
) -> pd.DataFrame:
    """A frame of str and None from typed columns; those that are not wanted are not looked into."""
    faults: list[tuple[int, Fault]] = []
    cells: list[list[str | None]] = []
    for name, column in zip(names, columns, strict=True):
        if not _is_in(name, wanted):
            cells.append([None] * len(column))
            continue
        cells.append([_cell(value) for value in column])
        for number, value in enumerate(column, start=1):
            if not isinstance(value, str | int | float | Decimal | None):
                place = f"row {number}, column {quote_identifier(name)}"
                rule = "must be text or a number"
                faults.append((number, Fault(place, rule, f"is a {type(value).__name__}")))
    faults.sort(key=lambda found: found[0])
    raise_faults(f"{source} is malformed:", [fault for _, fault in faults])
    # object, as pandas' own str type cannot hold the unpaired surrogates that validation reports.
    frame = pd.DataFrame(dict(enumerate(cells)), dtype=object)
    frame.columns = pd.Index(list(names), dtype=object)
    return frame


def _cell(value: Any) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value)


def _is_in(name: str, wanted: Collection[str] | None) -> bool:
    return wanted is None or name in wanted


def _check_names(path: Path, names: Sequence[str], wanted: Collection[str] | None) -> None:
    counts = Counter(name for name in names if _is_in(name, wanted))
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: each column must occur once, but these do not: {quote_columns(twice)}."
        )
