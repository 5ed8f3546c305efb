"""What a folder of predictions is made of: the input files, cut into units, in `plan.json`.

A unit is what one process scores at a time and what a kill loses at most: consecutive rows of a Parquet
file, or a whole file of another format, in which no row can be found without reading all before it. The
plan follows from the files, the checkpoint and the settings, so every process of an array makes the same
one; the first writes it, the others compare.
"""

import glob
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psy_agents_noaug.data.table_formats import SUFFIXES
from psy_agents_noaug.errors import DataError, faults_message, first_of
from psy_agents_noaug.utils.files import (
    make_folder,
    read_json,
    sha256_of_json,
    without_tilde,
    write_json,
)

logger = logging.getLogger(__name__)

PLAN_NAME = "plan.json"
_FORMAT = 1
# Of a Parquet file: the length of the footer, and the mark behind it.
_TAIL_BYTES = 8
_MAX_SHOWN = 100
_ANOTHER_FOLDER = "Write into another folder (`output`)"


@dataclass(frozen=True)
class InputFile:
    """A table of posts.

    Args:
        name: relative to the folder of the plan, with slashes.
        n_bytes: its size.
        footer_sha256: of Parquet's own description of the file, with the sizes and the places of all
            columns; None for other formats. Finds most changes without reading the posts.
        n_rows: posts of a Parquet file; None for other formats.
    """

    name: str
    n_bytes: int
    footer_sha256: str | None = None
    n_rows: int | None = None


@dataclass(frozen=True)
class Unit:
    """What is scored at a time.

    Args:
        number: from 1, in the order of the files and of their rows.
        file: name of the input file.
        part: name of the file of its predictions, which does not change with other input files' rows.
        rows: of a Parquet file, half-open, from 0; None: the whole file.
    """

    number: int
    file: str
    part: str
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.rows is None:
            return f"unit {self.number} ({self.file})"
        return f"unit {self.number} ({self.file}, rows {self.rows[0] + 1:,} to {self.rows[1]:,})"

    @property
    def first_row(self) -> int:
        """Rows of the file before the unit."""
        return self.rows[0] if self.rows else 0

    @property
    def n_posts(self) -> int | None:
        """Rows of the unit; None where that is not known before they are read."""
        return self.rows[1] - self.rows[0] if self.rows else None


@dataclass(frozen=True)
class Plan:
    """What is scored, and by what.

    Args:
        folder: where the input files are. Not compared: machines may see one disk at several places.
        scorer: the identity of the scorer: what decides its output besides the posts.
        columns: our column names to the files'.
        unit_posts: rows of a unit of a Parquet file.
        inputs: the files.
        units: all of them.
    """

    folder: Path
    scorer: Mapping[str, str]
    columns: Mapping[str, str]
    unit_posts: int
    inputs: Sequence[InputFile]
    units: Sequence[Unit]

    @cached_property
    def scorer_sha256(self) -> str:
        """The hash of what decides predictions besides the posts."""
        return sha256_of_json([dict(self.scorer), dict(self.columns)])

    def path_of(self, unit: Unit) -> Path:
        """Return where the unit's file is."""
        return self.folder / unit.file

    def part_of(self, output: Path, unit: Unit) -> Path:
        """Return where the unit's predictions are written."""
        return output / unit.part


