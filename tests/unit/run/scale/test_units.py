"""Parts: whole or not there, not scored twice, and never of other posts than those that are there."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psy_agents_noaug.errors import DataError, StorageError
from psy_agents_noaug.run.scale.parts import digest_of, read_footer

PARTS = [
    f"part-{name}.parquet"
    for name in (
        "00001-000000000",
        "00001-000000003",
        "00001-000000006",
        "00002-000000000",
        "00002-000000003",
    )
]


@pytest.fixture
def job(job_of, scorer):
    job = job_of(scorer)
    job.output.mkdir()
    return job


def test_every_unit_becomes_a_part_with_all_rows_in_order_and_its_footer(job, scorer, settle):
    outcomes = settle(job, scorer)
    paths = [job.output / PARTS[number] for number in range(5)]
    assert sorted(job.output.iterdir()) == paths
    rows = pa.concat_tables([pq.read_table(path) for path in paths]).to_pylist()
    ids = [f"a{number}" for number in range(7)] + [f"b{number}" for number in range(4)]
    assert [row["post_id"] for row in rows] == [post_id for post_id in ids for _ in "12"]
    assert [(o.n_posts, o.n_rows, o.was_done) for o in outcomes] == [
        (3, 6, False),
        (3, 6, False),
        (1, 2, False),
        (3, 6, False),
        (1, 2, False),
    ]
    footer = read_footer(paths[3])
    assert (footer.file, footer.rows, footer.machine) == ("b.parquet", (0, 3), "test")
    assert (footer.n_posts, footer.n_rows) == (3, 6)
    assert footer.scorer_sha256 == job.plan.scorer_sha256
    held = pq.read_metadata(paths[3]).metadata[b"psy_agents_noaug"]
    assert b'"checkpoint_sha256": "c"' in held


def test_what_is_done_is_not_scored_again(job, scorer, length_scorer, settle):
    settle(job, scorer, job.plan.units[::2])
    again = length_scorer()
    outcomes = settle(job, again)
    assert again.scored == ["a3", "a4", "a5", "b0", "b1", "b2"]
    assert [outcome.was_done for outcome in outcomes] == [True, True, True, False, False]


def test_a_fault_of_a_unit_is_told_with_file_and_row_and_the_others_are_done(
    posts, job_of, scorer, write_posts, settle
):
    write_posts(posts / "b.parquet", [f"b{number}" for number in range(4)], text=None)
    job = job_of(scorer)
    job.output.mkdir()
    outcomes = settle(job, scorer)
    assert [outcome.fault is None for outcome in outcomes] == [True, True, True, False, False]
    assert outcomes[4].fault == (
        "unit 5 (b.parquet, rows 4 to 4): b.parquet, row 4, column text: must not be missing"
    )
    assert len(list(job.output.iterdir())) == 3  # and no temporary files


def test_posts_that_have_changed_since_are_refused_before_anything_is_scored(
    posts, job, scorer, write_posts, length_scorer, settle
):
    settle(job, scorer, job.plan.units[:4])
    # Of the same length, so that only the content tells.
    write_posts(posts / "a.parquet", ["a0", "a1", "a2", "a9", "a4", "a5", "a6"])
    again = length_scorer()
    with pytest.raises(DataError) as caught:
        settle(job, again)
    assert again.scored == []
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 1
    assert lines[0].startswith("  - unit 2 (a.parquet, rows 4 to 6): the posts have changed")
    assert f"Remove {PARTS[1]} to score them again, or part-00001-* for all of the file" in lines[0]


def test_parts_of_another_plan_and_damaged_ones_are_refused_at_once(
    job, scorer, job_of, length_scorer, settle
):
    settle(job, scorer)
    other = job_of(length_scorer("another"), output="others")
    other.output.mkdir()
    settle(other, length_scorer("another"))
    (other.output / PARTS[1]).replace(job.output / PARTS[1])
    (job.output / PARTS[3]).replace(job.output / PARTS[0])
    whole = (job.output / PARTS[2]).read_bytes()
    (job.output / PARTS[2]).write_bytes(whole[:-9])
    pq.write_table(pa.table({"post_id": ["a"]}), job.output / PARTS[4])
    with pytest.raises(DataError) as caught:
        settle(job, scorer)
    lines = str(caught.value).splitlines()[1:]
    assert [line[4:32] for line in lines] == [
        PARTS[0],
        PARTS[1],
        PARTS[2],
        PARTS[4],
    ]


def test_a_part_that_cannot_be_written_is_a_storage_error_and_leaves_nothing(
    job, scorer, monkeypatch, settle
):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        settle(job, scorer)
    assert list(job.output.iterdir()) == []


def test_a_digest_does_not_depend_on_chunks_but_on_every_border_and_byte():
    def digest(*tables):
        parts = [pa.table({"post_id": ids, "text": texts}) for ids, texts in tables]
        return digest_of(parts).hexdigest()

    whole = digest((["a", "b", "c"], ["x", "yé", "z"]))
    assert whole == digest((["a"], ["x"]), ([], []), (["b", "c"], ["yé", "z"]))
    table = pa.table({"post_id": ["-", "a", "b", "c"], "text": ["-", "x", "yé", "z"]})
    assert whole == digest_of([table.slice(1)]).hexdigest()
    large = pa.table({name: table[name].cast(pa.large_string()) for name in table.column_names})
    assert whole == digest_of([large.slice(1, 1), large.slice(2)]).hexdigest()
    for other in (
        (["a", "b", "c"], ["x", "y", "éz"]),
        (["ab", "", "c"], ["x", "yé", "z"]),
        (["a", "b", "c"], ["x", "yè", "z"]),
        (["a", "c", "b"], ["x", "yé", "z"]),
        (["a", "b", "c", ""], ["x", "yé", "z", ""]),
    ):
        assert digest(other) != whole
