"""Files of predictions that are read back."""

import json

import pyarrow as pa
import pytest

from psy_agents_noaug.data.span import Span
from psy_agents_noaug.data.validation import Fault
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.run import prediction_rows
from psy_agents_noaug.run.prediction_files import open_predictions
from psy_agents_noaug.run.prediction_rows import read_predictions
from psy_agents_noaug.run.trec import read_predictions_as_run

ROW = {"post_id": "p1", "criterion_id": "A.4", "probability": 0.5}


def read(path):
    faults: list[Fault] = []
    rows = list(read_predictions(path, faults))
    return rows, [str(fault) for fault in faults]


@pytest.fixture
def lines_file(tmp_path):
    """Return a function from rows to a JSONL file of them."""

    def write(*rows):
        path = tmp_path / "p.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    return write


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_what_predict_writes_is_read_back(tmp_path, suffix):
    evidence = [{"start_char": 0, "end_char": 2, "score": 0.25}]
    rows = [
        {**ROW, "start_char": 0, "end_char": 5, "decision": 1, "evidence": evidence},
        {**ROW, "start_char": 6, "end_char": 9, "decision": 0, "evidence": []},
    ]
    file = open_predictions(str(tmp_path / f"p.{suffix}"))
    table = pa.Table.from_pylist(rows)
    file.write(table)
    file.finish(table.schema)
    (first, second), faults = read(tmp_path / f"p.{suffix}")
    assert not faults
    assert (first.document, first.probability, first.decision) == ("p1/0-5", 0.5, True)
    assert (first.evidence, second.evidence) == (((Span(0, 2), 0.25),), ())
    assert (second.sentence, second.decision) == (Span(6, 9), False)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path, encoding):
    path = tmp_path / "p.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n\n", encoding=encoding)
    rows, faults = read(path)
    assert (len(rows), faults) == (1, [])


def test_offsets_that_are_null_are_none(lines_file):
    path = lines_file({**ROW, "start_char": None, "end_char": None})
    assert read_predictions_as_run(path) == {"A.4": {"p1": 0.5}}


@pytest.mark.parametrize(
    ("entries", "rule"),
    [
        ({"probability": float("nan")}, "must have a number as probability"),
        ({"probability": "high"}, "must have a number as probability"),
        ({"probability": True}, "must have a number as probability"),
        ({"post_id": None}, "must have post_id and criterion_id"),
        ({"criterion_id": ["A.4"]}, "must have post_id and criterion_id"),
        ({"start_char": 3}, "must have start_char and end_char of a sentence, or neither"),
        ({"start_char": 3, "end_char": 3}, "must have start_char and end_char of a sentence"),
        ({"start_char": 0.5, "end_char": 3}, "must have start_char and end_char of a sentence"),
        ({"decision": "yes"}, "must have 0 or 1 as decision"),
        ({"evidence": ["words"]}, "must have evidence with start_char, end_char"),
        ({"evidence": 7}, "must have evidence with start_char, end_char"),
        ({"evidence": [{"start_char": 0, "end_char": 2, "score": "high"}]}, "must have evidence"),
        ({"evidence": [{"start_char": 0, "end_char": 2, "score": float("nan")}]}, "must have ev"),
    ],
)
def test_a_row_that_is_no_prediction_is_a_fault(lines_file, entries, rule):
    rows, (fault,) = read(lines_file(ROW, {**ROW, "post_id": "p2", **entries}))
    assert len(rows) == 1
    assert fault.startswith(f"line 2: {rule}")


@pytest.mark.parametrize("chunk", [1, 10])
def test_what_is_predicted_twice_is_a_fault(lines_file, monkeypatch, chunk):
    monkeypatch.setattr(prediction_rows, "_CHUNK", chunk)
    sentence = {**ROW, "start_char": 0, "end_char": 5}
    rows, (fault,) = read(lines_file(ROW, sentence, {**ROW, "criterion_id": "A.1"}, sentence))
    assert len(rows) == 3
    assert fault.startswith("line 4: must be the only one of its criterion and post")
    assert "'p1/0-5'" in fault


def test_lines_that_are_no_objects_and_an_empty_file_are_faults(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('[1]\n{"a": \n')
    rows, faults = read(path)
    assert (rows, faults) == ([], ["line 1: must be a JSON object", "line 2: must be JSON"])
    path.write_text("\n")
    assert read(path) == ([], ["the file: must have a row"])


@pytest.mark.parametrize(
    "line",
    [
        '{"post_id": "p1", "criterion_id": "A.4", "decision": 1, "decision": 0}\n',
        '{"post_id": "p1", "criterion_id": "A.4", "x": {"decision": 1, "decision": 0}}\n',
    ],
)
def test_a_row_with_a_key_twice_is_no_prediction(tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_text(line)
    assert read(path) == ([], ["line 1: must have each key once ('decision')"])


def test_a_ranking_needs_probabilities(lines_file):
    with pytest.raises(DataError, match="line 1: must have a number as probability"):
        read_predictions_as_run(lines_file({**ROW, "probability": None}))


@pytest.mark.parametrize(
    ("name", "content"), [("p.jsonl", b'{"a": "\xff"}\n'), ("p.parquet", b"x")]
)
def test_what_cannot_be_read_is_named(tmp_path, name, content):
    path = tmp_path / name
    with pytest.raises(DataError, match=r"cannot be read as predictions \(No such file"):
        read(path)
    path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        read(path)
