"""The posts of a unit, by the rules that hold for the posts of one file."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from psy_agents_noaug.data.posts_stream import PostsStream
from psy_agents_noaug.run.scale.plan import Plan, Unit


@dataclass(frozen=True)
class UnitReader:
    """Reads the posts of a unit, a table at a time. Can be sent to other machines.

    Args:
        posts_per_chunk: of a table.
    """

    posts_per_chunk: int

    def __call__(self, plan: Plan, unit: Unit) -> Iterator[pa.Table]:
        """Yield the posts of a unit.

        Raises:
            DataError: the file breaks the data contract; says in which row.
        """
        stream = PostsStream(
            plan.path_of(unit), plan.columns, rows=self.posts_per_chunk, between=unit.rows
        )
        with closing(stream) as posts:
            yield from posts
