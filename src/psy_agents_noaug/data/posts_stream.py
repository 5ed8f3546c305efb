"""Posts without annotations, a part of a file at a time, by the rules of `validation`."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from psy_agents_noaug.data.labels import BINARY
from psy_agents_noaug.data.table_formats import check_names, strings
from psy_agents_noaug.data.table_parts import STANDARD_INPUT, open_parts, raise_all
from psy_agents_noaug.data.validation import (
    Fault,
    Table,
    column_faults,
    post_faults,
    quote_identifier,
    raise_faults,
    rename_columns,
    required_columns_of_file,
)

SCHEMA = pa.schema([("post_id", pa.string()), ("text", pa.string())])

_CONTRACT = "The posts break the data contract:"
_PROGRAM = "the table of posts"


class PostsStream:
    """The posts of a file, in its order: an iterator over tables with the columns `post_id` and `text`.

    A table is given out when all of its posts are valid. Each post takes 8 bytes of memory until the
    stream ends, by which an identifier that occurs twice is found.

    Args:
        path: a CSV, TSV, JSONL, JSON or Parquet file; None: standard input, in JSON if it begins with
            `{` or `[`, and else in CSV.
        columns: our column names to the file's.
        rows: most posts of a table.
        between: the rows of a Parquet file that are read, half-open, from 0; None: all.

    Raises:
        DataError: the file is not there, lacks a column, or its first part has faults. Iterating raises
            it with all faults of a part, each with its row.
        ConfigError: `columns` maps a name that posts do not have.
    """

    def __init__(
        self,
        path: Path | None,
        columns: Mapping[str, str],
        *,
        rows: int,
        between: tuple[int, int] | None = None,
    ) -> None:
        # Whether a post has an author makes no difference here.
        self._columns = {ours: name for ours, name in columns.items() if ours != "group_id"}
        self._seen = SeenIdentifiers()
        self._n_rows = between[0] if between else 0
        self._name = STANDARD_INPUT if path is None else path.name
        self._source = open_parts(path, required_columns_of_file("posts", self._columns), between)
        self._parts = self._source.parts(rows)
        try:
            self._first = self._next()
        except BaseException:
            self._source.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    @property
    def fraction_read(self) -> float | None:
        """The part of the file that was read, from 0 to 1; None where its size is not known."""
        return self._source.fraction_read

    def __iter__(self) -> Iterator[pa.Table]:
        chunk = self._first
        while chunk is not None:
            yield chunk
            chunk = self._next()

    def _next(self) -> pa.Table | None:
        """Return the next part as a valid table; None: there is none."""
        part = next(self._parts, None)
        if part is None:
            return None
        table, missing = rename_columns(
            part.frame, file=self._name, kind="posts", columns=self._columns
        )
        if missing:
            raise_all(_CONTRACT, missing, part.stopped_by)
        table = replace(table, first_row=self._n_rows + 1)
        self._n_rows += len(table.frame)
        faults: list[Fault] = []
        if len(table.frame) or table.first_row == 1:
            faults = [fault for _, _, fault in column_faults(table, BINARY)]
        faults += post_faults(table) + self._repeated(table)
        raise_all(_CONTRACT, faults, part.stopped_by)
        return _arrow(table)

    def _repeated(self, table: Table) -> list[Fault]:
        """Find identifiers that an earlier part has."""
        post_ids = [post_id or "" for post_id in table.values("post_id")]
        return [
            Fault(
                table.place(row, "post_id"),
                "must be unique",
                f"an earlier row has {quote_identifier(post_ids[row])} too",
            )
            for row in np.flatnonzero(self._seen.add(post_ids)).tolist()
            if post_ids[row]
        ]


def check_posts(frame: pd.DataFrame) -> pa.Table:
    """Return posts of a program as a table with the columns `post_id` and `text`, in their order.

    Args:
        frame: with these columns; numbers become text, and other columns are left out.

    Raises:
        DataError: with every fault; a text is named by its row, and not shown.
    """
    names = list(map(str, frame.columns))
    check_names(_PROGRAM, names, SCHEMA.names)
    kept = frame.astype(object).where(frame.notna(), None)
    cells = [kept.iloc[:, place].tolist() for place in range(len(names))]
    read = strings(_PROGRAM, names, cells, SCHEMA.names)
    table, missing = rename_columns(read, file=_PROGRAM, kind="posts", columns={})
    raise_faults(_CONTRACT, missing)
    if len(frame):
        faults = [fault for _, _, fault in column_faults(table, BINARY)]
        raise_faults(_CONTRACT, [*faults, *post_faults(table)])
    return _arrow(table)


def _arrow(table: Table) -> pa.Table:
    return pa.table({name: table.values(name) for name in SCHEMA.names}, schema=SCHEMA)


class SeenIdentifiers:
    """Identifiers as 8 bytes each, in sorted arrays, the longest first."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def add(self, identifiers: Sequence[str]) -> np.ndarray:
        """Add identifiers, and return for each whether an earlier call had it.

        Two different ones are taken for the same with a probability of 3e-8 among a million.
        """
        digests = b"".join(
            hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            for name in identifiers
        )
        keys = np.frombuffer(digests, dtype=np.uint64)
        found = np.zeros(len(keys), dtype=bool)
        for array in self._arrays:
            places = np.searchsorted(array, keys)
            found |= array[np.minimum(places, len(array) - 1)] == keys
        merged = np.sort(keys)
        while self._arrays and len(self._arrays[-1]) <= len(merged):
            merged = np.sort(np.concatenate([self._arrays.pop(), merged]), kind="stable")
        if len(merged):
            self._arrays.append(merged)
        return found
