"""brat: standoff files, discontinuous spans, attributes and notes, folders of annotators."""

import zipfile

import pyarrow.parquet as pq
import pytest
from annotated import OTHER, TEXT, at

SLEEP, CRY, NIGHT = (at(words) for words in ("I cannot sleep", "I cry all day", "at night"))


def spans(*pairs):
    return ";".join(f"{start} {end}" for start, end in pairs)


ANN = (
    f"T1\tSleep {spans(SLEEP)}\tI cannot sleep\n"
    f"T2\tDepressed_mood {spans(CRY, NIGHT)}\tI cry all day at night\n"
    "A1\tNegation T1\n"
    "A2\tSeverity T2 high\n"
    "R1\tCause Arg1:T1 Arg2:T2\n"
    "*\tEquiv T1 T2\n"
    "E1\tSleep:T1\n"
    "N1\tReference T1 Wikipedia:1\tSleep\n"
    "#1\tAnnotatorNotes T2\tsays so twice\n"
)
MAP = {"Sleep": "A.4", "Depressed_mood": "A.1"}


def test_discontinuous_spans_become_several_rows_and_notes_explanations(imported, written):
    written("corpus/post1.txt", TEXT)
    path = written("corpus/post1.ann", ANN).parent
    result = imported("brat", path, map=MAP, spans_imply_label=True)
    assert result.rows == [
        ("post1", None, "A.1", 1, "I cry all day"),
        ("post1", None, "A.1", 1, "at night"),
        ("post1", None, "A.4", 1, "I cannot sleep"),
    ]
    table = pq.read_table(result.folder / "annotations.parquet").to_pylist()
    assert {row["explanation"] for row in table} == {None, "says so twice"}
    left = {reason: result.left(reason) for reason in ("relations", "events", "normalizations")}
    assert left == {"relations": 2, "events": 1, "normalizations": 1}
    assert (result.left("attribute Severity"), result.left("attribute Negation")) == (1, 1)


def test_attributes_may_turn_a_label_round_or_leave_it_out(imported, written):
    written("corpus/post1.txt", TEXT)
    path = written("corpus/post1.ann", ANN).parent
    turned = {
        **MAP,
        "Sleep[Negation]": {"criterion_id": "A.4", "status": 0},
        "Depressed_mood[Severity=high]": None,
    }
    result = imported("brat", path, map=turned, spans_imply_label=True)
    assert result.rows == [("post1", None, "A.4", 0, "I cannot sleep")]


def test_folders_are_annotators_who_may_share_the_texts(imported, written):
    written("corpus/one.txt", TEXT)
    written("corpus/anna/one.ann", f"T1\tA.4 {spans(SLEEP)}\tI cannot sleep\n")
    written("corpus/ben/one.ann", "")
    root = written("corpus/two.txt", OTHER).parent
    result = imported("brat", root, spans_imply_label=True, empty="negative")
    assert result.posts == {"one": TEXT}
    assert result.rows == [
        ("one", "anna", "A.4", 1, "I cannot sleep"),
        ("one", "ben", "A.4", 0, None),
    ]
    assert result.left("without an .ann file") == 1


def test_annotators_are_the_folders_in_which_the_same_texts_are(imported, refused, written):
    for annotator, label in (("anna", "A.4"), ("ben", "A.6")):
        for batch in ("batch1", "batch2"):
            written(f"corpus/{annotator}/{batch}/d.txt", f"{TEXT}{batch}")
            line = f"T1\t{label} {spans(SLEEP)}\tI cannot sleep\n"
            root = written(f"corpus/{annotator}/{batch}/d.ann", line).parents[2]
    result = imported("brat", root, spans_imply_label=True, annotators=["anna"])
    assert result.rows == [
        (f"{batch}/d", "anna", "A.4", 1, "I cannot sleep") for batch in ("batch1", "batch2")
    ]
    below = imported("brat", root.parent, spans_imply_label=True)
    assert below.report["annotators"] == {"anna": 2, "ben": 2}


def test_an_annotator_has_one_file_of_a_document(refused, imported, written):
    written("corpus/d.txt", TEXT)
    written("corpus/anna/d.ann", f"T1\tA.4 {spans(SLEEP)}\tI cannot sleep\n")
    line = f"T1\tA.6 {spans(SLEEP)}\tI cannot sleep\n"
    root = written("corpus/anna/again/d.ann", line).parents[2]
    message = refused("brat", root, spans_imply_label=True)
    assert message.count("must be the only .ann file of its document and annotator") == 2


