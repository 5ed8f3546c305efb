"""Which files are read, how they are cut into units, and what a folder refuses to mix."""

import json
from pathlib import Path

import pytest

from psy_agents_noaug.errors import DataError
from psy_agents_noaug.run.scale.plan import input_paths, make_plan, read_plan, settle_plan
from psy_agents_noaug.utils.shards import Shard


def test_units_are_consecutive_rows_of_a_file(job_of, length_scorer):
    def units(size):
        plan = job_of(length_scorer(), unit_posts=size).plan
        return [(unit.part, unit.file, unit.rows) for unit in plan.units]

    assert units(3) == [
        ("part-00001-000000000.parquet", "a.parquet", (0, 3)),
        ("part-00001-000000003.parquet", "a.parquet", (3, 6)),
        ("part-00001-000000006.parquet", "a.parquet", (6, 7)),
        ("part-00002-000000000.parquet", "b.parquet", (0, 3)),
        ("part-00002-000000003.parquet", "b.parquet", (3, 4)),
    ]
    whole = [
        ("part-00001-000000000.parquet", "a.parquet", (0, 7)),
        ("part-00002-000000000.parquet", "b.parquet", (0, 4)),
    ]
    assert units(7) == units(100) == whole


def test_other_formats_are_a_unit_a_file_and_empty_parquet_files_are_none(
    posts, job_of, length_scorer, write_posts
):
    (posts / "c.csv").write_text("post_id,text\nc0,a text\n")
    write_posts(posts / "d.parquet", [])
    plan = job_of(length_scorer(), unit_posts=100).plan
    assert [file.name for file in plan.inputs] == ["a.parquet", "b.parquet", "c.csv", "d.parquet"]
    assert [str(unit) for unit in plan.units] == [
        "unit 1 (a.parquet, rows 1 to 7)",
        "unit 2 (b.parquet, rows 1 to 4)",
        "unit 3 (c.csv)",
    ]


def test_files_patterns_and_folders_are_the_same_files_in_the_same_order(posts, monkeypatch):
    (posts / "_SUCCESS").write_text("")
    (posts / "notes.txt").write_text("")
    (posts / "_old").mkdir()
    (posts / "_old" / "c.parquet").write_text("")
    files = [posts / "a.parquet", posts / "b.parquet"]
    assert input_paths(str(posts)) == files
    assert input_paths(f"{posts}/*.parquet") == files
    assert input_paths([str(files[1]), str(files[0])]) == files
    assert input_paths("*.parquet", folder=posts) == files
    monkeypatch.chdir(posts)
    assert input_paths(["a.parquet", "./b.*"]) == files


def test_predictions_that_lie_among_the_posts_are_none_of_them(posts, write_posts):
    (posts / "scores").mkdir()
    write_posts(posts / "scores" / "part-00001.parquet", ["a"])
    files = [posts / "a.parquet", posts / "b.parquet"]
    for given in (str(posts), f"{posts}/**/*.parquet"):
        assert input_paths(given, without=posts / "scores") == files
        assert len(input_paths(given)) == 3


def test_a_folder_of_predictions_alone_holds_no_posts(tmp_path, write_posts):
    (tmp_path / "scores").mkdir()
    write_posts(tmp_path / "scores" / "part-00001.parquet", ["a"])
    with pytest.raises(DataError, match="holds no table"):
        input_paths(str(tmp_path), without=tmp_path / "scores")


def test_all_inputs_that_mean_no_file_or_one_twice_are_refused_at_once(tmp_path, posts):
    (tmp_path / "empty").mkdir()
    given = [str(posts / name) for name in ("no.csv", "*.json", "a.parquet", "a.*")]
    with pytest.raises(DataError) as caught:
        input_paths([*given, str(tmp_path / "empty"), __file__])
    message = str(caught.value)
    assert message.count("matches no file") == 2
    assert "a.parquet is meant by" in message
    assert "empty holds no table" in message
    assert "is no table: it must be" in message
    assert len(message.splitlines()) == 6


def test_damaged_files_are_refused_at_once(posts):
    (posts / "c.parquet").write_bytes(b"PAR1 and no more")
    (posts / "d.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)c\.parquet is malformed.*d\.parquet is malformed"):
        make_plan(input_paths(str(posts)), scorer={}, columns={}, unit_posts=1)


