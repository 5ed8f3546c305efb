"""doccano: JSONL of several versions, and archives with a file for each annotator."""

import io
import json
import zipfile

import pytest
from annotated import OTHER, TEXT, at, jsonl

SLEEP = "I cannot sleep"
START, END = at(SLEEP)


@pytest.mark.parametrize(
    "record",
    [
        {"id": 3, "text": TEXT, "label": [[START, END, "A.4"]], "Comments": []},
        {"id": 3, "text": TEXT, "labels": [[START, END, "A.4"]], "meta": {}},
        {
            "id": 3,
            "text": TEXT,
            "entities": [{"id": 1, "label": "A.4", "start_offset": START, "end_offset": END}],
            "relations": [{"id": 1, "from_id": 1, "to_id": 1, "type": "next"}],
            "Comments": ["why"],
        },
    ],
)
def test_spans_of_any_version_are_read(imported, written, record):
    result = imported("doccano", written("all.jsonl", jsonl(record)), spans_imply_label=True)
    assert result.rows == [("3", None, "A.4", 1, SLEEP)]
    assert result.left("relations") == len(record.get("relations", []))
    assert result.left("comments") == len(record.get("Comments", []))


def test_labels_of_documents_and_empty_documents_are_read(imported, refused, written):
    records = [
        {"id": 1, "text": TEXT, "label": ["FATIGUE", "Sleep problems"]},
        {"id": 2, "text": OTHER, "label": []},
    ]
    path = written("all.jsonl", jsonl(*records))
    assert "1 documents (the first: line 2): have no label" in refused("doccano", path)
    assert imported("doccano", path, empty="negative").posts.keys() == {"1", "2"}
    result = imported("doccano", path, empty="leave_out")
    assert result.posts.keys() == {"1"}
    assert result.rows == [("1", None, "A.4", 1, None), ("1", None, "A.6", 1, None)]
    assert result.left("empty=leave_out") == 1


def test_categories_beside_spans_are_labels_of_the_document(imported, written):
    record = {"id": 1, "text": TEXT, "cats": ["A.4"], "label": [[START, END, "A.4"]]}
    assert imported("doccano", written("all.jsonl", jsonl(record))).rows == [
        ("1", None, "A.4", 1, SLEEP)
    ]


def test_the_old_json_with_ids_of_labels_and_users_is_mapped(imported, refused, written):
    span = {"label": 2, "start_offset": START, "end_offset": END, "user": 9}
    records = [{"id": 1, "text": TEXT, "annotations": [span, {"label": 3, "user": 8}], "meta": {}}]
    path = written("old.json", records)
    assert "'2': must be mapped" in refused("doccano", path)
    rows = imported("doccano", path, map={"2": "A.4", "3": "A.1"}, spans_imply_label=True).rows
    assert ("1", "9", "A.4", 1, SLEEP) in rows
    assert ("1", "8", "A.1", 1, None) in rows


def test_the_files_of_an_archive_are_annotators(imported, written):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, label in (("anna.jsonl", "A.4"), ("ben.jsonl", "A.1")):
            archive.writestr(name, jsonl({"id": 1, "text": TEXT, "label": [label]}))
    result = imported("doccano", written("export.zip", content.getvalue()))
    assert result.posts == {"1": TEXT}
    assert ("1", "anna", "A.1", 0, None) in result.rows
    assert ("1", "ben", "A.1", 1, None) in result.rows
    assert result.report["annotators"] == {"anna": 1, "ben": 1}


def test_offsets_in_utf_16_are_found_by_the_words_that_they_would_cut(imported, written):
    record = {"id": 1, "text": TEXT, "label": [[*at("sleep", utf16=True), "A.4"]]}
    path = written("all.jsonl", jsonl(record))
    result = imported("doccano", path, spans_imply_label=True)
    assert (result.rows[0][-1], result.report["offset_units"]) == ("sleep", {"utf16": 1})
    forced = imported("doccano", path, spans_imply_label=True, offset_unit="code_points")
    assert forced.report["counts"]["spans that cut a word"] == 1