def test_folders_of_different_texts_are_no_annotators(imported, written):
    for folder, text in (("train", TEXT), ("dev", f"{TEXT} And so on.")):
        written(f"corpus/{folder}/1.txt", text)
        line = f"T1\tA.4 {spans(SLEEP)}\tI cannot sleep\n"
        root = written(f"corpus/{folder}/1.ann", line).parents[1]
    result = imported("brat", root, spans_imply_label=True)
    assert result.posts.keys() == {"train/1", "dev/1"}
    assert {row[1] for row in result.rows} == {None}
    assert "not annotators: no text is in two of them" in result.summary


def test_texts_may_be_above_the_annotators_in_a_zip_and_of_one_annotator(imported, written):
    line = f"T1\tA.4 {spans(SLEEP)}\tI cannot sleep\n"
    written("corpus/one.txt", TEXT)
    root = written("corpus/anna/one.ann", line).parents[1]
    path = written("corpus.zip", b"")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(root / "one.txt", "one.txt")
        archive.write(root / "anna/one.ann", "anna/one.ann")
    for export in (root, path):
        rows = imported("brat", export, spans_imply_label=True).rows
        assert rows == [("one", "anna", "A.4", 1, "I cannot sleep")]


def test_attributes_and_notes_of_an_event_are_those_of_its_trigger(imported, written):
    content = (
        f"T1\tA.4 {spans(SLEEP)}\tI cannot sleep\n"
        f"T2\tA.1 {spans(CRY)}\tI cry all day\n"
        "E1\tA.4:T1 Time:T2\nE2\tA.1:T2\nE3\tA.1:T2\n"
        "A1\tNegation E1\nA2\tSevere E3\nA3\tNegation E9\n#1\tAnnotatorNotes E1\tsleeps well\n"
    )
    written("corpus/post1.txt", TEXT)
    path = written("corpus/post1.ann", content).parent
    turned = {f"{c}[Negation]": {"criterion_id": c, "status": 0} for c in ("A.1", "A.4")}
    result = imported("brat", path, map=turned, spans_imply_label=True)
    assert result.rows == [
        ("post1", None, "A.1", 1, "I cry all day"),
        ("post1", None, "A.4", 0, "I cannot sleep"),
    ]
    table = pq.read_table(result.folder / "annotations.parquet").to_pylist()
    assert {row["explanation"] for row in table} == {None, "sleeps well"}
    assert (result.left("Negation of no span"), result.left("events")) == (1, 3)
    assert (result.left("attribute Negation of a"), result.left("attribute Severe")) == (0, 1)


@pytest.mark.parametrize("also", ["", f"T2\tA.1 {spans(CRY)}\tI cry all day\n"])
def test_one_annotator_who_says_both_of_the_same_words_is_refused(imported, refused, written, also):
    content = f"T1\tA.1 {spans(SLEEP)}\tI cannot sleep\n{also}E1\tA.1:T1\nE2\tA.1:T1\nA1\tNeg E2\n"
    written("corpus/post2.txt", OTHER)
    written("corpus/post2.ann", "T1\tA.4 0 2\tWe\n")
    written("corpus/post1.txt", TEXT)
    path = written("corpus/post1.ann", content).parent
    turned = {"A.1[Neg]": {"criterion_id": "A.1", "status": 0}}
    settings = {"map": turned, "spans_imply_label": True}
    message = refused("brat", path, **settings)
    assert "must not have a criterion both met and not met by one annotator (A.1)" in message
    assert imported("brat", path, **settings, faulty="leave_out").posts.keys() == {"post2"}


def test_other_words_of_what_is_met_may_be_a_hard_negative(imported, written):
    content = (
        f"T1\tA.1 {spans(CRY)}\tI cry all day\nT2\tA.1 {spans(SLEEP)}\tI cannot sleep\nA1\tNeg T2\n"
    )
    written("corpus/post1.txt", TEXT)
    path = written("corpus/post1.ann", content).parent
    turned = {"A.1[Neg]": {"criterion_id": "A.1", "status": 0}}
    result = imported("brat", path, map=turned, spans_imply_label=True)
    assert {(row[3], row[4]) for row in result.rows} == {
        (1, "I cry all day"),
        (0, "I cannot sleep"),
    }


def test_a_name_in_the_map_stands_for_all_values_but_false(imported, written):
    lines = [f"T{n}\tA.4 {spans(SLEEP)}\tI cannot sleep\n" for n in (1, 2, 3)]
    lines += ["A1\tPast T1 false\n", "A2\tPast T2 long_ago\n"]
    written("corpus/post1.txt", TEXT)
    path = written("corpus/post1.ann", "".join(lines)).parent
    result = imported("brat", path, map={"A.4[Past]": None}, spans_imply_label=True)
    assert result.rows == [("post1", None, "A.4", 1, "I cannot sleep")]
    assert result.report["labels_left_out"] == {"A.4": 1}