def test_a_plan_is_read_back_as_it_was_and_settled_any_number_of_times(
    tmp_path, job_of, length_scorer
):
    job = job_of(length_scorer())
    for _ in range(2):
        settle_plan(job.plan, job.output)
    assert read_plan(job.output) == job.plan
    assert read_plan(job.output).scorer_sha256 == job.plan.scorer_sha256


def test_what_differs_from_the_plan_of_a_folder_is_told_at_once(
    posts, job_of, length_scorer, write_posts
):
    before = job_of(length_scorer("old", threshold=0.5, with_text=False))
    settle_plan(before.plan, before.output)
    held = (before.output / "plan.json").read_bytes()
    (posts / "b.parquet").unlink()
    write_posts(posts / "c.parquet", ["c"])
    after = job_of(length_scorer("new", threshold=0.7, with_text=False), unit_posts=4)
    with pytest.raises(DataError) as caught:
        settle_plan(after.plan, after.output)
    assert str(caught.value).splitlines()[1:] == [
        "  - checkpoint_sha256: old there, new asked for",
        "  - threshold: 0.5 there, 0.7 asked for",
        "  - weights_sha256: weights of old there, weights of new asked for",
        "  - unit_posts: 3 there, 4 asked for",
        "  - files that were not among the posts before: c.parquet",
        "  - files that are no longer among the posts: b.parquet",
    ]
    assert (before.output / "plan.json").read_bytes() == held


def test_a_file_that_has_changed_keeps_the_parts_of_the_others(
    posts, job_of, length_scorer, write_posts, caplog
):
    before = job_of(length_scorer())
    settle_plan(before.plan, before.output)
    write_posts(posts / "a.parquet", ["a0", "a1", "a3", "a4"])
    after = job_of(length_scorer())
    settle_plan(after.plan, after.output)
    assert "Files have changed since they were planned: a.parquet." in caplog.text
    assert read_plan(after.output) == after.plan
    parts = {str(unit).partition(" (")[2]: unit.part for unit in before.plan.units}
    for unit in after.plan.units[2:]:
        assert parts[str(unit).partition(" (")[2]] == unit.part


def test_a_folder_without_a_plan_or_with_another_files_is_refused(tmp_path):
    with pytest.raises(DataError, match="no predictions in units"):
        read_plan(tmp_path)
    for content in ("[]", '{"format": 2}', '{"format": 1, "folder": 3}', "{"):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(DataError, match=r"plan\.json"):
            read_plan(tmp_path)


def test_a_moved_input_is_the_same_input(tmp_path, posts, job_of, length_scorer):
    job = job_of(length_scorer())
    settle_plan(job.plan, job.output)
    moved = posts.rename(tmp_path / "elsewhere")
    plan = make_plan(
        input_paths(str(moved)), scorer=length_scorer().identity, columns={}, unit_posts=3
    )
    settle_plan(plan, job.output)
    assert json.loads((job.output / "plan.json").read_text())["folder"] == str(moved)


def test_shards_share_all_units_out():
    units = list(range(1, 12))
    shards = [list(Shard.parse(f"{number}/3").of(units)) for number in (1, 2, 3)]
    assert shards == [[1, 4, 7, 10], [2, 5, 8, 11], [3, 6, 9]]
    assert list(Shard().of(units)) == units


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "3", "1/0", "-1/3", "a/b", "1/3/3", "1.0/3", "", "1 /3"]
)
def test_a_shard_is_a_number_from_one_to_the_count(text):
    with pytest.raises(ValueError, match="must be NUMBER/COUNT"):
        Shard.parse(text)


def test_two_folders_with_files_of_one_name_are_told_apart(tmp_path, write_posts):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write_posts(tmp_path / name / "p.parquet", [name])
    plan = make_plan(
        input_paths([str(tmp_path / "y"), str(tmp_path / "x")]), scorer={}, columns={}, unit_posts=1
    )
    assert [unit.file for unit in plan.units] == ["x/p.parquet", "y/p.parquet"]
    assert plan.path_of(plan.units[0]) == Path(tmp_path / "x" / "p.parquet")
