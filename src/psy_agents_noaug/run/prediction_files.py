"""Predictions as files: JSONL, CSV or Parquet, each complete up to its last whole chunk.

A file gets its name when it is whole. Until then it is `<name>.partial`, which stays after a fault, a
signal or a kill.
"""

import csv
import io
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psy_agents_noaug.errors import ConfigError, StorageError
from psy_agents_noaug.utils.files import storing
from psy_agents_noaug.utils.shown import discard


class PredictionFile(ABC):
    """Where predictions go.

    Attributes:
        name: for messages.
        is_standard_output: whether they are printed.
    """

    name: str
    is_standard_output = False

    @abstractmethod
    def write(self, predictions: pa.Table) -> None:
        """Write the predictions of a chunk, all or none.

        Raises:
            StorageError: they cannot be written.
            BrokenPipeError: nobody reads standard output any more.
        """

    @abstractmethod
    def finish(self, schema: pa.Schema) -> None:
        """Make the file whole, which has at least its columns. Raises as `write`."""

    def close(self) -> None:
        """Keep the file, if it was not finished."""
        self.keep()

    @abstractmethod
    def keep(self) -> str | None:
        """End an unfinished file so that it can be read. Return where it is; None: nothing is there."""


def open_predictions(output: str | None) -> PredictionFile:
    """Return where predictions go; nothing is there before the first are written.

    Args:
        output: a path whose suffix tells the format; None or `-`: JSONL on standard output.

    Raises:
        ConfigError: another suffix, or an unfinished file of this name is there.
        StorageError: the folder cannot be made.
    """
    if output is None or output == "-":
        return _StandardOutput()
    path = Path(output)
    kinds: dict[str, Callable[[Path], _File]] = {
        ".jsonl": _JsonlFile,
        ".csv": _CsvFile,
        ".parquet": _ParquetFile,
    }
    kind = kinds.get(path.suffix.lower())
    if kind is None or path.is_dir():
        raise ConfigError(
            f"`output` must be a {', '.join(kinds)} file, or a folder, whose name has no suffix, but is "
            f"{path} instead."
        )
    file = kind(path)
    if file.partial.exists():
        raise ConfigError(
            f"{file.partial} holds the predictions of a run that was not finished. Rename it, and "
            "predict the other posts with `skip`; or remove it."
        )
    with storing(path.parent, setting="output"):
        path.parent.mkdir(parents=True, exist_ok=True)
    return file


def jsonl(predictions: pa.Table) -> str:
    """Return a JSON object per line. Numbers are read back to the bit."""
    return "".join(
        f"{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n"
        for row in predictions.to_pylist()
    )


def csv_text(predictions: pa.Table, *, header: bool) -> str:
    """Return CSV with the evidence as a JSON cell. Numbers are read back to the bit."""
    lines = _CsvLines()
    # Some versions of Python quote a line end in a cell only where it is one of the writer's.
    writer = csv.writer(lines, lineterminator="\r\n")
    if header:
        writer.writerow(predictions.column_names)
    writer.writerows(zip(*map(_cells, predictions.columns), strict=True))
    return "".join(lines)


class _CsvLines(list[str]):
    """What a CSV writer writes, with `\\n` behind each record."""

    def write(self, record: str) -> None:
        self.append(record.removesuffix("\r\n") + "\n")


def _cells(column: pa.ChunkedArray) -> list[Any]:
    cells: list[Any] = column.to_pylist()
    return [json.dumps(cell) for cell in cells] if pa.types.is_nested(column.type) else cells


class _StandardOutput(PredictionFile):
    name = "standard output"
    is_standard_output = True
    _is_begun = False

    def write(self, predictions: pa.Table) -> None:
        if sys.stdout is None:  # closed by who started the process (`>&-`)
            raise StorageError("Standard output is closed. Give `output=FILE`.")
        try:
            with storing(Path(self.name), setting="output"):
                sys.stdout.buffer.write(jsonl(predictions).encode())
                sys.stdout.buffer.flush()
        except StorageError as error:
            discard(sys.stdout)
            if isinstance(error.__cause__, BrokenPipeError):
                raise error.__cause__ from None
            raise
        self._is_begun = True

    def finish(self, schema: pa.Schema) -> None:
        pass

    def keep(self) -> str | None:
        return self.name if self._is_begun else None


class _File(PredictionFile):
    """A file, written under another name until it is whole."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.partial = path.with_name(f"{path.name}.partial")
        self._path = path
        self._is_begun = self._has_predictions = False
        self._is_readable = True

    @abstractmethod
    def _append(self, predictions: pa.Table) -> None:
        """Write a chunk. The first call opens the file."""

    @abstractmethod
    def _close(self) -> None:
        """End the file, if it is open."""

    def write(self, predictions: pa.Table) -> None:
        with self._storing():
            if not self._is_begun:
                # Another process may have begun the same one since; then nothing here is ours.
                self.partial.touch(exist_ok=False)
                self._is_begun = True
            self._append(predictions)
        self._has_predictions = True

    def finish(self, schema: pa.Schema) -> None:
        if not self._has_predictions:
            self.write(schema.empty_table())
        with self._storing():
            self._close()
            with self.partial.open("rb") as file:
                os.fsync(file.fileno())
            self.partial.replace(self._path)
        self._is_begun = self._has_predictions = False

    def keep(self) -> str | None:
        try:
            self._close()
        except OSError:
            self._is_readable = False
        if self._has_predictions and self._is_readable:
            return str(self.partial)
        if self._is_begun:
            self.partial.unlink(missing_ok=True)
        return None

    def _storing(self) -> AbstractContextManager[None]:
        return storing(self.partial, setting="output")


class _TextFile(_File):
    """Lines. Of a chunk that cannot be written nothing stays."""

    _file: io.FileIO | None = None

    @abstractmethod
    def _text(self, predictions: pa.Table) -> str:
        """Return the lines of a chunk."""

    def _append(self, predictions: pa.Table) -> None:
        content = self._text(predictions).encode()
        file = self._file = self._file or self.partial.open("wb", buffering=0)
        end, n_written = file.tell(), 0
        try:
            while n_written < len(content):  # less than asked for where the disk is almost full
                n_written += file.write(content[n_written:])
        except BaseException:
            file.truncate(end)
            file.seek(end)
            raise

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()


class _JsonlFile(_TextFile):
    def _text(self, predictions: pa.Table) -> str:
        return jsonl(predictions)


class _CsvFile(_TextFile):
    def _text(self, predictions: pa.Table) -> str:
        return csv_text(predictions, header=not self._has_predictions)


class _ParquetFile(_File):
    """A row group a chunk. Where one could not be written, as on a full disk, the file is unreadable."""

    _writer: pq.ParquetWriter | None = None

    def _append(self, predictions: pa.Table) -> None:
        # By its path: a signal would interrupt what writes to an object of Python.
        self._writer = self._writer or pq.ParquetWriter(str(self.partial), predictions.schema)
        self._is_readable = False
        self._writer.write_table(predictions)
        self._is_readable = True

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
