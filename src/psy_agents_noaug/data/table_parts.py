"""Tables a part at a time, by the rules of `table_formats`.

CSV, TSV, JSON lines and Parquet are never held as a whole; an array of JSON objects is.
"""

import csv
import io
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import IO, Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from psy_agents_noaug.data.table_formats import (
    DELIMITERS,
    NO_JSON,
    NO_JSON_LINES,
    SUFFIXES,
    UTF_8,
    best_delimiter,
    check_first_line,
    check_names,
    csv_fault,
    encoding_of,
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
from psy_agents_noaug.data.validation import Fault, raise_faults
from psy_agents_noaug.errors import DataError

T = TypeVar("T")

STANDARD_INPUT = "standard input"

_MAX_FIELD = 2**24  # characters; a quote without an end makes a field of all that follows
_MAX_LINE = 2**26  # characters
_MAX_PART = 2**22  # characters; a part with long cells has fewer rows
_MAX_HEADER = 100  # lines
_BUFFER = 2**20  # bytes of each column of a Parquet file
_NOT_UTF_8 = re.compile("[\udc80-\udcff]")  # what bytes that are not UTF-8 are read as


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a table.

    Attributes:
        frame: their cells, str or None, by the file's column names.
        stopped_by: the error behind them, after which nothing can be read.
    """

    frame: pd.DataFrame
    stopped_by: DataError | None = None


class TableParts(ABC):
    """A table that is read in parts; at least one, which may have no rows."""

    @property
    @abstractmethod
    def fraction_read(self) -> float | None:
        """The part that was read, from 0 to 1; None where the size is not known."""

    @abstractmethod
    def parts(self, size: int) -> Iterator[Part]:
        """Yield the rows, at most `size` at a time.

        Raises:
            DataError: a part is malformed; with all of its faults.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


def open_parts(
    path: Path | None, wanted: Collection[str], between: tuple[int, int] | None = None
) -> TableParts:
    """Open a table.

    Args:
        path: a CSV, TSV, JSONL, JSON or Parquet file; None: standard input, in JSON if it begins with
            `{` or `[`, and else in CSV.
        wanted: the file's names of the columns that are read; the cells of others are None.
        between: the rows of a Parquet file that are read, half-open, from 0; None: all.

    Raises:
        DataError: there is no such file, it cannot be read, or it is empty.
    """
    if path is None:
        if sys.stdin is None:  # closed by who started the process (`<&-`)
            raise DataError("Standard input is closed. Give `data.posts=FILE`.")
        return _opened_text(sys.stdin.buffer, None, wanted)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: a table must be a {', '.join(SUFFIXES)} file.")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    if suffix == ".parquet":
        return _ParquetParts(path, wanted, between)
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    return _opened_text(file, path, wanted)


def raise_all(headline: str, faults: Sequence[Fault], further: DataError | None) -> None:
    """Raise one DataError for all faults and a further error, if there is any."""
    try:
        raise_faults(headline, faults)
    except DataError as error:
        if further is None:
            raise
        raise DataError(f"{error}\n{further}") from None
    if further is not None:
        raise further


def _opened_text(file: IO[bytes], path: Path | None, wanted: Collection[str]) -> TableParts:
    """Take a text file, or standard input, for CSV or JSON."""
    if path is None:
        head = file.peek(1).lstrip(b"\xef\xbb\xbf \t\r\n\0\xfe\xff")  # type: ignore[attr-defined]
        is_json = head[:1] in (b"{", b"[")
    else:
        is_json = path.suffix.lower() in (".json", ".jsonl")
    kind = _JsonParts if is_json else _CsvParts
    return kind(file, path, wanted)


class _Lines:
    """The lines of a text file, checked one by one.

    Args:
        file: in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
        name: for messages.
        newline: see `open`.
    """

    def __init__(self, file: IO[bytes], name: str, newline: str) -> None:
        self.name = name
        self._encoding = encoding_of(file.peek(4)[:4])  # type: ignore[attr-defined]
        self._text = io.TextIOWrapper(
            file,
            encoding=self._encoding,
            errors="surrogateescape" if self._encoding == UTF_8 else "strict",
            newline=newline,
        )
        self._n_lines = 0
        self._is_begun = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = self._text.readline(_MAX_LINE)
        except UnicodeError:
            raise not_in_encoding(self.name, self._encoding, self._n_lines + 1) from None
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror}).") from None
        if not line:
            raise StopIteration
        self._n_lines += 1
        if len(line) >= _MAX_LINE:
            raise DataError(
                f"{self.name}, line {self._n_lines}: must have at most {_MAX_LINE:,} characters."
            )
        if not line.isascii() and _NOT_UTF_8.search(line):
            raise not_in_encoding(self.name, self._encoding, self._n_lines)
        if not self._is_begun and line.strip("\r\n"):
            self._is_begun = True
            check_first_line(self.name, line)
        return line

    def detach(self) -> None:
        """Leave the file open, as standard input must be."""
        self._text.detach()


