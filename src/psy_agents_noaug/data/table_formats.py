"""What every reader of tables knows of their formats: encodings, CSV, JSON, and what a cell may be.

`tables` reads a whole file, `posts_stream` a part at a time; their rules are these.
"""

import codecs
import csv
import io
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd

from psy_agents_noaug.data.validation import Fault, quote_columns, quote_identifier, raise_faults
from psy_agents_noaug.errors import DataError

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")

DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}  # the usual one first
UTF_8 = "utf-8-sig"
# UTF-32 first, as its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


NO_JSON = (
    "{} is malformed (pandas writes what is read here with `to_json(FILE, orient='records')`):"
)
NO_JSON_LINES = Fault("the file", "must be one array of objects, or one object per line")


class Record(dict[str, Any]):
    """A JSON object. `repeated` holds the keys that it has more than once."""

    repeated: frozenset[str] = frozenset()


def encoding_of(head: bytes) -> str:
    """Return the encoding of a file by its first four bytes: UTF-8, unless a mark says otherwise."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), UTF_8)


def not_in_encoding(path: Path | str, encoding: str, line: int) -> DataError:
    """Return the error for a file that is not in the encoding that it seems to have.

    Args:
        path: of the file.
        encoding: of `encoding_of`.
        line: with the first bytes that are not UTF-8, from 1.
    """
    if encoding != UTF_8:
        return DataError(
            f"{path}: the file begins as {encoding.upper()}, but is none. Save it as UTF-8."
        )
    return DataError(
        f"{path}, line {line}: the file must be UTF-8, but is not. Save it as UTF-8 (in Excel "
        '"CSV UTF-8"); if it comes from Windows, its encoding is probably cp1252: '
        "`iconv -f cp1252 -t utf-8 OLD > NEW` converts it."
    )


def check_first_line(path: Path | str, line: str) -> None:
    """Refuse a first line with NUL characters."""
    if "\0" in line:
        raise DataError(
            f"{path}: the first line holds NUL characters; the file is probably UTF-16 without a byte "
            "order mark. Save it as UTF-8."
        )


def best_delimiter(text: str, delimiters: str, wanted: Collection[str]) -> str:
    """Return the delimiter that makes the first line of a text hold most of the wanted columns."""
    return max(delimiters, key=lambda d: len(_header(text, d) & set(wanted)))


def _header(text: str, delimiter: str) -> set[str]:
    """Return the column names that a delimiter makes of the first line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        return {name.strip() for name in next((record for record in reader if record), [])}
    except csv.Error:
        return set()


def is_spaced(record: Sequence[str]) -> bool:
    """Whether each delimiter of a record is followed by a space: `p1, "a text, with a comma"`."""
    return all(cell[:1] == " " for cell in record[1:] if cell)


def malformed_csv(path: Path | str, delimiter: str) -> str:
    """Return the headline of `width_faults`."""
    return (
        f"{path} is malformed (a cell that holds {delimiter!r} or a line end must stand in double "
        "quotes, and a double quote in it twice):"
    )


def width_faults(
    records: Sequence[tuple[int, Sequence[str]]], width: int, *, first_row: int = 1
) -> list[Fault]:
    """Find the records that have another number of fields than the header.

    Args:
        records: each with the line that it ends on.
        width: of the header.
        first_row: number of the first record in the file, from 1.
    """
    return [
        Fault(
            f"row {row} (ends on line {line})",
            "must have as many fields as the header",
            f"{len(record)} instead of {width}",
        )
        for row, (line, record) in enumerate(records, start=first_row)
        if len(record) != width
    ]


def csv_fault(path: Path | str, line: int, error: csv.Error) -> DataError:
    """Return the error for what the standard library cannot read as CSV."""
    return DataError(
        f"{path}, line {line}: malformed CSV: {error}. A cell that begins with a double quote must "
        "end with one, and hold others twice."
    )


