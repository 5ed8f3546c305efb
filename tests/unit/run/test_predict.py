"""The story of a prediction, with a model that takes no time: files, faults, signals, memory."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psy_agents_noaug.cli import main
from psy_agents_noaug.run import predict as story
from psy_agents_noaug.run import prediction_files
from psy_agents_noaug.run.predict import NO_DIAGNOSIS

SPAN = pa.struct([("start_char", pa.int64()), ("end_char", pa.int64()), ("score", pa.float64())])
SECRET = "xylozephyrquill"

pytestmark = pytest.mark.usefixtures("own_logging")


class FakeScorer:
    """Predicts by the length of a text. `before` is called before each table is judged."""

    schema = pa.schema(
        [
            ("post_id", pa.string()),
            ("criterion_id", pa.string()),
            ("probability", pa.float64()),
            ("decision", pa.int64()),
            ("evidence", pa.list_(SPAN)),
        ]
    )
    made_with: tuple = ()
    before = staticmethod(lambda number: None)

    def __init__(self, *arguments, **options):
        type(self).made_with = (arguments, options)
        self._n_tables = 0

    def __call__(self, posts):
        self._n_tables += 1
        self.before(self._n_tables)
        rows = []
        for post_id, text in zip(*posts.to_pydict().values(), strict=True):
            for divisor, criterion_id in ((7, "A.1"), (3, "A.2")):
                probability = 1 / (1 + len(text) % divisor)
                span = {"start_char": 0, "end_char": len(text), "score": probability / 3}
                rows.append([post_id, criterion_id, probability, int(probability >= 0.5), [span]])
        return pa.Table.from_pylist(
            [dict(zip(self.schema.names, row, strict=True)) for row in rows], schema=self.schema
        )


@pytest.fixture
def scorer(monkeypatch):
    class Scorer(FakeScorer):
        pass

    monkeypatch.setattr(story, "Scorer", Scorer)
    return Scorer


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def posts_csv(path, n_posts, *, bad=None):
    """Write a table of posts, some of whose lines are replaced: a row by its number, from 1."""
    lines = [f"p{n},{SECRET} {'a' * (n % 50)}" for n in range(1, n_posts + 1)]
    for row, line in (bad or {}).items():
        lines[row - 1] = line
    path.write_text("\n".join(["post_id,text", *lines, ""]))
    return path


@pytest.fixture
def predicted(scorer, in_folder, capfd):
    """Return a function from arguments to the exit code, standard output and standard error."""

    def run(*arguments):
        code = main(["predict", "checkpoint=model", "posts_per_chunk=10", *arguments])
        out, err = capfd.readouterr()
        assert SECRET not in out + err
        assert "Traceback" not in err
        return code, out, err

    return run


def read(path):
    """Return the predictions of a file as a list of dictionaries."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    types = {"probability": float, "decision": int, "evidence": json.loads}
    return [{name: types.get(name, str)(cell) for name, cell in row.items()} for row in rows]


@pytest.fixture
def expected(scorer):
    """Return a function from the number of posts to their predictions."""

    def rows(n_posts, first=1):
        ids = [f"p{n}" for n in range(first, n_posts + 1)]
        texts = [f"{SECRET} {'a' * (n % 50)}" for n in range(first, n_posts + 1)]
        return scorer()(pa.table({"post_id": ids, "text": texts})).to_pylist()

    return rows


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv", "o.parquet", "new/folder/o.JSONL"])
@pytest.mark.parametrize("source", ["p.csv", "p.tsv", "p.jsonl", "p.json", "p.parquet"])
def test_every_format_in_and_out_holds_the_same_numbers(
    predicted, in_folder, expected, source, output
):
    table = posts_csv(in_folder / "posts.csv", 25)
    with table.open(newline="") as file:
        records = list(csv.DictReader(file))
    path = in_folder / source
    if source == "p.tsv":
        rows = [["post_id", "text"], *(record.values() for record in records)]
        path.write_text("".join("\t".join(row) + "\n" for row in rows))
    elif source == "p.jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif source == "p.json":
        path.write_text(json.dumps(records))
    elif source == "p.parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        table.rename(path)
    code, out, _ = predicted(f"data.posts={source}", f"output={output}")
    assert code == 0
    written = in_folder / output
    renamed = written.rename(written.with_suffix(written.suffix.lower()))
    assert read(renamed) == expected(25)
    assert out.endswith(f" posts/s: {output}\n{NO_DIAGNOSIS}\n")
    assert not list(in_folder.rglob("*.partial"))


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\n\r"])
def test_line_ends_of_all_kinds_are_read_back_from_csv(end):
    cells = [f"a{end}b", f"b{end}", end, 'a "quoted" word, a comma']
    text = prediction_files.csv_text(
        pa.table({"post_id": ["1", "2", "3", "4"], "text": cells}), header=True
    )
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows == [["post_id", "text"], *(list(row) for row in zip("1234", cells, strict=True))]
    assert text.startswith("post_id,text\n1,")


