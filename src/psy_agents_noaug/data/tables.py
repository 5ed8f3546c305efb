"""Tables from files or from the Hugging Face hub, exactly as they are written there.

Every cell is a `str`, or None where the cell is empty. Nothing is guessed: a post that says "NA" is
a post that says "NA", and the identifier "007" stays one. CSV is read with the standard library and
not with pandas, which shifts or fills records of the wrong length without a word.
"""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from psy_agents_noaug.data.table_formats import (
    DELIMITERS,
    NO_JSON,
    NO_JSON_LINES,
    SUFFIXES,
    best_delimiter,
    check_first_line,
    check_names,
    csv_fault,
    encoding_of,
    is_in,
    is_json_array,
    is_spaced,
    json_array,
    json_lines,
    json_records,
    malformed_csv,
    not_in_encoding,
    strings,
    width_faults,
)
from psy_agents_noaug.data.validation import (
    Fault,
    columns_of_file,
    quote_columns,
    raise_faults,
    required_columns_of_file,
)
from psy_agents_noaug.errors import DataError, faults_message
from psy_agents_noaug.utils.extras import require

_MAX_FIELD = 2**31 - 1  # characters; what a C long holds on every platform


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
    if suffix in DELIMITERS:
        return read_csv_text(path, text, wanted, delimiters=DELIMITERS[suffix])
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
                parts.append(strings(repo, part.column_names, list(cells.values()), wanted))
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
    encoding = encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise not_in_encoding(path, encoding, content.count(b"\n", 0, error.start) + 1) from None
    check_first_line(path, text.lstrip("\r\n").partition("\n")[0])
    return text


def read_csv_text(
    path: Path, text: str, wanted: Collection[str] | None = None, *, delimiters: str
) -> pd.DataFrame:
    """Read the text of a CSV or TSV as `read_table` does.

    Args:
        path: of the file, for messages.
        text: its content.
        wanted: the columns that are read and checked; None: all.
        delimiters: characters of which one divides the cells, the usual one first.

    Raises:
        DataError: it is malformed.
    """
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        delimiter = best_delimiter(text, delimiters, wanted or ())
        header, records = _records(path, text, delimiter)
        rows = [record for _, record in records]
        if len(header) > 1 and all(map(is_spaced, (header, *rows))):
            header, records = _records(path, text, delimiter, skipinitialspace=True)
    finally:
        csv.field_size_limit(limit)
    names = [name.strip() for name in header]
    check_names(path, names, wanted)
    raise_faults(malformed_csv(path, delimiter), width_faults(records, len(header)))
    columns = list(zip(*(record for _, record in records), strict=True)) or [()] * len(names)
    return strings(str(path), names, columns, wanted)


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
        raise csv_fault(path, reader.line_num, error) from None
    if not records:
        raise DataError(f"{path}: the file is empty.")
    return records[0][1], records[1:]


def _read_json(path: Path, text: str, wanted: Collection[str] | None) -> pd.DataFrame:
    faults: list[Fault] = []
    if is_json_array(text):
        values = json_array(path, text)
    else:
        lines = text.split("\n")
        values = json_lines(((n, line) for n, line in enumerate(lines, start=1)), faults)
        if not values and faults:
            raise_faults(NO_JSON.format(path), [NO_JSON_LINES, *faults])
    records = json_records(values, wanted, faults)
    raise_faults(f"{path} is malformed:", faults)
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = [[record.get(name) for record in records] for name in names]
    return strings(str(path), names, columns, wanted)


def _read_parquet(path: Path, wanted: Collection[str] | None) -> pd.DataFrame:
    try:
        # ParquetFile, as read_table would add columns for folders named like `key=value`.
        with pq.ParquetFile(path) as file:
            stored = file.schema_arrow.names
            names = [name.strip() for name in stored]
            check_names(path, names, wanted)
            read = [own for own, name in zip(stored, names, strict=True) if is_in(name, wanted)]
            table = file.read(columns=read)
            cells = {name: table.column(name).to_pylist() for name in read}
            n_rows = file.metadata.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: malformed Parquet ({type(error).__name__}).") from None
    columns = [cells[own] if own in cells else [None] * n_rows for own in stored]
    return strings(str(path), names, columns, wanted)