def is_json_array(text: str) -> bool:
    """Whether JSON is one array; otherwise it is an object per line."""
    return text.lstrip().startswith("[")


def json_array(path: Path | str, text: str) -> list[tuple[str, Any]]:
    """Return the values of an array, each with its place."""
    try:
        values = parse_json(text)
    except (ValueError, RecursionError) as error:
        place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{path}{place}: must be one JSON array of objects, or one object per line."
        ) from None
    return [(f"record {number}", value) for number, value in enumerate(values, start=1)]


def json_lines(lines: Iterable[tuple[int, str]], faults: list[Fault]) -> list[tuple[str, Any]]:
    """Return the value of each line that is not blank, with its place, and add what is no JSON."""
    found = []
    for line, content in lines:
        if not content.strip():
            continue
        try:
            found.append((f"line {line}", parse_json(content)))
        except (ValueError, RecursionError) as error:
            detail = (
                f"error at column {error.colno}"
                if isinstance(error, json.JSONDecodeError)
                else "too deep"
            )
            faults.append(Fault(f"line {line}", "must be JSON", detail))
    return found


def json_records(
    values: Iterable[tuple[str, Any]], wanted: Collection[str] | None, faults: list[Fault]
) -> list[Record]:
    """Return the values that are objects, and add the other ones and keys that are repeated."""
    records: list[Record] = []
    for place, value in values:
        if not isinstance(value, Record):
            faults.append(Fault(place, "must be a JSON object"))
            continue
        records.append(value)
        repeated = sorted(value.repeated if wanted is None else value.repeated & set(wanted))
        if repeated:
            faults.append(Fault(place, "must have each key once", quote_columns(repeated)))
    return records


def parse_json(text: str) -> Any:
    """Return a JSON value, with `Record` for objects."""
    # Integers stay text, of any length.
    return json.loads(text, object_pairs_hook=_record, parse_int=str)


def _record(pairs: list[tuple[str, Any]]) -> Record:
    record = Record((name.strip(), value) for name, value in pairs)
    if len(record) < len(pairs):
        counts = Counter(name.strip() for name, _ in pairs)
        record.repeated = frozenset(name for name, count in counts.items() if count > 1)
    return record


def repeated_keys(value: Any) -> list[str]:
    """Return the keys that an object in a value of `parse_json` has twice: only the last would count."""
    found: set[str] = set()
    open_values = [value]  # no recursion: it may be as deep as the parser allows
    while open_values:
        inner = open_values.pop()
        if isinstance(inner, Record):
            found |= inner.repeated
            open_values += inner.values()
        elif isinstance(inner, list):
            open_values += inner
    return sorted(found)


def strings(
    source: str,
    names: Sequence[str],
    columns: Sequence[Sequence[Any]],
    wanted: Collection[str] | None,
    *,
    first_row: int = 1,
) -> pd.DataFrame:
    """Return a frame of str and None from typed columns; those that are not wanted are not looked into.

    Args:
        source: of the table, for messages.
        names: of the columns.
        columns: their cells.
        wanted: the names that are looked into; None: all.
        first_row: number of the first row in the source, from 1.

    Raises:
        DataError: a wanted cell is neither text nor a number.
    """
    faults: list[tuple[int, Fault]] = []
    cells: list[list[str | None]] = []
    for name, column in zip(names, columns, strict=True):
        if not is_in(name, wanted):
            cells.append([None] * len(column))
            continue
        cells.append([_cell(value) for value in column])
        for number, value in enumerate(column, start=first_row):
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


def is_in(name: str, wanted: Collection[str] | None) -> bool:
    return wanted is None or name in wanted


def check_names(path: Path | str, names: Sequence[str], wanted: Collection[str] | None) -> None:
    """Refuse wanted columns that a table has twice."""
    counts = Counter(name for name in names if is_in(name, wanted))
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: each column must occur once, but these do not: {quote_columns(twice)}."
        )