def test_parquet_has_the_types_of_the_scorer(predicted, in_folder, scorer):
    posts_csv(in_folder / "p.csv", 25)
    predicted("data.posts=p.csv", "output=o.parquet")
    assert pq.read_schema(in_folder / "o.parquet").equals(scorer.schema)


def test_without_an_output_json_lines_are_printed_and_all_else_is_on_standard_error(
    predicted, in_folder, expected
):
    posts_csv(in_folder / "p.csv", 25)
    for output in ((), ("output=-",), ("output=null",)):
        code, out, err = predicted("data.posts=p.csv", *output)
        assert code == 0
        assert [json.loads(line) for line in out.splitlines()] == expected(25)
        assert NO_DIAGNOSIS in err


@pytest.mark.parametrize("source", ["csv", "jsonl"])
def test_posts_are_read_from_standard_input(predicted, in_folder, expected, monkeypatch, source):
    path = posts_csv(in_folder / "p.csv", 25)
    if source == "jsonl":
        with path.open(newline="") as file:
            lines = [json.dumps(record) + "\n" for record in csv.DictReader(file)]
        path.write_text("".join(lines))
    with path.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, out, _ = predicted("data.posts=-")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == expected(25)


def test_the_columns_of_a_data_configuration_are_used(predicted, in_folder, expected):
    path = posts_csv(in_folder / "p.csv", 5)
    path.write_text(path.read_text().replace("post_id,text", "id,body"))
    code, out, _ = predicted(
        "data=redsm5", "data.posts=p.csv", "data.columns.posts={post_id:id,text:body}"
    )
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == expected(5)


def test_the_model_is_made_with_the_settings(predicted, in_folder, scorer):
    posts_csv(in_folder / "p.csv", 5)
    code, _, err = predicted(
        "data.posts=p.csv", "criteria=[A.1]", "threshold={A.1:0.25}", "prevalence=0.1",
        "rows=sentence", "with_text=true", "training.amp=off", "model.max_length=64",
    )  # fmt: skip
    assert code == 0, err
    (checkpoint, options), keywords = scorer.made_with
    assert checkpoint == "model"
    assert (options.criteria, options.threshold, options.prevalence) == (
        ["A.1"],
        {"A.1": 0.25},
        0.1,
    )
    assert (options.rows, options.with_text) == ("sentence", True)
    assert keywords == {"overrides": {"training.amp": "off", "model.max_length": 64}}


def test_the_summary_counts_the_posts_decided_met_by_criterion(predicted, in_folder, expected):
    posts_csv(in_folder / "p.csv", 25)
    _, out, _ = predicted("data.posts=p.csv", "output=o.jsonl")
    for criterion_id in ("A.1", "A.2"):
        met = sum(row["decision"] for row in expected(25) if row["criterion_id"] == criterion_id)
        assert re.search(rf"^{criterion_id} +{met}  {met / 25:.3f}$", out, flags=re.M)
    assert re.search(r"^25 posts in [\d.]+ s, [\d,.]+ posts/s: o\.jsonl$", out, flags=re.M)


def test_posts_are_counted_once_however_many_sentences_meet_a_criterion_and_evidence_decides():
    counts = story.Counts()
    rows = [("p1", "A.1", 1), ("p1", "A.1", 1), ("p2", "A.1", 0), ("p2", "A.2", 0)]
    table = pa.table(
        dict(zip(("post_id", "criterion_id", "decision"), zip(*rows, strict=True), strict=True))
    )
    counts.add(2, table)
    assert (counts.posts, counts.met) == (2, {"A.1": 1, "A.2": 0})
    spans = pa.array(
        [[{"start_char": 0, "end_char": 1, "score": -3.0}], [], [], []], pa.list_(SPAN)
    )
    counts.add(2, table.drop_columns("decision").append_column("evidence", spans))
    assert (counts.posts, counts.met) == (4, {"A.1": 2, "A.2": 0})


def test_progress_is_logged_where_there_is_no_terminal(predicted, in_folder, monkeypatch):
    posts_csv(in_folder / "p.csv", 25)
    progress = story.PostsProgress
    monkeypatch.setattr(story, "PostsProgress", lambda: progress(seconds_between_lines=0.0))
    _, _, err = predicted("data.posts=p.csv", "output=o.jsonl")
    assert re.search(r"^INFO 10 posts, [\d,.]+ posts/s, 0:00:00 left$", err, flags=re.M)


