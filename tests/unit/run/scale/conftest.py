"""A scorer that needs no model, and posts in Parquet files."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psy_agents_noaug.errors import DataError
from psy_agents_noaug.run.scale.plan import Plan, Unit, input_paths, make_plan
from psy_agents_noaug.run.scale.units import Job, LocalEngine, Outcome

CRITERIA = ("A.1", "A.2")


class LengthScorer:
    """Has a probability of the length of the text for each criterion."""

    schema = pa.schema(
        [
            ("post_id", pa.string()),
            ("criterion_id", pa.string()),
            ("probability", pa.float64()),
            ("decision", pa.int64()),
        ]
    )

    def __init__(self, checkpoint: str = "c", **settings: object) -> None:
        self.identity = {
            "checkpoint_sha256": checkpoint,
            "weights_sha256": f"weights of {checkpoint}",
            "settings": json.dumps(settings, sort_keys=True),
        }
        self.machine = "test"
        self.scored: list[str] = []

    def __call__(self, posts: pa.Table) -> pa.Table:
        ids, texts = (posts.column(name).to_pylist() for name in ("post_id", "text"))
        self.scored += ids
        rows = [
            {
                "post_id": post_id,
                "criterion_id": criterion,
                "probability": 1 / (len(text) + number),
                "decision": len(text) % 2,
            }
            for post_id, text in zip(ids, texts, strict=True)
            for number, criterion in enumerate(CRITERIA)
        ]
        return pa.Table.from_pylist(rows, schema=self.schema)


def read_in_twos(plan: Plan, unit: Unit) -> Iterator[pa.Table]:
    """Yield two posts at a time; refuse a post without text."""
    posts = pq.read_table(plan.path_of(unit)).slice(unit.first_row, unit.n_posts)
    for begin in range(0, len(posts), 2):
        for row, text in enumerate(posts["text"].to_pylist()[begin : begin + 2], start=begin + 1):
            if text is None:
                place = f"{unit.file}, row {unit.first_row + row}"
                raise DataError(f"{place}, column text: must not be missing")
        yield posts.slice(begin, 2)


def _write_posts(path: Path, ids: Sequence[str], *, text: str | None = "text of") -> None:
    texts = [None if text is None else f"{text} {post_id}" for post_id in ids]
    table = pa.table({"post_id": ids, "text": pa.array(texts, pa.string())})
    pq.write_table(table, path)


@pytest.fixture
def length_scorer() -> type[LengthScorer]:
    """The class of a scorer that needs no model."""
    return LengthScorer


@pytest.fixture
def scorer() -> LengthScorer:
    return LengthScorer()


@pytest.fixture
def settle() -> Callable[..., list[Outcome]]:
    """Return a function that scores units of a job, or all."""

    def score(job: Job, scorer: LengthScorer, units: Sequence[Unit] = ()) -> list[Outcome]:
        job.output.mkdir(exist_ok=True)
        return list(LocalEngine(lambda: scorer).settle(job, units or job.plan.units))

    return score


@pytest.fixture
def write_posts() -> Callable[..., None]:
    """Return a function from a path and ids to a Parquet file of posts."""
    return _write_posts


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    """A folder with two files of 7 and 4 posts: with three a unit, 5 units of 3, 3, 1, 3 and 1."""
    folder = tmp_path / "posts"
    folder.mkdir()
    _write_posts(folder / "a.parquet", [f"a{number}" for number in range(7)])
    _write_posts(folder / "b.parquet", [f"b{number}" for number in range(4)])
    return folder


@pytest.fixture
def job_of(tmp_path: Path, posts: Path) -> Callable[..., Job]:
    """Return a function that plans what there is in `posts`."""

    def make(scorer: LengthScorer, *, output: str = "scores", unit_posts: int = 3) -> Job:
        plan = make_plan(
            input_paths(str(posts)), scorer=scorer.identity, columns={}, unit_posts=unit_posts
        )
        return Job(plan, tmp_path / output, read_in_twos)

    return make