def input_paths(
    given: str | Sequence[str], *, folder: Path | None = None, without: Path | None = None
) -> list[Path]:
    """Return the files that are meant, in the order of their paths.

    Args:
        given: files, patterns (`posts/*.parquet`) or folders, of which all tables are taken, also those
            in folders below; names that begin with `.` or `_`, as engines write them, are left out.
        folder: what relative ones are relative to; None: the working directory.
        without: a folder whose files are not meant, as predictions may lie among the posts.

    Raises:
        DataError: one of them means no file, or two mean the same; all such in one message.
    """
    faults: list[str] = []
    found: dict[Path, tuple[int, str]] = {}
    for number, item in enumerate([given] if isinstance(given, str) else given):
        path = (folder or Path()) / without_tilde(item)
        matches = [path] if path.exists() else [Path(name) for name in _matching(path)]
        files = [
            file
            for match in matches
            for file in _tables_of(match)
            if without is None or not _absolute(file).is_relative_to(_absolute(without))
        ]
        if not files:
            what = f"holds no table ({', '.join(SUFFIXES)})" if matches else "matches no file"
            faults.append(f"{path} {what}")
        for file in files:
            first, meant_by = found.setdefault(_absolute(file), (number, item))
            if first != number:
                faults.append(f"{file} is meant by {meant_by} and by {item}")
            elif file.suffix.lower() not in SUFFIXES:
                faults.append(f"{file} is no table: it must be a {', '.join(SUFFIXES)} file")
    if faults:
        raise DataError(faults_message("The posts (`data.posts`) cannot be read:", faults))
    return sorted(found)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 (`resolve` follows links)


def _matching(path: Path) -> list[str]:
    return glob.glob(str(path), recursive=True)  # noqa: PTH207 (`Path.glob` knows no absolute pattern)


def _tables_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return [
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not any(part[0] in "._" for part in file.relative_to(path).parts)
        and file.is_file()
    ]


def make_plan(
    paths: Sequence[Path],
    *,
    scorer: Mapping[str, str],
    columns: Mapping[str, str],
    unit_posts: int,
) -> Plan:
    """Cut files into units. Of Parquet files the footers are read, of others nothing.

    Args:
        paths: absolute ones, in their order.
        scorer: the identity of the scorer.
        columns: our column names to the files'.
        unit_posts: rows of a unit of a Parquet file; the last one of a file may have fewer.

    Raises:
        DataError: files cannot be read, all of them in one message; or there is no post in any.
    """
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    inputs: list[InputFile] = []
    faults: list[str] = []
    for path in paths:
        try:
            inputs.append(_input_file(path, path.relative_to(folder).as_posix()))
        except OSError as error:
            faults.append(f"{path} cannot be read ({error.strerror or type(error).__name__})")
        except (pa.ArrowException, ValueError) as error:
            faults.append(f"{path} is malformed Parquet ({type(error).__name__})")
    if faults:
        raise DataError(faults_message("The posts (`data.posts`) cannot be read:", faults))
    ranges = [
        (place, file.name, rows)
        for place, file in enumerate(inputs, start=1)
        for rows in _ranges_of(file, unit_posts=unit_posts)
    ]
    units = [
        Unit(number, name, f"part-{place:05d}-{rows[0] if rows else 0:09d}.parquet", rows)
        for number, (place, name, rows) in enumerate(ranges, start=1)
    ]
    if not units:
        names = first_of([file.name for file in inputs])
        raise DataError(f"There is no post in {names} (`data.posts`).")
    return Plan(folder, dict(scorer), dict(columns), unit_posts, inputs, units)


def _input_file(path: Path, name: str) -> InputFile:
    n_bytes = path.stat().st_size
    if path.suffix.lower() != ".parquet":
        return InputFile(name, n_bytes)
    n_rows = pq.read_metadata(path).num_rows
    with path.open("rb") as raw:
        raw.seek(n_bytes - _TAIL_BYTES)
        footer_bytes = int.from_bytes(raw.read(4), "little")
        raw.seek(n_bytes - _TAIL_BYTES - footer_bytes)
        footer = hashlib.sha256(raw.read(footer_bytes)).hexdigest()
    return InputFile(name, n_bytes, footer, n_rows)


def _ranges_of(file: InputFile, *, unit_posts: int) -> list[tuple[int, int] | None]:
    if file.n_rows is None:
        return [None]
    return [
        (begin, min(begin + unit_posts, file.n_rows)) for begin in range(0, file.n_rows, unit_posts)
    ]