def test_attributes_with_different_meanings_are_refused(imported, refused, written):
    written("corpus/post2.txt", OTHER)
    written("corpus/post2.ann", "T1\tA.4 0 2\tWe\n")
    written("corpus/post1.txt", TEXT)
    path = written("corpus/post1.ann", ANN.replace("A1\t", "A3\tPast T1\nA1\t")).parent
    settings = {
        "map": {
            **MAP,
            "Sleep[Past]": "A.4",
            "Sleep[Negation]": {"criterion_id": "A.4", "status": 0},
        },
        "spans_imply_label": True,
    }
    message = refused("brat", path, **settings)
    assert "post1.ann: must not have a span with several attributes" in message
    assert "('Sleep[Past]', 'Sleep[Negation]')" in message
    assert imported("brat", path, **settings, faulty="leave_out").posts.keys() == {"post2"}


def test_attributes_with_one_meaning_are_all_used(imported, written):
    written("corpus/post1.txt", TEXT)
    path = written("corpus/post1.ann", ANN.replace("A1\t", "A3\tPast T1\nA1\t")).parent
    turned = {**MAP, "Sleep[Past]": None, "Sleep[Negation]": None}
    result = imported("brat", path, map=turned, spans_imply_label=True)
    assert {row[2] for row in result.rows} == {"A.1"}
    assert result.report["map_entries_without_label"] == ["Sleep"]


def test_a_span_of_what_is_not_met_is_asked_for_as_any_other(imported, refused, written):
    written("corpus/post1.txt", TEXT)
    path = written("corpus/post1.ann", f"T1\tSlept {spans(SLEEP)}\tI cannot sleep\n").parent
    turned = {"Slept": {"criterion_id": "A.4", "status": 0}}
    assert "1 spans" in refused("brat", path, map=turned)
    written("corpus/post2.txt", OTHER)
    written("corpus/post2.ann", "T1\tA.1 0 2\tWe\n")
    message = refused("brat", path, map=turned, spans_imply_label=False)
    assert "no document has a label" in message
    assert "2 spans without a label of their document" in message
    result = imported("brat", path, map=turned, spans_imply_label=True)
    assert result.rows[0] == ("post1", None, "A.4", 0, "I cannot sleep")


def test_a_span_over_a_line_end_is_compared_without_it(imported, written):
    line = f"T1\tA.1 {spans(at('all day,'), at('and I cry'))}\tall day, and I cry\n"
    written("corpus/post1.txt", TEXT)
    path = written("corpus/post1.ann", line).parent
    result = imported("brat", path, spans_imply_label=True)
    assert [row[-1] for row in result.rows] == ["all day,", "and I cry"]


def test_faults_are_told_by_file_and_line(refused, written):
    written("corpus/post1.txt", TEXT)
    written("corpus/lone.ann", "T1\tA.4 0 3\tI c\n")
    content = (
        "T1\tA.4 x 3\tabc\n"
        "T2\tA.4 2 5\txylozephyrquill\n"
        "?\n"
        f"T3\tA.4 {spans(SLEEP)}\tI cannot sleep\nT3\tA.4 0 1\tI\nA1\tNegation\n"
    )
    message = refused("brat", written("corpus/post1.ann", content).parent, spans_imply_label=True)
    for place in ("lone.ann: must have its text", "line 1", "line 3", "line 5", "line 6"):
        assert place in message
    assert "xylozephyrquill" not in message


LINE = f"T1\tA.4 {spans(SLEEP)}\tI cannot sleep\n"


@pytest.mark.parametrize("ann", [LINE, "", b"\xff"])
def test_a_document_is_left_out_of_which_one_annotator_has_no_text_or_cannot_be_read(
    imported, written, ann
):
    for annotator in ("anna", "ben"):
        written(f"corpus/{annotator}/one.txt", TEXT)
        written(f"corpus/{annotator}/one.ann", LINE)
    written("corpus/ben/two.txt", OTHER)
    written("corpus/ben/two.ann", "T1\tA.1 0 2\tWe\n")
    if ann == b"\xff":
        written("corpus/anna/two.txt", OTHER)
    root = written("corpus/anna/two.ann", ann).parents[1]
    result = imported("brat", root, spans_imply_label=True, faulty="leave_out")
    assert (result.posts.keys(), result.left("documents with faults")) == ({"one"}, 1)


def test_where_no_folder_is_known_for_an_annotator_a_file_without_text_is_of_each_of_its_name(
    imported, refused, written
):
    for name, text in (("anna/one", TEXT), ("anna/two", OTHER)):
        written(f"corpus/{name}.txt", text)
        written(f"corpus/{name}.ann", f"T1\tA.4 0 2\t{text[:2]}\n")
    root = written("corpus/ben/one.ann", "").parents[1]
    settings = {"spans_imply_label": True}
    assert "ben/one.ann: must have its text beside it" in refused("brat", root, **settings)
    result = imported("brat", root, **settings, faulty="leave_out")
    assert result.posts.keys() == {"anna/two"}
