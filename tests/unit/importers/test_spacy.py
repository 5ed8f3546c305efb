"""spaCy and Prodigy: JSONL of both, and DocBin where spaCy is installed."""

import pytest
from annotated import OTHER, TEXT, at, jsonl

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.importers import spacy as reader

SLEEP = "I cannot sleep"
START, END = at(SLEEP)
SPAN = {"start": START, "end": END, "label": "A.4"}


@pytest.mark.parametrize(
    "record",
    [
        {"text": TEXT, "spans": [{**SPAN, "text": SLEEP}], "answer": "accept"},
        {"text": TEXT, "spans": {"sc": [{**SPAN, "kb_id": ""}]}, "ents": []},
        {"text": TEXT, "ents": [SPAN], "tokens": []},
        {"text": TEXT, "entities": [[START, END, "A.4"]]},
        [TEXT, {"entities": [[START, END, "A.4"]]}],
    ],
)
def test_spans_of_any_layout_are_read(imported, written, record):
    result = imported("spacy", written("a.jsonl", jsonl(record)), spans_imply_label=True)
    assert [row[1:] for row in result.rows] == [(None, "A.4", 1, SLEEP)]


def test_categories_say_yes_and_no(imported, refused, written):
    records = [{"text": TEXT, "cats": {"A.4": 1.0, "A.1": 0.0}, "ents": [SPAN], "id": 5}]
    assert imported("spacy", written("a.jsonl", jsonl(*records))).rows == [
        ("5", None, "A.1", 0, None),
        ("5", None, "A.4", 1, SLEEP),
    ]
    records[0]["cats"]["A.2"] = 0.7
    assert "must have 0 or 1" in refused("spacy", written("b.jsonl", jsonl(*records)))


def test_a_label_that_is_no_text_is_a_fault(refused, written):
    path = written("a.jsonl", jsonl({"text": TEXT, "label": ["A.4"]}))
    assert "must have text as label" in refused("spacy", path, empty="negative")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"accept": [{"id": "A.1"}]}, "must have labels that are text in `accept`"),
        ({"accept": ["A.1", None]}, "must have labels that are text in `accept`"),
        ({"accept": True}, "must have labels that are text in `accept`"),
        ({"cats": ["A.4"]}, "must have an object of labels as `cats`"),
        ({"cats": "A.4"}, "must have an object of labels as `cats`"),
        ({"label": "A.4", "answer": False}, "must have text as answer"),
    ],
)
def test_what_holds_no_label_where_labels_belong_is_a_fault(refused, written, said, told):
    path = written("a.jsonl", jsonl({"text": TEXT, "answer": "accept", **said}))
    assert f"line 1: {told}" in refused("spacy", path)


@pytest.mark.parametrize("said", [{"accept": None, "cats": None}, {"accept": [], "cats": {}}])
def test_an_accepted_example_without_a_label_is_a_negative(imported, written, said):
    records = [{"text": TEXT, "id": 1, **said}, {"text": OTHER, "id": 2, "accept": ["A.4"]}]
    path = written("a.jsonl", jsonl(*({**r, "answer": "accept"} for r in records)))
    result = imported("spacy", path, negatives="explicit")
    assert [(row[0], *row[2:4]) for row in result.rows] == [("1", "A.4", 0), ("2", "A.4", 1)]


def test_the_answers_of_prodigy_count(imported, written):
    records = [
        {"text": f"{TEXT}{n}", "label": "A.4", "answer": answer, "id": n, **more}
        for n, (answer, more) in enumerate(
            [
                ("accept", {"_annotator_id": "anna"}),
                ("reject", {"_session_id": "ben"}),
                ("ignore", {}),
                ("accept", {"label": None, "accept": ["A.1", "A.2"]}),
                ("reject", {"label": None, "spans": [SPAN]}),
                ("accept", {"label": None, "spans": []}),
            ]
        )
    ]
    result = imported("spacy", written("a.jsonl", jsonl(*records)))
    assert result.rows == [
        ("0", "anna", "A.4", 1, None),
        ("1", "ben", "A.4", 0, None),
        ("3", None, "A.1", 1, None),
        ("3", None, "A.2", 1, None),
    ]
    assert result.posts.keys() == {"0", "1", "3", "5"}
    assert (result.left("ignored"), result.left("rejected")) == (1, 1)


