"""The parts of all units become one table, after everything that can be wrong with them is checked.

No part is held in memory as a whole, and the merged file is the same whatever was killed, whoever scored
which unit, and in which order.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from psy_agents_noaug.data.validation import (
    MAX_FAULTS_LISTED,
    Fault,
    quote_identifier,
    raise_faults,
)
from psy_agents_noaug.errors import ConfigError, DataError, faults_message, first_of
from psy_agents_noaug.run.scale.parts import FOOTER_KEY, Footer, footers_of
from psy_agents_noaug.run.scale.plan import Plan, Unit, read_plan
from psy_agents_noaug.run.scale.posts import UnitReader
from psy_agents_noaug.run.scale.units import Job, raise_faults_of_units
from psy_agents_noaug.utils.files import write_atomically

logger = logging.getLogger(__name__)

# Rows of a row group of the merged file, and about as many are in memory.
ROW_GROUP_ROWS = 2**18
# Eight bytes each, twice while they are sorted.
_IDS_A_PASS = 2**25
_POSTS_PER_CHUNK = 1000


@dataclass(frozen=True)
class Merged:
    """What was merged.

    Args:
        path: of the file.
        n_units: of the plan.
        n_posts: of all units.
        n_rows: of the file.
        machines: the kinds of machines that scored them.
    """

    path: Path
    n_units: int
    n_posts: int
    n_rows: int
    machines: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    unit: Unit
    path: Path
    footer: Footer

    def ids(self) -> Iterator[pa.Array]:
        """Yield the id of each post once, in their order, some thousand at a time."""
        last: str | None = None
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(columns=["post_id"]):
                ids = batch.column(0)
                # The rows of a post stand together, but may be in two batches.
                before = pa.concat_arrays([pa.array([last], ids.type), ids[:-1]])
                last = ids[-1].as_py()
                yield ids.filter(pc.fill_null(pc.not_equal(ids, before), True))


def merge(output: Path, path: Path, *, check_posts: bool = True) -> str:
    """Merge a folder of predictions that `psy-agents predict` has filled.

    Args:
        output: the folder.
        path: of the merged file.
        check_posts: see `merge_parts`.

    Returns:
        What to print.

    Raises:
        DataError: see `merge_parts`; or the folder has no plan.
        ConfigError: `path` is no Parquet file; or see `merge_parts`.
        StorageError: it cannot be written.
    """
    if path.suffix.lower() != ".parquet":
        raise ConfigError(f"`output` must be a .parquet file, but is {path} instead.")
    job = Job(read_plan(output), output, UnitReader(_POSTS_PER_CHUNK))
    merged = merge_parts(job, path, check_posts=check_posts)
    if len(merged.machines) > 1:
        kinds = faults_message("The machines differed, and so may last digits:", merged.machines)
        logger.warning(kinds)
    return (
        f"{merged.n_units:,} units, {merged.n_posts:,} posts, no id twice: "
        f"{merged.n_rows:,} rows in {path}"
    )


def _refuse_to_replace(plan: Plan, output: Path, path: Path) -> None:
    """Refuse to write the merged file over what it is made of.

    Raises:
        ConfigError: `path` is a file of posts, or in the folder of the parts.
    """
    merged = path.resolve()
    if output.resolve() in merged.parents or merged in {
        plan.path_of(unit).resolve() for unit in plan.units
    }:
        raise ConfigError(
            f"`output` must be neither a file of the posts nor in {output}, but is {path} instead."
        )


def merge_parts(job: Job, path: Path, *, check_posts: bool = True) -> Merged:
    """Check the parts of a folder, and write their rows into one Parquet file.

    Args:
        job: whose units were scored.
        path: of the merged file.
        check_posts: read all posts again, and compare them with those that were scored.

    Raises:
        DataError: units are missing or damaged, rows are missing, the posts have changed since they were
            scored, there are more than were planned, or two posts have one id.
        ConfigError: the file would be one of the posts, or in the folder of the parts.
        StorageError: it cannot be written.
    """
    _refuse_to_replace(job.plan, job.output, path)
    parts = _parts(job.plan, job.output)
    _check_counts(parts)
    _check_ids(parts)
    if check_posts:
        changed = [job.changed(part.unit, part.footer) for part in parts]
        raise_faults_of_units([*changed, *_rows_of_no_unit(job)])
    schema = pq.read_schema(parts[0].path).remove_metadata()
    totals = {
        "n_posts": sum(part.footer.n_posts for part in parts),
        "n_rows": sum(part.footer.n_rows for part in parts),
    }

    def write(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for rows in _in_row_groups(parts, schema):
                writer.write_table(rows, row_group_size=len(rows))
            stored = {**job.plan.scorer, **totals}
            writer.add_key_value_metadata({FOOTER_KEY: json.dumps(stored, sort_keys=True)})

    write_atomically(path, write, needed=sum(part.path.stat().st_size for part in parts))
    machines = tuple(sorted({part.footer.machine for part in parts}))
    return Merged(path, len(parts), **totals, machines=machines)


def _rows_of_no_unit(job: Job) -> Iterator[str]:
    """Find Parquet files that have got more posts since they were planned. Of others a unit is all."""
    for file in job.plan.inputs:
        path = job.plan.folder / file.name
        if file.n_rows is None or not path.exists():  # one that a unit is of was read before
            continue
        try:
            n_rows = pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError) as error:
            yield f"{file.name} cannot be read ({type(error).__name__})"
            continue
        if n_rows > file.n_rows:
            yield (
                f"{file.name} has {n_rows:,} rows, but {file.n_rows:,} are planned: run the command "
                f"that began {job.output} again"
            )


def _parts(plan: Plan, output: Path) -> list[_Part]:
    names = {unit.part for unit in plan.units}
    strange = sorted(path.name for path in output.glob("part-*") if path.name not in names)
    if strange:
        raise DataError(
            f"{output} holds files that are of no unit, as files of posts had other rows once: "
            f"{first_of(strange)}. Remove them."
        )
    footers = footers_of(plan, plan.units, output)
    missing = [unit for unit in plan.units if unit.number not in footers]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(plan.units):,} units are not scored yet: "
            f"{first_of([str(unit) for unit in missing])}. Run the command that began {output} again; "
            "it scores what is missing."
        )
    return [_Part(unit, plan.part_of(output, unit), footers[unit.number]) for unit in plan.units]


def _check_counts(parts: Sequence[_Part]) -> None:
    """Check that every part is of its unit and has the rows of its posts, as many for each of them."""
    faults: list[str] = []
    rows_of_a_post: int | None = None

    def check(part: _Part, what: str, *, expected: object, found: object) -> None:
        if expected != found:
            faults.append(f"{part.path.name} must have {what} {expected}, but has {found}")

    for part in parts:
        unit, footer = part.unit, part.footer
        metadata = pq.read_metadata(part.path)
        check(
            part,
            "predictions of",
            expected=(unit.file, unit.rows),
            found=(footer.file, footer.rows),
        )
        check(part, "the number of rows", expected=footer.n_rows, found=metadata.num_rows)
        if unit.n_posts is not None:
            check(part, "the number of posts", expected=unit.n_posts, found=footer.n_posts)
        if "start_char" not in metadata.schema.to_arrow_schema().names and footer.n_posts:
            rows_of_a_post = rows_of_a_post or footer.n_rows // footer.n_posts
            expected = footer.n_posts * rows_of_a_post
            check(part, "the number of rows", expected=expected, found=footer.n_rows)
    if faults:
        raise DataError(
            faults_message(
                "Predictions are missing, or are not those of their unit. Remove these parts, and the "
                "command that began them scores their units again:",
                faults,
            )
        )


def _check_ids(parts: Sequence[_Part]) -> None:
    """Check that no id is that of two posts.

    Of an id a hash of eight bytes is held, and of some of the ids at a time; where hashes are equal, the
    ids themselves are compared.
    """
    n_posts = sum(part.footer.n_posts for part in parts)
    n_passes = -(-n_posts // _IDS_A_PASS)
    suspects: list[np.ndarray] = []
    n_found = 0
    for number in range(n_passes):
        hashes = np.concatenate(
            [
                found[found % n_passes == number]
                for part in parts
                for found in map(_hashes, part.ids())
            ]
        )
        n_found += len(hashes)
        hashes.sort()
        suspects.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:MAX_FAULTS_LISTED])
    faults = _repeated(parts, np.concatenate(suspects)) if n_passes else []
    if not faults and n_found != n_posts:
        # Two posts of one id next to each other look like one.
        faults.append(Fault("post_id", "must be unique", f"{n_found:,} ids of {n_posts:,} posts"))
    raise_faults("The posts of all files must have ids of their own:", faults)


def _hashes(ids: pa.Array) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    return pd.util.hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)


def _repeated(parts: Sequence[_Part], suspects: np.ndarray) -> list[Fault]:
    """Return a fault for each post with the id of one before it; of ids whose hash is a suspect."""
    first: dict[str, str] = {}
    faults: list[Fault] = []
    if not len(suspects):
        return faults
    for part in parts:
        row = part.unit.first_row
        for ids in part.ids():
            for index in np.flatnonzero(np.isin(_hashes(ids), suspects)):
                post_id = ids[int(index)].as_py()
                place = f"{part.unit.file}, row {row + int(index) + 1}"
                if first.setdefault(post_id, place) != place:
                    detail = f"{quote_identifier(post_id)} is in {first[post_id]} too"
                    faults.append(Fault(f"{place}, column post_id", "must be unique", detail))
            row += len(ids)
    return faults


def _in_row_groups(parts: Sequence[_Part], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of all parts in tables of `ROW_GROUP_ROWS` rows, the last one of what is left."""
    held: list[pa.Table] = []
    n_held = 0
    for part in parts:
        with pq.ParquetFile(part.path) as file:
            for index in range(file.num_row_groups):
                rows = file.read_row_group(index).cast(schema)
                while n_held + len(rows) >= ROW_GROUP_ROWS:
                    taken = ROW_GROUP_ROWS - n_held
                    yield pa.concat_tables([*held, rows.slice(0, taken)]).combine_chunks()
                    held, n_held, rows = [], 0, rows.slice(taken)
                if len(rows):
                    held.append(rows)
                    n_held += len(rows)
    if held:
        yield pa.concat_tables(held).combine_chunks()