class _TextParts(TableParts):
    """A text file, or standard input."""

    newline: str

    def __init__(self, file: IO[bytes], path: Path | None, wanted: Collection[str]) -> None:
        self._file, self._path, self._wanted = file, path, wanted
        self._n_bytes = None if path is None else path.stat().st_size
        self.name = STANDARD_INPUT if path is None else str(path)
        self._lines = _Lines(file, self.name, self.newline)

    @property
    def fraction_read(self) -> float | None:
        return None if self._n_bytes is None else self._file.tell() / max(1, self._n_bytes)

    def close(self) -> None:
        self._lines.detach()
        if self._path is not None:
            self._file.close()


class _CsvParts(_TextParts):
    """Records of CSV or TSV."""

    newline = ""

    def parts(self, size: int) -> Iterator[Part]:
        suffix = ".csv" if self._path is None else self._path.suffix.lower()
        head = self._head()
        delimiter = best_delimiter("".join(head), DELIMITERS[suffix], self._wanted)
        with _long_fields():
            _, header = next(self._records(head, delimiter), (0, []))
        if not header:
            raise DataError(f"{self.name}: the file is empty.")
        spaced = len(header) > 1 and is_spaced(header) and self._all_spaced(delimiter)
        records = self._records(chain(head, self._lines), delimiter, skipinitialspace=spaced)
        with _long_fields():
            _, header = next(records)
        names = [name.strip() for name in header]
        check_names(self.name, names, self._wanted)
        row = 1
        while True:
            with _long_fields():
                taken, error = _take(records, size, lambda record: sum(map(len, record[1])))
            if not taken and row > 1 and error is None:
                return
            faults = width_faults(taken, len(names), first_row=row)
            if faults:
                raise_all(malformed_csv(self.name, delimiter), faults, error)
            columns = list(zip(*(record for _, record in taken), strict=True)) or [()] * len(names)
            yield Part(strings(self.name, names, columns, self._wanted, first_row=row), error)
            if not taken:
                return
            row += len(taken)

    def _head(self) -> list[str]:
        """Take the lines of the header, which may have line ends in quotes."""
        head: list[str] = []
        text = ""
        for line in self._lines:
            head.append(line)
            text = f"{text}{line}" if text or line.strip() else ""
            if text and (text.count('"') % 2 == 0 or text.count("\n") > _MAX_HEADER):
                break
        return head

    def _records(
        self, lines: Iterable[str], delimiter: str, *, skipinitialspace: bool = False
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield the records that are not blank, with the lines that they end on."""
        reader = csv.reader(
            lines, strict=True, delimiter=delimiter, skipinitialspace=skipinitialspace
        )
        try:
            yield from ((reader.line_num, record) for record in reader if record)
        except csv.Error as error:
            raise csv_fault(self.name, reader.line_num, error) from None

    def _all_spaced(self, delimiter: str) -> bool:
        """Whether every delimiter of the file is followed by a space; reads all of it."""
        if self._path is None:
            raise DataError(
                f"{self.name}: a header with spaces after its delimiters can be read from a file only. "
                "Give `data.posts=FILE`, or remove the spaces."
            )
        with self._path.open("rb") as file, _long_fields():
            lines = _Lines(file, self.name, self.newline)
            return all(is_spaced(record) for _, record in self._records(lines, delimiter))


class _JsonParts(_TextParts):
    """An object per line, or one array of objects, which is held as a whole."""

    newline = "\n"
    _fraction: float | None = None

    @property
    def fraction_read(self) -> float | None:
        return super().fraction_read if self._fraction is None else self._fraction

    def parts(self, size: int) -> Iterator[Part]:
        lines = enumerate(self._lines, start=1)
        first = next(((number, line) for number, line in lines if line.strip()), None)
        if first is None:
            raise DataError(f"{self.name}: the file is empty.")
        if is_json_array(first[1]):
            text = "".join([first[1], *(line for _, line in lines)])
            yield from self._of_array(json_array(self.name, text), size)
        else:
            yield from self._of_lines(chain([first], lines), size)

    def _of_array(self, values: list[tuple[str, Any]], size: int) -> Iterator[Part]:
        for start in range(0, max(1, len(values)), size):
            self._fraction = start / max(1, len(values))
            yield self._part(values[start : start + size], [], None, first_row=start + 1)

    def _of_lines(self, lines: Iterator[tuple[int, str]], size: int) -> Iterator[Part]:
        full = ((number, line) for number, line in lines if line.strip())
        row = 1
        while True:
            taken, error = _take(full, size, lambda line: len(line[1]))
            if not taken and error is None:
                return
            faults: list[Fault] = []
            values = json_lines(taken, faults)
            if row == 1 and faults and not values:
                raise_all(NO_JSON.format(self.name), [NO_JSON_LINES, *faults], error)
            yield self._part(values, faults, error, first_row=row)
            row += len(taken)

    def _part(
        self,
        values: Sequence[tuple[str, Any]],
        faults: list[Fault],
        error: DataError | None,
        *,
        first_row: int,
    ) -> Part:
        records = json_records(values, self._wanted, faults)
        if faults:
            raise_all(f"{self.name} is malformed:", faults, error)
        names = list(dict.fromkeys(name for record in records for name in record))
        if first_row > 1:
            names = list(self._wanted)  # no longer a column that the file lacks
        columns = [[record.get(name) for record in records] for name in names]
        return Part(strings(self.name, names, columns, self._wanted, first_row=first_row), error)


class _ParquetParts(TableParts):
    """A Parquet file, or some of its rows."""

    def __init__(
        self, path: Path, wanted: Collection[str], between: tuple[int, int] | None
    ) -> None:
        self._path, self._wanted = path, wanted
        with self._readable():
            # ParquetFile, as read_table would add columns for folders named like `key=value`.
            self._file = pq.ParquetFile(path, buffer_size=_BUFFER)
        n_rows: int = self._file.metadata.num_rows
        self._begin, self._end = between or (0, n_rows)
        self._n_read = 0

    @property
    def fraction_read(self) -> float | None:
        return self._n_read / max(1, self._end - self._begin)

    def close(self) -> None:
        self._file.close()

    def parts(self, size: int) -> Iterator[Part]:
        stored = self._file.schema_arrow.names
        names = [name.strip() for name in stored]
        check_names(self._path, names, self._wanted)
        read = [own for own, name in zip(stored, names, strict=True) if name in self._wanted]
        for batch in self._batches(size, read):
            with self._readable():  # whether texts are UTF-8 is seen here
                cells = {name: batch[name].to_pylist() for name in read}
            columns = [cells.get(name, [None] * len(batch)) for name in stored]
            first_row = self._begin + self._n_read + 1
            self._n_read += len(batch)
            frame = strings(str(self._path), names, columns, self._wanted, first_row=first_row)
            yield Part(frame)

    def _batches(self, size: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield rows; an empty batch where the file has none."""
        with self._readable():
            if self._file.metadata.num_rows == 0:
                yield self._file.schema_arrow.empty_table().select(columns)
            groups, row = self._row_groups()
            for batch in self._file.iter_batches(
                batch_size=size, row_groups=groups, columns=columns
            ):
                wanted = batch[max(0, self._begin - row) : max(0, self._end - row)]
                row += len(batch)
                if len(wanted):
                    yield wanted
                if row >= self._end:
                    return  # the rest of the last row group

    def _row_groups(self) -> tuple[list[int], int]:
        """Return the row groups that hold the rows, and the number of rows before them."""
        metadata = self._file.metadata
        sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        ends = list(accumulate(sizes))
        groups = [
            index
            for index, (size, end) in enumerate(zip(sizes, ends, strict=True))
            if end > self._begin and end - size < self._end
        ]
        return groups, ends[groups[0]] - sizes[groups[0]] if groups else 0

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self._path}: malformed Parquet ({type(error).__name__}).") from None


def _take(
    items: Iterator[T], size: int, length: Callable[[T], int]
) -> tuple[list[T], DataError | None]:
    """Take up to `size` items of a part, and the error that comes before.

    Args:
        items: in their order.
        size: most of them.
        length: returns the characters of one, of which a part has about a limited number.
    """
    taken: list[T] = []
    n_characters = 0
    try:
        while len(taken) < size and n_characters < _MAX_PART:
            taken.append(next(items))
            n_characters += length(taken[-1])
    except StopIteration:
        pass
    except DataError as error:
        return taken, error
    return taken, None


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let a field of CSV be longer than the standard library does by itself, for the whole process."""
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
