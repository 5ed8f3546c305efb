"""A part: the predictions of one unit, in a Parquet file that is there whole or not at all."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from psy_agents_noaug.errors import DataError, faults_message
from psy_agents_noaug.run.scale.plan import Plan, Unit
from psy_agents_noaug.utils.files import write_atomically

FOOTER_KEY = b"psy_agents_noaug"


class TableScorer(Protocol):
    """What turns posts into predictions; see `run.scoring.Scorer`."""

    schema: pa.Schema
    identity: dict[str, str]
    machine: str

    def __call__(self, posts: pa.Table) -> pa.Table: ...


@dataclass(frozen=True)
class Footer:
    """What a part says of itself.

    Args:
        scorer_sha256: of the plan: what decides predictions besides the posts.
        file: name of the unit's file.
        rows: of the unit; None: the whole file.
        input_sha256: of the unit's posts as they were read: ids and texts.
        n_posts: that were read.
        n_rows: that were written.
        machine: what the last bits of a probability may hang on: device, threads, versions.
    """

    scorer_sha256: str
    file: str
    rows: tuple[int, int] | None
    input_sha256: str
    n_posts: int
    n_rows: int
    machine: str


class PostsDigest:
    """A hash of posts, which does not depend on how they are cut into tables."""

    def __init__(self) -> None:
        self._parts = [hashlib.sha256() for _ in range(4)]
        self.n_posts = 0

    def update(self, posts: pa.Table) -> None:
        """Add a table of posts."""
        self.n_posts += len(posts)
        for number, name in enumerate(("post_id", "text")):
            for chunk in posts.column(name).cast(pa.large_string()).chunks:
                # An Arrow array of strings is its offsets and all bytes in one buffer.
                _, offsets, content = chunk.buffers()
                ends = np.frombuffer(offsets, np.int64)[
                    chunk.offset : chunk.offset + len(chunk) + 1
                ]
                self._parts[2 * number].update(np.diff(ends).astype("<i8").tobytes())
                if content is not None and len(ends):
                    self._parts[2 * number + 1].update(memoryview(content)[ends[0] : ends[-1]])

    def hexdigest(self) -> str:
        """Return the hash of all posts until now."""
        return hashlib.sha256(b"".join(part.digest() for part in self._parts)).hexdigest()


def digest_of(tables: Iterable[pa.Table]) -> PostsDigest:
    """Return the digest of all posts."""
    digest = PostsDigest()
    for posts in tables:
        digest.update(posts)
    return digest


def write_part(
    path: Path,
    tables: Iterable[pa.Table],
    scorer: TableScorer,
    *,
    plan: Plan,
    unit: Unit,
) -> Footer:
    """Score posts and write the predictions. One table is in memory at a time.

    Args:
        path: of the part.
        tables: the posts of the unit.
        scorer: scores them.
        plan: of which the unit is.
        unit: what is scored.

    Raises:
        DataError: of the posts or the scorer; nothing is written.
        StorageError: it cannot be written.
    """
    footers: list[Footer] = []

    def write(file: BinaryIO) -> None:
        digest, n_rows = PostsDigest(), 0
        with pq.ParquetWriter(file, scorer.schema, compression="zstd") as writer:
            for posts in tables:
                digest.update(posts)
                rows = scorer(posts)
                writer.write_table(rows)
                n_rows += len(rows)
            footer = Footer(
                plan.scorer_sha256,
                unit.file,
                unit.rows,
                digest.hexdigest(),
                digest.n_posts,
                n_rows,
                scorer.machine,
            )
            footers.append(footer)
            stored = {**plan.scorer, **asdict(footer)}
            writer.add_key_value_metadata({FOOTER_KEY: json.dumps(stored, sort_keys=True)})

    write_atomically(path, write)
    return footers[-1]


def read_footer(path: Path) -> Footer:
    """Read what a part says of itself.

    Raises:
        ValueError: the file is damaged, or is no part.
        OSError: it cannot be read.
    """
    stored: dict[str, Any] = json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])
    values = {name: stored[name] for name in Footer.__dataclass_fields__}
    return Footer(**{**values, "rows": stored["rows"] and tuple(stored["rows"])})


def footers_of(plan: Plan, units: Sequence[Unit], output: Path) -> dict[int, Footer]:
    """Read the footers of the parts that are there, by number of the unit.

    Raises:
        DataError: some are damaged, or of another plan; all of them in one message.
    """
    found: dict[int, Footer] = {}
    faults: list[str] = []
    for unit in units:
        path = plan.part_of(output, unit)
        if not path.exists():
            continue
        try:
            footer = read_footer(path)
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
            faults.append(
                f"{path.name} is damaged or no part of a prediction ({type(error).__name__})"
            )
            continue
        if (footer.scorer_sha256, footer.file) != (plan.scorer_sha256, unit.file):
            faults.append(f"{path.name} is of another checkpoint, other settings or another file")
        found[unit.number] = footer
    if faults:
        raise DataError(
            faults_message(
                f"{output} holds parts that are not of its plan. Remove them, and the same command "
                "scores their units again:",
                faults,
            )
        )
    return found
