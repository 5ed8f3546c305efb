"""brat: standoff files, discontinuous spans, attributes and notes, folders of annotators."""

import pyarrow.parquet as pq
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
    assert result.left("attribute Severity=high") == 1


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