# ------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv", "o.parquet"])
def test_what_precedes_a_fault_stays_and_the_others_are_predicted_after_it(
    predicted, in_folder, expected, output
):
    posts_csv(in_folder / "p.csv", 45, bad={34: "p34,", 37: ",x"})
    code, out, err = predicted("data.posts=p.csv", f"output={output}")
    assert (code, out) == (2, "")
    assert "p.csv, row 34, column text: must not be missing" in err
    assert "p.csv, row 37, column post_id: must not be missing" in err
    assert f"The predictions of 30 posts are in {output}.partial, and are whole." in err
    assert "skip=30" in err
    assert not (in_folder / output).exists()
    first = (in_folder / f"{output}.partial").rename(in_folder / f"first_{output}")
    assert read(first) == expected(30)
    posts_csv(in_folder / "p.csv", 45)
    code, _, _ = predicted("data.posts=p.csv", f"output={output}", "skip=30")
    assert code == 0
    assert read(first) + read(in_folder / output) == expected(45)


def test_posts_that_are_skipped_need_not_end_with_a_part(predicted, in_folder, expected):
    posts_csv(in_folder / "p.csv", 25)
    _, out, _ = predicted("data.posts=p.csv", "skip=13")
    assert [json.loads(line) for line in out.splitlines()] == expected(25, first=14)


def test_all_posts_skipped_leave_a_file_without_rows_and_more_are_refused(predicted, in_folder):
    posts_csv(in_folder / "p.csv", 5)
    for name in ("o.jsonl", "o.csv", "o.parquet"):
        assert predicted("data.posts=p.csv", "skip=5", f"output={name}")[0] == 0
        assert read(in_folder / name) == []
    code, _, err = predicted("data.posts=p.csv", "skip=9", "output=more.csv")
    assert (code, (in_folder / "more.csv").exists()) == (2, False)
    assert "`skip` must be at most 5, the number of posts, but is 9." in err


def test_a_fault_of_the_first_part_leaves_no_file(predicted, in_folder, scorer):
    posts_csv(in_folder / "p.csv", 5, bad={2: ",x"})
    scorer.made_with = None
    code, _, err = predicted("data.posts=p.csv", "output=o.csv")
    assert code == 2
    assert "row 2, column post_id: must not be missing" in err
    assert scorer.made_with is None  # told before the model is loaded
    assert [path.name for path in in_folder.iterdir()] == ["p.csv"]


def test_an_unfinished_file_is_not_overwritten(predicted, in_folder):
    posts_csv(in_folder / "p.csv", 5)
    partial = in_folder / "o.csv.partial"
    partial.write_text("hours of work")
    code, _, err = predicted("data.posts=p.csv", "output=o.csv")
    assert code == 2
    assert "o.csv.partial holds the predictions of a run that was not finished." in err
    assert partial.read_text() == "hours of work"


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv", "o.parquet"])
def test_a_file_that_another_process_begins_meanwhile_is_left_to_it(
    predicted, in_folder, scorer, output
):
    partial = in_folder / f"{output}.partial"
    scorer.before = staticmethod(lambda _: partial.write_text("hours of work"))
    posts_csv(in_folder / "p.csv", 5)
    code, _, err = predicted("data.posts=p.csv", f"output={output}")
    assert code == 2
    assert f"{output}.partial cannot be written" in err
    assert "No predictions were written." in err
    assert partial.read_text() == "hours of work"


@pytest.mark.parametrize("output", ["o.txt", "folder.csv"])
def test_an_output_that_is_no_file_of_a_known_format_is_refused(predicted, in_folder, output):
    posts_csv(in_folder / "p.csv", 5)
    (in_folder / "folder.csv").mkdir()
    code, _, err = predicted("data.posts=p.csv", f"output={output}")
    assert code == 2
    assert "`output` must be a .jsonl, .csv, .parquet file, or a folder" in err
    assert f"but is {output} instead." in err


def test_the_posts_are_not_replaced_by_their_predictions(predicted, in_folder):
    path = posts_csv(in_folder / "p.csv", 5)
    before = path.read_bytes()
    code, _, err = predicted("data.posts=p.csv", f"output={in_folder / 'p.csv'}")
    assert code == 2
    assert "`output` must be another file than `data.posts`" in err
    assert path.read_bytes() == before


def test_a_fault_of_the_model_keeps_what_was_predicted(predicted, in_folder, scorer, expected):
    def fail(number):
        if number == 3:
            raise ZeroDivisionError

    rows = expected(20)
    scorer.before = staticmethod(fail)
    posts_csv(in_folder / "p.csv", 45)
    with pytest.raises(ZeroDivisionError):
        main(
            [
                "predict",
                "checkpoint=model",
                "posts_per_chunk=10",
                "data.posts=p.csv",
                "output=o.csv",
            ]
        )
    assert read((in_folder / "o.csv.partial").rename(in_folder / "kept.csv")) == rows


