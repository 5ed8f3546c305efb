"""The posts of a unit: its rows and no others, with the rules and the row numbers of the file."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psy_agents_noaug.errors import DataError
from psy_agents_noaug.run.scale.parts import digest_of
from psy_agents_noaug.run.scale.plan import Unit, input_paths, make_plan
from psy_agents_noaug.run.scale.posts import UnitReader

IDS = [f"p{number}" for number in range(20)]


def plan_of(path, unit_posts=100):
    return make_plan(
        input_paths(str(path)), scorer={}, columns={"post_id": "id"}, unit_posts=unit_posts
    )


@pytest.fixture
def path(tmp_path):
    table = pa.table({"id": IDS, "other": range(20), "text": [f"text of {name}" for name in IDS]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=6)
    return tmp_path / "p.parquet"


@pytest.mark.parametrize("size", [1, 4, 6, 7, 12, 20, 99])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_units_of_any_size_are_all_rows_once_whatever_the_row_groups(path, size, chunk):
    plan = plan_of(path, size)
    read = [list(UnitReader(chunk)(plan, unit)) for unit in plan.units]
    assert [sum(map(len, tables)) for tables in read] == [unit.n_posts for unit in plan.units]
    assert all(len(table) <= chunk for tables in read for table in tables)
    rows = pa.concat_tables([table for tables in read for table in tables])
    assert rows["post_id"].to_pylist() == IDS
    assert rows["text"].to_pylist() == [f"text of {name}" for name in IDS]


def test_what_follows_a_unit_in_its_row_group_is_not_read(tmp_path, monkeypatch):
    n_read = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(self, **options):
        for batch in iter_batches(self, **options):
            n_read.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    pq.write_table(pa.table({"id": IDS, "text": IDS}), tmp_path / "p.parquet")
    plan = plan_of(tmp_path / "p.parquet", 4)
    assert sum(map(len, UnitReader(2)(plan, plan.units[1]))) == 4
    assert sum(n_read) == 8


def test_the_digest_of_a_unit_does_not_depend_on_how_it_is_read(path, tmp_path):
    plan = plan_of(path, 9)
    unit = plan.units[1]
    digests = {digest_of(UnitReader(size)(plan, unit)).hexdigest() for size in (1, 4, 100)}
    lines = [f"{name},text of {name}" for name in IDS[9:18]]
    (tmp_path / "p.csv").write_text("\n".join(["id,text", *lines, ""]))
    csv_plan = plan_of(tmp_path / "p.csv")
    digests.add(digest_of(UnitReader(3)(csv_plan, csv_plan.units[0])).hexdigest())
    assert len(digests) == 1


def test_faults_have_the_rows_of_the_file(tmp_path):
    ids = [*IDS[:15], IDS[14], *IDS[16:]]
    table = pa.table({"id": ids, "text": [None if name == "p11" else "a text" for name in ids]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=6)
    plan = plan_of(tmp_path / "p.parquet", 10)
    assert sum(map(len, UnitReader(4)(plan, plan.units[0]))) == 10
    with pytest.raises(DataError, match=r"p\.parquet, row 12, column text: must not be missing"):
        list(UnitReader(4)(plan, plan.units[1]))
    own = replace(plan, units=[Unit(1, "p.parquet", "part", (13, 20))])
    with pytest.raises(DataError, match=r"p\.parquet, row 16, column post_id: must be unique"):
        list(UnitReader(100)(own, own.units[0]))