def settle_plan(plan: Plan, output: Path) -> None:
    """Write the plan into the folder of the output, or compare it with the one that is there.

    Two processes may find none at the same time, and write the same. If somebody starts two different
    predictions into one folder at once, the parts of one of them are refused later. Files may have
    changed, as posts with faults are mended: whether a part is of the posts that are there is seen in
    its footer.

    Raises:
        DataError: the folder holds predictions of another model, other settings or other files; says
            which.
        StorageError: it cannot be written.
    """
    path = output / PLAN_NAME
    make_folder(output)
    if not path.exists():
        _write_plan(path, plan)
    held = read_plan(output)
    if differences := _differences(held, plan):
        headline = (
            f"{output} holds predictions that are not those asked for, and they are never mixed. "
            f"{_ANOTHER_FOLDER}, or remove this one. What differs:"
        )
        raise DataError(faults_message(headline, differences))
    before = {file.name: file for file in held.inputs}
    if changed := [file.name for file in plan.inputs if before[file.name] != file]:
        logger.warning(
            "Files have changed since they were planned: %s. What is scored of them is compared with "
            "the posts that are there.",
            first_of(changed),
        )
    if changed or held.folder != plan.folder:
        _write_plan(path, plan)


def read_plan(output: Path) -> Plan:
    """Read the plan of a folder of predictions.

    Raises:
        DataError: there is none, or it cannot be used.
    """
    path = output / PLAN_NAME
    if not path.is_file():
        raise DataError(f"{output} holds no predictions in units: there is no {PLAN_NAME} in it.")
    values = read_json(path)
    try:
        if values["format"] != _FORMAT:
            raise ValueError(f"format {values['format']!r}")
        return Plan(
            Path(values["folder"]),
            values["scorer"],
            values["columns"],
            values["unit_posts"],
            [InputFile(**file) for file in values["inputs"]],
            [
                Unit(**{**unit, "rows": unit["rows"] and tuple(unit["rows"])})
                for unit in values["units"]
            ],
        )
    except (LookupError, TypeError, ValueError) as error:
        reason = f"{error}, {type(error).__name__}"
        raise DataError(
            f"{path} is damaged, or of another version ({reason}). {_ANOTHER_FOLDER}, or remove it."
        ) from error


def _write_plan(path: Path, plan: Plan) -> None:
    values = {
        "format": _FORMAT,
        "folder": str(plan.folder),
        "scorer": dict(plan.scorer),
        "columns": dict(plan.columns),
        "unit_posts": plan.unit_posts,
        "inputs": [asdict(file) for file in plan.inputs],
        "units": [asdict(unit) for unit in plan.units],
    }
    write_json(path, values)


def _differences(held: Plan, asked: Plan) -> list[str]:
    """Say in what the plan that a folder holds differs from the one that is asked for."""
    lines = [
        f"{what}: {_short(there)} there, {_short(here)} asked for"
        for what, there, here in (
            *_pairs(_settings(held), _settings(asked)),
            *_pairs(held.columns, asked.columns, prefix="data.columns.posts."),
            ("unit_posts", held.unit_posts, asked.unit_posts),
        )
        if there != here
    ]
    before, now = ([file.name for file in plan.inputs] for plan in (held, asked))
    for what, names in (
        ("files that were not among the posts before", [n for n in now if n not in before]),
        ("files that are no longer among the posts", [n for n in before if n not in now]),
    ):
        if names:
            lines.append(f"{what}: {first_of(names)}")
    return lines


def _settings(plan: Plan) -> dict[str, Any]:
    """Return the identity of the scorer with each of its settings by its own name."""
    settings = json.loads(plan.scorer.get("settings", "{}"))
    return {**{key: value for key, value in plan.scorer.items() if key != "settings"}, **settings}


def _pairs(
    held: Mapping[str, Any], asked: Mapping[str, Any], *, prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    return [
        (prefix + key, held.get(key), asked.get(key)) for key in sorted(held.keys() | asked.keys())
    ]


def _short(value: Any) -> str:
    shown = str(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
