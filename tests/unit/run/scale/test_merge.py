"""The merged file: whole, checked, and the same whatever happened before."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.run.scale import merge
from psy_agents_noaug.run.scale.merge import merge_parts


@pytest.fixture
def job(job_of, scorer):
    return job_of(scorer)


def rows_of(path):
    return pq.read_table(path).to_pylist()


def test_the_merged_file_has_all_rows_in_the_order_of_the_posts(tmp_path, job, scorer, settle):
    settle(job, scorer)
    merged = merge_parts(job, tmp_path / "all.parquet")
    assert (merged.n_units, merged.n_posts, merged.n_rows) == (5, 11, 22)
    ids = [f"a{number}" for number in range(7)] + [f"b{number}" for number in range(4)]
    assert [row["post_id"] for row in rows_of(merged.path)] == [i for i in ids for _ in "12"]
    assert pq.read_schema(merged.path).names == scorer.schema.names


def test_the_merged_file_is_the_same_bytes_whoever_scored_what_and_when(
    tmp_path, job_of, scorer, monkeypatch, settle
):
    monkeypatch.setattr(merge, "ROW_GROUP_ROWS", 5)
    contents = set()
    for attempt in range(4):
        job = job_of(scorer, output=f"scores{attempt}")
        units = list(job.plan.units)
        random.Random(attempt).shuffle(units)
        for begin in range(0, 5, attempt + 1):
            scorer.machine = f"machine {begin}"
            settle(job, scorer, units[begin : begin + attempt + 1])
        contents.add(merge_parts(job, tmp_path / "all.parquet").path.read_bytes())
    assert len(contents) == 1
    with pq.ParquetFile(tmp_path / "all.parquet") as file:
        sizes = [file.metadata.row_group(index).num_rows for index in range(5)]
    assert sizes == [5, 5, 5, 5, 2]


def test_the_size_of_the_units_does_not_show_in_the_merged_file(tmp_path, job_of, scorer, settle):
    found = []
    for size in (1, 4, 100):
        job = job_of(scorer, output=f"scores{size}", unit_posts=size)
        settle(job, scorer)
        found.append(merge_parts(job, tmp_path / "all.parquet").path.read_bytes())
    assert found[0] == found[1] == found[2]


def test_units_that_are_not_scored_are_named(tmp_path, job, scorer, settle):
    settle(job, scorer, [job.plan.units[0], job.plan.units[3]])
    with pytest.raises(
        DataError, match=r"3 of 5 units are not scored yet: unit 2 \(a\.parquet, rows 4"
    ):
        merge_parts(job, tmp_path / "all.parquet")
    assert not (tmp_path / "all.parquet").exists()


def test_ids_that_are_in_two_units_are_told_with_file_and_row(
    tmp_path, posts, job_of, scorer, write_posts, monkeypatch, settle
):
    monkeypatch.setattr(merge, "_IDS_A_PASS", 4)
    write_posts(posts / "b.parquet", ["b0", "a5", "b2", "a0"])
    job = job_of(scorer)
    settle(job, scorer)
    with pytest.raises(DataError) as caught:
        merge_parts(job, tmp_path / "all.parquet")
    assert str(caught.value).splitlines()[1:] == [
        "  - b.parquet, row 2, column post_id: must be unique ('a5' is in a.parquet, row 6 too)",
        "  - b.parquet, row 4, column post_id: must be unique ('a0' is in a.parquet, row 1 too)",
    ]


def test_ids_with_one_hash_are_compared_themselves(tmp_path, job, scorer, monkeypatch, settle):
    monkeypatch.setattr(
        merge, "_hashes", lambda ids: pa.array([1] * len(ids), pa.uint64()).to_numpy()
    )
    settle(job, scorer)
    assert merge_parts(job, tmp_path / "all.parquet").n_posts == 11


def test_one_id_twice_in_a_row_is_found(tmp_path, posts, job_of, scorer, write_posts, settle):
    write_posts(posts / "b.parquet", ["b0", "b1", "b1", "b2"])
    job = job_of(scorer)
    settle(job, scorer)
    with pytest.raises(DataError, match="10 ids of 11 posts"):
        merge_parts(job, tmp_path / "all.parquet")


def test_a_part_with_too_few_rows_is_refused(tmp_path, job, length_scorer, settle):
    class Forgetful(length_scorer):
        def __call__(self, posts):
            rows = super().__call__(posts)
            return rows.slice(1) if "b0" in self.scored else rows

    settle(job, Forgetful())
    with pytest.raises(DataError, match=r"part-00002-.* must have the number of rows 6, but has"):
        merge_parts(job, tmp_path / "all.parquet")


@pytest.mark.parametrize(
    "name", ["posts/a.parquet", "scores/part-99.parquet", "scores/all.parquet"]
)
def test_neither_posts_nor_parts_are_replaced(tmp_path, posts, job, scorer, settle, name):
    settle(job, scorer)
    names = {"posts": posts, "scores": job.output}
    folder, file = name.split("/")
    with pytest.raises(ConfigError, match="`output` must be neither a file of the posts nor in"):
        merge_parts(job, names[folder] / file)


def test_parts_with_swapped_names_are_refused_also_where_posts_are_not_read_again(
    tmp_path, job, scorer, settle
):
    settle(job, scorer)
    one, other = (
        job.plan.part_of(job.output, unit)
        for unit in [unit for unit in job.plan.units if unit.file.endswith("a.parquet")][:2]
    )
    one.rename(tmp_path / "kept")
    other.rename(one)
    (tmp_path / "kept").rename(other)
    with pytest.raises(DataError, match=r"must have predictions of .*, but has"):
        merge_parts(job, tmp_path / "all.parquet", check_posts=False)


def test_posts_that_have_changed_are_refused_unless_they_are_not_to_be_read(
    tmp_path, posts, job, scorer, write_posts, settle
):
    settle(job, scorer)
    write_posts(posts / "b.parquet", ["b0", "b1", "b2", "b9"])
    with pytest.raises(
        DataError, match=r"unit 5 \(b\.parquet, rows 4 to 4\): the posts have changed"
    ):
        merge_parts(job, tmp_path / "all.parquet")
    assert merge_parts(job, tmp_path / "all.parquet", check_posts=False).n_posts == 11


def test_posts_behind_those_that_were_planned_are_told_unless_posts_are_not_to_be_read(
    tmp_path, posts, job, scorer, write_posts, settle
):
    settle(job, scorer)
    write_posts(posts / "a.parquet", [f"a{number}" for number in range(9)])
    with pytest.raises(DataError, match=r"a\.parquet has 9 rows, but 7 are planned"):
        merge_parts(job, tmp_path / "all.parquet")
    assert not (tmp_path / "all.parquet").exists()
    assert merge_parts(job, tmp_path / "all.parquet", check_posts=False).n_posts == 11


def test_posts_that_cannot_be_read_again_are_told_for_all_units(
    tmp_path, posts, job, scorer, write_posts, settle
):
    settle(job, scorer)
    write_posts(posts / "a.parquet", [f"a{number}" for number in range(7)], text=None)
    with pytest.raises(DataError) as caught:
        merge_parts(job, tmp_path / "all.parquet")
    lines = str(caught.value).splitlines()
    assert [line[:10] for line in lines[1:]] == ["  - unit 1", "  - unit 2", "  - unit 3"]


def test_several_kinds_of_machines_are_told(tmp_path, job, scorer, settle):
    scorer.machine = "cpu"
    settle(job, scorer, job.plan.units[:2])
    scorer.machine = "cuda"
    settle(job, scorer)
    assert merge_parts(job, tmp_path / "all.parquet").machines == ("cpu", "cuda")


def test_parts_of_rows_that_are_no_longer_there_are_refused(
    tmp_path, posts, job_of, scorer, write_posts, settle
):
    settle(job_of(scorer), scorer)
    write_posts(posts / "a.parquet", ["a0", "a1", "a2", "a3", "a4", "a5"])
    job = job_of(scorer)
    with pytest.raises(DataError, match=r"are of no unit, .*: part-00001-000000006\.parquet"):
        merge_parts(job, tmp_path / "all.parquet")
    (job.output / "part-00001-000000006.parquet").unlink()
    assert merge_parts(job, tmp_path / "all.parquet").n_posts == 10