# ----------------------------------------------------------------------------- signals, full disks


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("output", ["o.jsonl", "o.csv", "o.parquet"])
def test_a_signal_keeps_the_parts_that_are_predicted(
    predicted, in_folder, scorer, expected, output, number
):
    rows = expected(20)
    scorer.before = staticmethod(lambda part: part == 3 and os.kill(os.getpid(), number))
    posts_csv(in_folder / "p.csv", 45)
    code, _, err = predicted("data.posts=p.csv", f"output={output}")
    assert code == 128 + number
    assert f"Stopped. The predictions of 20 posts are in {output}.partial, and are whole." in err
    kept = (in_folder / f"{output}.partial").rename(in_folder / f"kept_{output}")
    assert read(kept) == rows


@pytest.mark.parametrize("output", ["o.jsonl", "o.parquet"])
def test_a_signal_while_a_part_is_written_waits_until_it_is_counted(
    predicted, in_folder, expected, monkeypatch, output
):
    written = []

    def interrupted(self, predictions):
        written.append(len(predictions))
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        append(self, predictions)

    kind = {".jsonl": prediction_files._TextFile, ".parquet": prediction_files._ParquetFile}
    own = kind[os.path.splitext(output)[1]]  # noqa: PTH122
    append = own._append
    monkeypatch.setattr(own, "_append", interrupted)
    posts_csv(in_folder / "p.csv", 45)
    code, _, err = predicted("data.posts=p.csv", f"output={output}")
    assert code == 130
    assert "The predictions of 20 posts are in" in err
    kept = (in_folder / f"{output}.partial").rename(in_folder / f"kept_{output}")
    assert read(kept) == expected(20)


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv"])
def test_a_full_disk_leaves_whole_lines_of_whole_parts(
    predicted, in_folder, expected, file_size_limit, output
):
    posts_csv(in_folder / "p.csv", 45)
    with file_size_limit(8000):
        code, _, err = predicted("data.posts=p.csv", f"output={output}")
    assert code == 2
    assert f"StorageError: {output}.partial cannot be written: the file is larger than" in err
    assert "(`output`)" in err
    count = int(re.search(r"The predictions of (\d+) posts are in", err)[1])
    assert 10 <= count < 45
    kept = (in_folder / f"{output}.partial").rename(in_folder / f"kept_{output}")
    assert read(kept) == expected(count)


def test_a_parquet_file_without_room_for_its_end_is_removed(predicted, in_folder, file_size_limit):
    posts_csv(in_folder / "p.csv", 450)
    with file_size_limit(8000):
        code, _, err = predicted("data.posts=p.csv", "output=o.parquet")
    assert code == 2
    assert "StorageError: o.parquet.partial cannot be written: the file is larger than" in err
    assert "No predictions were written." in err
    assert not list(in_folder.glob("o.parquet*"))


# --------------------------------------------------------------------------------- standard output


def test_who_reads_standard_output_may_leave(predicted, in_folder, monkeypatch):
    posts_csv(in_folder / "p.csv", 45)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", pipe)
        code, _, err = predicted("data.posts=p.csv")
    assert code == 0
    assert "Error" not in err


def test_a_full_standard_output_and_a_closed_one_are_told(predicted, in_folder, monkeypatch):
    posts_csv(in_folder / "p.csv", 45)
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        code, _, err = predicted("data.posts=p.csv")
        assert (code, "standard output cannot be written: the disk is full" in err) == (2, True)
        monkeypatch.setattr(sys, "stdout", None)
        code, _, err = predicted("data.posts=p.csv")
        assert (code, "Standard output is closed. Give `output=FILE`." in err) == (2, True)


# ------------------------------------------------------------------------------------------ memory


_WITH_A_FAKE = """
import sys, psutil
from psy_agents_noaug.run import predict
sys.path.insert(0, {folder!r})
from test_predict import FakeScorer
from psy_agents_noaug.cli import main
def show(part):
    if part in (40, 390):
        print("RSS", psutil.Process().memory_info().rss)
FakeScorer.before = staticmethod(show)
predict.Scorer = FakeScorer
sys.exit(main(["predict", "checkpoint=model", "data.posts=p.csv", "output=o.jsonl"]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(in_folder):
    posts_csv(in_folder / "p.csv", 100_000)
    program = _WITH_A_FAKE.format(folder=str(Path(__file__).parent))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "100,000 posts in" in done.stdout
    early, late = [int(line[3:]) for line in done.stdout.splitlines() if line.startswith("RSS")]
    # 8 bytes of each further post, three times while arrays are merged; the predictions are 27 MB.
    assert late - early < 90_000 * 24 + 5_000_000