def two_annotators(**labels):
    """An archive in which each annotator has one span; all have the same text."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, offsets in labels.items():
            record = {"id": 1, "text": MOODS, "label": [[*offsets, "A.1"]]}
            archive.writestr(f"{name}.jsonl", jsonl(record))
    return content.getvalue()


MOODS = "😀 I feel sad, sad, sad."


def test_the_annotators_of_a_document_without_words_count_in_one_unit(imported, written):
    offsets = {"anna": at("feel", MOODS, utf16=True), "ben": at("sad,", MOODS, utf16=True)}
    path = written("export.zip", two_annotators(**offsets))
    result = imported("doccano", path, spans_imply_label=True)
    assert [row[-1] for row in result.rows] == ["feel", "sad,"]
    assert result.report["offset_units"] == {"utf16": 1}


def test_annotators_whose_offsets_speak_for_two_units_are_refused(refused, imported, written):
    offsets = {"anna": at("feel", MOODS, utf16=True), "ben": at("feel", MOODS)}
    path = written("export.zip", two_annotators(**offsets))
    message = refused("doccano", path, spans_imply_label=True)
    assert "must have offsets whose unit can be told" in message
    result = imported("doccano", path, spans_imply_label=True, offset_unit="code_points")
    assert result.report["counts"]["spans that cut a word"] == 1


def test_the_same_id_with_another_text_is_refused(refused, written):
    records = [{"id": 1, "text": text, "label": ["A.4"]} for text in (TEXT, OTHER)]
    message = refused("doccano", written("all.jsonl", jsonl(*records)))
    assert "line 2: must have an identifier that no document with another text has" in message
    assert "'1' is also at line 1" in message


def test_documents_without_ids_are_named_by_their_text(imported, written):
    record = {"text": TEXT, "label": ["A.4"]}
    ids = [
        set(imported("doccano", written(name, content)).posts)
        for name, content in (
            ("one.jsonl", jsonl(record)),
            ("two.jsonl", jsonl({"text": OTHER, "label": ["A.1"]}, record)),
        )
    ]
    assert ids[0] < ids[1]
    assert next(iter(ids[0])).startswith("text-")


def test_malformed_lines_are_all_told(refused, written):
    path = written(
        "all.jsonl",
        '{"text": \n[1]\n'
        + jsonl(
            {"id": 3, "text": TEXT, "label": [[5, 2, "A.4"]]},
            {"id": 4, "text": TEXT, "label": [[0, 10**6, "A.4"]]},
            {"id": 5, "label": ["A.4"]},
        ),
    )
    message = refused("doccano", path)
    for line in range(1, 6):
        assert f"line {line}" in message


def test_the_file_of_an_archive_of_one_is_an_annotator(imported, written):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("anna.jsonl", jsonl({"id": 1, "text": TEXT, "label": ["A.4"]}))
    result = imported("doccano", written("export.zip", content.getvalue()))
    assert result.rows == [("1", "anna", "A.4", 1, None)]


def test_a_key_that_an_object_has_twice_is_refused_as_one_of_its_values_would_be_lost(
    imported, refused, written
):
    text, other = json.dumps(TEXT), jsonl({"id": 2, "text": OTHER, "label": ["A.2"]})
    twice = f'{{"id": 1, "text": {text}, "label": ["A.1"], "label": ["A.4"]}}\n'
    nested = f'{{"id": 1, "text": {text}, "entities": [{{"label": "A.1", "label": "A.4"}}]}}\n'
    for line in (twice, nested):
        path = written("all.jsonl", line + other)
        assert "line 1: must have each key once ('label')" in refused("doccano", path)
        assert imported("doccano", path, faulty="leave_out").posts.keys() == {"2"}


def test_a_key_that_one_annotator_has_twice_leaves_out_the_document_of_all(imported, written):
    text, other = json.dumps(TEXT), jsonl({"id": 2, "text": OTHER, "label": ["A.2"]})
    written("export/ben.jsonl", jsonl({"id": 1, "text": TEXT, "label": ["A.4"]}) + other)
    twice = f'{{"id": 1, "text": {text}, "label": ["A.1"], "label": ["A.4"]}}\n'
    path = written("export/anna.jsonl", twice + other).parent
    result = imported("doccano", path, faulty="leave_out")
    assert result.posts.keys() == {"2"}
    assert result.left("must have each key once") == 1


def test_a_record_that_one_annotator_has_without_text_leaves_out_the_document_of_all(
    imported, written
):
    other = jsonl({"id": 2, "text": OTHER, "label": ["A.2"]})
    written("export/ben.jsonl", jsonl({"id": 1, "text": TEXT, "label": ["A.4"]}) + other)
    path = written("export/anna.jsonl", jsonl({"id": 1, "label": ["A.1"]}) + other).parent
    result = imported("doccano", path, faulty="leave_out")
    assert (result.posts.keys(), result.left("documents with faults")) == ({"2"}, 1)


@pytest.mark.parametrize("line", ['{"id": 1, \n', "[1]\n", '{"a": "\udcfa"}\n'])
def test_what_may_be_of_any_document_is_refused_where_there_are_other_annotators(
    imported, refused, written, line
):
    good = jsonl({"id": 1, "text": TEXT, "label": ["A.4"]})
    other = jsonl({"id": 2, "text": OTHER, "label": ["A.2"]})
    written("export/ben.jsonl", good + other)
    path = written("export/anna.jsonl", (other + line).encode("utf-8", "surrogateescape")).parent
    message = refused("doccano", path, faulty="leave_out")
    assert "faulty=leave_out needs to know of which document it is" in message


def test_a_line_that_is_no_json_is_left_out_of_the_file_of_nobody(imported, written):
    line = jsonl({"id": 1, "text": TEXT, "label": ["A.4"]})
    result = imported("doccano", written("all.jsonl", line + "{\n"), faulty="leave_out")
    assert (result.posts.keys(), result.left("must be JSON")) == ({"1"}, 1)