def test_one_annotator_who_says_both_is_refused(refused, imported, written):
    records = [{"text": TEXT, "label": "A.4", "answer": a} for a in ("accept", "reject")]
    records.append({"text": OTHER, "label": "A.1", "answer": "accept"})
    path = written("a.jsonl", jsonl(*records))
    message = refused("spacy", path)
    assert "must not have a criterion both met and not met by one annotator (A.4)" in message
    kept = imported("spacy", path, faulty="leave_out")
    assert (list(kept.posts.values()), kept.left("with faults")) == ([OTHER], 1)


@pytest.mark.parametrize(("answer", "status"), [("accept", 1), ("reject", 0)])
def test_spans_of_an_example_with_a_label_only_highlight(imported, written, answer, status):
    record = {"text": TEXT, "label": "A.4", "spans": [SPAN, {"start": 0, "end": 1}], "id": 1}
    path = written("a.jsonl", jsonl({**record, "answer": answer}))
    result = imported("spacy", path, spans_imply_label=False)
    assert result.rows == [("1", None, "A.4", status, None)]
    assert result.left("only highlight words") == 2


@pytest.mark.parametrize("negatives", ["auto", "explicit"])
def test_who_was_asked_about_one_label_says_nothing_of_others(imported, written, negatives):
    asked = {"text": TEXT, "id": 1, "answer": "accept"}
    records = [
        {**asked, "label": "A.4", "_annotator_id": "x"},
        {**asked, "label": "A.1", "_annotator_id": "y"},
        {**asked, "accept": ["A.4"], "_annotator_id": "z"},
    ]
    result = imported("spacy", written("a.jsonl", jsonl(*records)), negatives=negatives)
    assert result.rows == [
        ("1", "x", "A.4", 1, None),
        ("1", "y", "A.1", 1, None),
        ("1", "z", "A.1", 0, None),
        ("1", "z", "A.4", 1, None),
    ]


@pytest.mark.parametrize(
    ("asked", "is_dropped"), [({"label": "A.4"}, True), ({"accept": ["A.4"]}, False)]
)
def test_a_training_on_what_was_asked_alone_takes_nothing_else_for_a_negative(
    imported, written, asked, is_dropped
):
    path = written("a.jsonl", jsonl({"text": TEXT, "id": 1, "answer": "accept", **asked}))
    command = imported("spacy", path).summary.splitlines()[-1]
    assert command.endswith(" data.unannotated_pairs=drop") == is_dropped


def test_who_was_shown_one_span_says_nothing_of_others(imported, written):
    crying = dict(zip(("start", "end"), at("I cry"), strict=True), label="A.1")
    shown = {"text": TEXT, "id": 1, "_view_id": "ner"}
    records = [
        {**shown, "spans": [crying], "answer": "accept", "_annotator_id": "x"},
        {**shown, "spans": [SPAN], "answer": "reject", "_annotator_id": "x"},
        {**shown, "spans": [SPAN], "answer": "accept", "_annotator_id": "y"},
    ]
    result = imported("spacy", written("a.jsonl", jsonl(*records)), spans_imply_label=True)
    assert result.rows == [("1", "x", "A.1", 1, "I cry"), ("1", "y", "A.4", 1, SLEEP)]
    assert result.left("suggested spans that the annotator rejected") == 1
    assert result.summary.endswith(" data.unannotated_pairs=drop")


@pytest.mark.parametrize(
    ("view", "says_all"),
    [("ner", False), ("spans", False), ("ner_manual", True), ("spans_manual", True)],
)
def test_only_who_marked_spans_by_hand_says_no_to_other_criteria(imported, written, view, says_all):
    record = {"text": TEXT, "spans": [SPAN], "answer": "accept", "_view_id": view}
    result = imported(
        "spacy",
        written("a.jsonl", jsonl(record)),
        spans_imply_label=True,
        negatives="explicit",
        map={"Sad": "A.1"},
    )
    assert [row[2:4] for row in result.rows] == [("A.1", 0)] * says_all + [("A.4", 1)]


def test_a_docbin_needs_spacy(imported, written, monkeypatch):
    monkeypatch.setattr(reader, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Reading a\.spacy needs spacy"):
        imported("spacy", written("a.spacy", b"x"))


def test_a_docbin_is_read(imported, written):
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed")
    from spacy.tokens import DocBin, Span

    nlp = spacy.blank("en")
    doc, other = nlp("I cannot sleep at all"), nlp(OTHER)
    doc.ents = [Span(doc, 0, 4, "A.4")]
    doc.cats = {"A.4": 1.0}
    content = DocBin(
        docs=[doc, other], attrs=["ENT_IOB", "ENT_TYPE"], store_user_data=True
    ).to_bytes()
    result = imported("spacy", written("a.spacy", content), empty="negative")
    assert (len(result.posts), len(result.rows)) == (2, 1)
