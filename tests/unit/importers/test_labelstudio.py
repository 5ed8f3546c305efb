"""Label Studio: JSON of several versions, JSON-MIN and CSV."""

import csv
import io
import json

import pytest
from annotated import OTHER, TEXT, at

SLEEP = "I cannot sleep"


def span(words, label="Sleep problems", *, utf16=True, text=TEXT, **value):
    start, end = at(words, text, utf16=utf16)
    value = {"start": start, "end": end, "text": words, "labels": [label], **value}
    return {"from_name": "evidence", "to_name": "text", "type": "labels", "value": value}


def choices(*labels):
    value = {"choices": list(labels)}
    return {"from_name": "criteria", "to_name": "text", "type": "choices", "value": value}


def annotation(*result, by=1, **more):
    return {"id": 10, "completed_by": by, "was_cancelled": False, "result": list(result), **more}


def task(number, *annotations, text=TEXT, **more):
    return {"id": number, "data": {"text": text}, "annotations": list(annotations), **more}


def test_spans_and_choices_become_rows_with_the_ids_of_the_tool(imported, written):
    path = written(
        "export.json",
        [
            task(7, annotation(choices("Sleep problems", "FATIGUE"), span(SLEEP))),
            task(8, annotation(), text=OTHER),
        ],
    )
    result = imported("labelstudio", path)
    assert result.posts == {"7": TEXT, "8": OTHER}
    assert result.rows == [("7", "1", "A.4", 1, SLEEP), ("7", "1", "A.6", 1, None)]
    assert result.report["offset_units"] == {"utf16": 1}
    assert "to train: psy-agents train task=criteria data=imported" in result.summary


@pytest.mark.parametrize("utf16", [True, False])
def test_the_unit_of_offsets_is_found_for_each_document(imported, written, utf16):
    of_a_model = task(1, annotation(choices("A.4"), span(SLEEP, utf16=utf16)))
    of_a_browser = task(2, annotation(choices("A.1"), span("I cry", "A.1")))
    result = imported("labelstudio", written("export.json", [of_a_model, of_a_browser]))
    assert [row[-1] for row in result.rows] == [SLEEP, "I cry"]
    expected = {"utf16": 2} if utf16 else {"code_points": 1, "utf16": 1}
    assert result.report["offset_units"] == expected


def test_line_ends_that_the_browser_changed_are_a_unit_too(imported, written):
    text = "One\r\ntwo\r\nI cry\r\n"
    result = span("I cry", "A.1", text=text.replace("\r\n", "\n"))
    path = written("export.json", [task(1, annotation(choices("A.1"), result), text=text)])
    assert imported("labelstudio", path).rows == [("1", "1", "A.1", 1, "I cry")]


def test_overlapping_spans_and_regions_with_two_labels_are_all_kept(imported, written):
    both = span("I cry all day")
    both["value"]["labels"] = ["A.1", "A.6"]
    path = written(
        "export.json",
        [task(1, annotation(choices("A.1", "A.6", "A.4"), both, span("cry all day,\nand", "A.4")))],
    )
    assert [row[2:] for row in imported("labelstudio", path).rows] == [
        ("A.1", 1, "I cry all day"),
        ("A.4", 1, "cry all day,\nand"),
        ("A.6", 1, "I cry all day"),
    ]


def region(*results, identifier="r1"):
    """The results of one region, which have its id."""
    return [{**result, "id": identifier} for result in results]


def absent(words=SLEEP, **more):
    result = span(words, **more)
    value = {k: v for k, v in result["value"].items() if k != "labels"}
    return {
        **result,
        "from_name": "status",
        "type": "choices",
        "value": {**value, "choices": ["absent"]},
    }


NEGATED = {"Sleep problems[status=absent]": {"criterion_id": "A.4", "status": 0}, "absent": None}


def test_choices_about_a_region_are_attributes_of_its_labels(imported, written):
    crying = region(span("I cry", "A.1"), identifier="r2")
    without_place = {**absent(), "value": {"choices": ["absent"]}}
    rating = {"from_name": "sure", "type": "rating", "value": {"rating": 4}}
    for about in (absent(), without_place):
        path = written(
            "export.json",
            [task(1, annotation(*region(span(SLEEP), about, rating), *crying))],
        )
        result = imported("labelstudio", path, map=NEGATED, spans_imply_label=True)
        assert result.rows == [("1", "1", "A.1", 1, "I cry"), ("1", "1", "A.4", 0, SLEEP)]
        assert (result.left("attribute sure"), result.left("attribute status")) == (1, 0)


def test_an_attribute_that_the_map_does_not_name_is_counted(imported, written):
    path = written("export.json", [task(1, annotation(*region(span(SLEEP), absent())))])
    result = imported("labelstudio", path, map={"absent": None}, spans_imply_label=True)
    assert result.rows == [("1", "1", "A.4", 1, SLEEP)]
    assert result.left("attribute status of a label (LABEL[status] in the map reads it)") == 1


def test_two_labels_of_a_region_are_both_read_and_no_attribute_is_counted(imported, written):
    both = region(span(SLEEP), {**absent(), "value": {**absent()["value"], "choices": ["A.6"]}})
    path = written("export.json", [task(1, annotation(*both))])
    result = imported("labelstudio", path, spans_imply_label=True)
    assert [row[2:] for row in result.rows] == [("A.4", 1, SLEEP), ("A.6", 1, SLEEP)]
    assert not result.left("attribute")


def test_choices_at_the_place_of_a_region_are_attributes_in_json_min(imported, refused, written):
    record = {"id": 7, "text": TEXT, "annotator": 1, "annotation_id": 1}
    record |= {"evidence": [span(SLEEP)["value"]], "status": [absent()["value"]]}
    settings = {"map": NEGATED, "spans_imply_label": True}
    result = imported("labelstudio", written("min.json", [record]), **settings)
    assert result.rows == [("7", "1", "A.4", 0, SLEEP)]
    record["evidence"].append(span(SLEEP, "A.6")["value"])
    message = refused("labelstudio", written("min.json", [record]), **settings)
    assert "must be JSON where several regions are at one place" in message


def flat(**columns):
    """A record of JSON-MIN with a region, and with columns as Label Studio writes them."""
    evidence = [span(SLEEP)["value"]]
    return {"id": 7, "text": TEXT, "annotator": 1, "evidence": evidence, **columns}


SURE = {"start": 0, "end": 2, "rating": 4}


@pytest.mark.parametrize(
    ("columns", "map_"),
    [
        ({"status": "absent"}, NEGATED),
        ({"status": "Absent"}, {"SLEEP problems[Status]": "A.4", "absent": None}),
        ({"status": ["present", "absent"]}, {**NEGATED, "present": None}),
        ({"status": {"choices": ["absent", "present"]}}, {**NEGATED, "present": None}),
        # The column holds nothing else that the map knows.
        ({"status": "absent"}, {"Sleep problems[status=absent]": None}),
        ({"status": [SURE]}, {"Sleep problems[status=4]": None}),
    ],
)
def test_json_min_that_does_not_say_which_region_is_negated_is_refused(
    refused, written, columns, map_
):
    path = written("min.json", [flat(**columns)])
    message = refused("labelstudio", path, map=map_, spans_imply_label=True)
    assert "record 1 (task 7): must be exported as JSON" in message
    assert "does not say here of which region it is ('status')" in message


def test_csv_that_does_not_say_which_region_is_negated_is_refused(refused, written):
    record = flat(status="absent")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(record)
    writer.writerow(json.dumps(v) if isinstance(v, list) else v for v in record.values())
    path = written("export.csv", text.getvalue())
    message = refused("labelstudio", path, map=NEGATED, spans_imply_label=True)
    assert "row 1 (task 7): must be exported as JSON" in message


@pytest.mark.parametrize(
    "record",
    [
        flat(status="present"),  # of which the map says nothing with a label
        flat(status="absent", evidence=[span("I cry", "A.1")["value"]]),
        flat(status="absent", evidence=None, criteria="A.4"),
    ],
)
def test_a_choice_that_changes_no_label_of_the_record_is_read(imported, written, record):
    settings = {"map": {**NEGATED, "present": None}, "spans_imply_label": True}
    records = [record, flat(id=8, text=OTHER, evidence=None, criteria="A.6")]
    rows = imported("labelstudio", written("min.json", records), negatives="none", **settings).rows
    assert [row[3] for row in rows] == [1, 1]


def test_annotators_are_kept_apart_and_say_no_to_what_they_did_not_label(imported, written):
    path = written(
        "export.json",
        [
            task(
                1,
                annotation(choices("A.4"), by={"id": 3, "email": "a@b.c"}),
                annotation(choices("A.4", "A.1"), by=5),
            )
        ],
    )
    result = imported("labelstudio", path)
    assert result.rows == [
        ("1", "3", "A.1", 0, None),
        ("1", "3", "A.4", 1, None),
        ("1", "5", "A.1", 1, None),
        ("1", "5", "A.4", 1, None),
    ]
    assert result.report["pairs_of_disagreement"] == 1
    assert "disagree on 1 pairs" in result.summary
    assert result.summary.endswith("data.merge=majority")
    chosen = imported("labelstudio", path, annotators=[3])
    assert chosen.rows == [("1", "3", "A.4", 1, None)]
    assert chosen.left("other annotators") == 1


def test_what_is_no_annotation_is_left_and_counted(imported, written):
    relation = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}
    rating = {"from_name": "sure", "to_name": "text", "type": "rating", "value": {"rating": 4}}
    rejected = annotation(choices("A.1"), reviews=[{"accepted": True}, {"accepted": False}])
    path = written(
        "export.json",
        [
            task(1, annotation(choices("A.4"), relation, rating)),
            task(2, annotation(choices("A.1"), was_cancelled=True)),
            task(3),
            task(4, rejected, predictions=[{"model_version": "m", "result": [choices("A.2")]}]),
            task(5, drafts=[{"result": []}]),
            task(6, annotation(), text="  \n"),
        ],
    )
    result = imported("labelstudio", path)
    assert (result.posts.keys(), result.rows) == ({"1"}, [("1", "1", "A.4", 1, None)])
    reasons = ["relations", "of type rating", "skipped", "rejected", "predictions", "drafts"]
    assert [result.left(reason) for reason in reasons] == [1] * 6
    assert result.left("nobody has annotated") == 4
    assert result.left("without text") == 1
    assert all(reason in result.summary for reason in reasons)


def test_predictions_and_ground_truth_are_read_on_request(imported, written):
    truth = annotation(choices("A.1"), by=2, ground_truth=True)
    predictions = [{"model_version": "v3", "result": [choices("A.2")]}]
    path = written(
        "export.json", [task(1, annotation(choices("A.4")), truth, predictions=predictions)]
    )
    rows = imported("labelstudio", path, ground_truth_only=True).rows
    assert rows == [("1", "2", "A.1", 1, None)]
    rows = imported("labelstudio", path, with_predictions=True, annotators=["v3"]).rows
    assert rows == [("1", "v3", "A.2", 1, None)]


MOODS = "😀😀 I feel sad. I am so sad, sad, sad."
UNIT_IS_NOT_TOLD = "must have offsets whose unit can be told"


def region_of(words, label="A.1", *, utf16, quoted=False, text=MOODS):
    """A region, of which the file has no words unless it is quoted."""
    result = span(words, label, utf16=utf16, text=text)
    if not quoted:
        del result["value"]["text"]
    return result


def predicted(*results, model="m"):
    return {"model_version": model, "result": [choices("A.1"), *results]}


def moods(*predictions, by_human=()):
    human = annotation(choices("A.1"), *by_human)
    return [task(1, human, text=MOODS, predictions=list(predictions))]


@pytest.mark.parametrize(("words", "utf16"), [("feel", True), ("so sad", False)])
def test_a_models_offsets_without_words_have_their_own_unit(imported, written, words, utf16):
    human = region_of("so sad", utf16=True, quoted=True)
    model = predicted(region_of(words, utf16=utf16))
    path = written("export.json", moods(model, by_human=[human]))
    result = imported("labelstudio", path, with_predictions=True)
    assert result.rows == [("1", "1", "A.1", 1, "so sad"), ("1", "m", "A.1", 1, words)]
    units = {"utf16": 1} if utf16 else {"utf16": 1, "code_points": 1}
    assert result.report["offset_units"] == units
    assert "annotations without words at their offsets" in result.summary


def test_a_models_words_do_not_give_the_unit_of_a_human(imported, written):
    human = region_of("so sad", utf16=True)
    model = predicted(region_of("I feel", utf16=False, quoted=True))
    path = written("export.json", moods(model, by_human=[human]))
    rows = imported("labelstudio", path, with_predictions=True).rows
    assert [row[-1] for row in rows] == ["so sad", "I feel"]


def test_two_models_may_count_in_two_units(imported, written):
    first = predicted(region_of("feel", utf16=True), model="a")
    second = predicted(region_of("so sad", utf16=False), model="b")
    path = written("export.json", moods(first, second))
    rows = imported("labelstudio", path, with_predictions=True).rows
    assert [row[-1] for row in rows] == [None, "feel", "so sad"]


# In UTF-16 units "sad," is " sad", which cuts no word either; "ee" cuts a word in both.
@pytest.mark.parametrize("words", ["sad,", "ee"])
def test_a_models_offsets_whose_unit_cannot_be_told_are_refused_until_it_is_given(
    refused, imported, written, words
):
    text = "😀 I feel sad, sad, sad."
    human = region_of("sad", utf16=True, quoted=True, text=text)
    model = predicted(region_of(words, utf16=False, text=text))
    content = [task(1, annotation(choices("A.1"), human), text=text, predictions=[model])]
    path = written("export.json", content)
    message = refused("labelstudio", path, with_predictions=True)
    assert f"record 1 (task 1): {UNIT_IS_NOT_TOLD}" in message
    assert "offset_unit=code_points or offset_unit=utf16" in message
    assert "'m'" in message
    settings = {"with_predictions": True, "offset_unit": "code_points"}
    rows = imported("labelstudio", path, **settings).rows
    assert [row[-1] for row in rows] == ["sad", words]


def test_a_models_offsets_that_mean_the_same_in_all_units_are_not_refused(imported, written):
    text = "I feel sad. 😀"
    model = predicted(region_of("sad", utf16=False, text=text))
    content = [task(1, annotation(choices("A.1")), text=text, predictions=[model])]
    result = imported("labelstudio", written("export.json", content), with_predictions=True)
    assert [row[-1] for row in result.rows] == [None, "sad"]
    assert "annotations without words" not in result.summary


def test_a_models_words_that_fit_in_all_units_leave_the_unit_to_its_other_offsets(
    refused, imported, written
):
    text = "I feel low. 😀 I feel sad, sad, sad."
    before = region_of("feel low", utf16=False, quoted=True, text=text)
    for words, is_told in (("sad", True), ("sad,", False)):
        model = predicted(before, region_of(words, utf16=False, text=text))
        content = [task(1, annotation(choices("A.1")), text=text, predictions=[model])]
        path = written("export.json", content)
        if is_told:
            rows = imported("labelstudio", path, with_predictions=True).rows
            assert [row[-1] for row in rows] == [None, "feel low", words]
        else:
            assert UNIT_IS_NOT_TOLD in refused("labelstudio", path, with_predictions=True)


def test_a_models_offsets_do_not_follow_the_line_ends_of_a_human(imported, written):
    text = "One\r\ntwo\r\nI cry\r\n"
    human = span("I cry", "A.1", text=text.replace("\r\n", "\n"))
    model = predicted(region_of("cry", utf16=False, text=text))
    content = [task(1, annotation(choices("A.1"), human), text=text, predictions=[model])]
    result = imported("labelstudio", written("export.json", content), with_predictions=True)
    assert [row[-1] for row in result.rows] == ["I cry", "cry"]


def test_a_models_offsets_that_fit_at_one_place_alone_are_taken_whatever_the_unit(
    imported, written
):
    text = "One\r\ntwo\r\nI cry 😀"
    model = predicted(region_of("cry", utf16=False, text=text))
    content = [task(1, annotation(choices("A.1")), text=text, predictions=[model])]
    result = imported("labelstudio", written("export.json", content), with_predictions=True)
    assert [row[-1] for row in result.rows] == [None, "cry"]


def test_words_in_the_file_go_before_a_unit_that_is_given(imported, written):
    text = "😀😀 ha ha ha ha, I cry"
    human = [
        region_of("I cry", utf16=True, quoted=True, text=text),
        region_of("ha ha ha", utf16=True, quoted=True, text=text),
    ]
    path = written("export.json", [task(1, annotation(choices("A.1"), *human), text=text)])
    rows = imported("labelstudio", path, offset_unit="code_points").rows
    assert [row[-1] for row in rows] == ["I cry", "ha ha ha"]


def test_the_completions_of_versions_before_1_are_read(imported, written):
    old = {"id": 4, "data": {"text": TEXT}, "completions": [annotation(choices("A.4"))]}
    path = written("completions.json", [old])
    assert imported("labelstudio", path).rows == [("4", "1", "A.4", 1, None)]


def test_the_files_of_a_cloud_storage_are_a_task_each(imported, written):
    for number in (1, 2):
        own = annotation(choices("A.4"))
        content = {**own, "task": {"id": number, "data": {"text": f"{TEXT}{number}"}}}
        path = written(f"storage/{number}.json", json.dumps(content, indent=2))
    assert imported("labelstudio", path.parent).posts.keys() == {"1", "2"}


def hypertext(words, start):
    """A region of HyperText; its offsets count the text that is shown, without the markup."""
    value = {
        "start": "/p[1]/text()[1]",
        "end": "/p[1]/text()[1]",
        "startOffset": 0,
        "globalOffsets": {"start": start, "end": start + len(words)},
        "text": words,
        "hypertextlabels": ["A.4"],
    }
    return {"from_name": "l", "to_name": "t", "type": "hypertextlabels", "value": value}


def test_hypertext_without_markup_is_read_by_its_global_offsets(imported, written):
    result = hypertext(SLEEP, at(SLEEP, utf16=True)[0])
    path = written("export.json", [task(1, annotation(choices("A.4"), result))])
    assert imported("labelstudio", path).rows == [("1", "1", "A.4", 1, SLEEP)]


def test_hypertext_with_markup_is_found_by_its_words_or_refused(imported, refused, written):
    text = f"<p>Hello.</p><p>{SLEEP}, <b>ever</b>.</p>"
    result = hypertext(SLEEP, len("Hello."))
    path = written("export.json", [task(1, annotation(choices("A.4"), result), text=text)])
    found = imported("labelstudio", path)
    assert found.rows == [("1", "1", "A.4", 1, SLEEP)]
    assert found.report["counts"]["spans found by their words, as their offsets are wrong"] == 1
    over_a_tag = hypertext(f"{SLEEP}, ever", len("Hello."))
    path = written("export.json", [task(1, annotation(choices("A.4"), over_a_tag), text=text)])
    assert "must have at the offsets of each span the words" in refused("labelstudio", path)


def flat_records():
    first, second = span(SLEEP)["value"], span("I cry", "A.1")["value"]
    shared = {"id": 7, "text": TEXT, "annotation_id": 1, "lead_time": 3.2}
    return [
        {
            **shared,
            "evidence": [first, second],
            "criteria": {"choices": ["A.4", "A.1"]},
            "annotator": 1,
        },
        {**shared, "annotation_id": 2, "criteria": "A.4", "annotator": "b@c.d"},
    ]


FLAT_ROWS = [
    ("7", "1", "A.1", 1, "I cry"),
    ("7", "1", "A.4", 1, SLEEP),
    ("7", "b@c.d", "A.1", 0, None),
    ("7", "b@c.d", "A.4", 1, None),
]


def test_json_min_is_read(imported, written):
    path = written("min.json", flat_records())
    assert imported("labelstudio", path).rows == FLAT_ROWS


def test_csv_is_read(imported, written):
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["text", "id", "evidence", "criteria", "annotator", "annotation_id"]
    )
    writer.writeheader()
    for record in flat_records():
        cells = {key: record.get(key, "") for key in writer.fieldnames}
        writer.writerow(
            {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in cells.items()}
        )
    path = written("export.csv", text.getvalue())
    assert imported("labelstudio", path).rows == FLAT_ROWS


def test_columns_of_plain_words_are_labels_if_the_map_knows_one_or_fields_names_them(
    imported, refused, written
):
    records = [
        {"id": n, "text": f"{TEXT}{n}", "mood": mood, "site": "Forum", "annotator": 1}
        for n, mood in enumerate(["Low", "Sleepless"])
    ]
    path = written("min.json", records)
    message = refused("labelstudio", path, map={"Low": "A.1"})
    assert "'Sleepless' in mood: must be mapped" in message
    assert "Forum" not in message
    result = imported("labelstudio", path, map={"Low": "A.1", "Sleepless": "A.4"})
    assert "not as labels: 'site'" in result.summary
    assert "Read as labels, as criteria know one of their words: 'mood'" in result.summary
    settings = {"fields": ["site"], "map": {"Forum": "A.2"}, "text": "text"}
    result = imported("labelstudio", path, **settings)
    assert {row[2] for row in result.rows} == {"A.2"}
    assert "Read as labels" not in result.summary


def test_words_that_their_offsets_miss_are_found_if_they_are_there_once(imported, written):
    wrong = span(SLEEP)
    wrong["value"] |= {"start": 1, "end": 9}
    path = written("export.json", [task(1, annotation(choices("A.4"), wrong))])
    result = imported("labelstudio", path)
    assert result.rows == [("1", "1", "A.4", 1, SLEEP)]
    counts = result.report["counts"]
    assert counts["spans found by their words, as their offsets are wrong"] == 1


def test_all_faults_are_told_at_once_with_their_places_and_no_text(refused, imported, written):
    nowhere = span(SLEEP, text=f"{SLEEP} xylozephyrquill")
    nowhere["value"]["text"] = "xylozephyrquill"
    twice = span("I cry", "A.1")
    twice["value"] |= {"start": 0, "end": 3}
    path = written(
        "export.json",
        [
            task(1, annotation(choices("A.4"), nowhere)),
            task(2, annotation(choices("A.1"), twice), text=f"{TEXT}2"),
            task(3, annotation(choices("A.1")), text="s3://bucket/post.txt"),
            task(4, annotation(choices("A.4")), text=f"{TEXT}\ud83d"),
            task(5, annotation(choices("A.4")), text=OTHER),
            "no task",
        ],
    )
    message = refused("labelstudio", path)
    for place in ("record 1 (task 1)", "(task 2)", "(task 3)", "(task 4)", "record 6"):
        assert place in message
    assert "xylozephyrquill" not in message
    assert "(task 5)" not in message
    kept = imported("labelstudio", path, faulty="leave_out")
    assert kept.posts.keys() == {"5"}
    assert kept.left("documents with faults") == 3


def test_spans_without_a_label_of_the_document_need_a_word_of_the_user(refused, imported, written):
    path = written(
        "export.json", [task(1, annotation(choices("A.1"), span(SLEEP), span("I cry", "A.1")))]
    )
    assert "1 spans (the first: record 1 (task 1)): have no label" in refused("labelstudio", path)
    rows = imported("labelstudio", path, spans_imply_label=True).rows
    assert [row[2] for row in rows] == ["A.1", "A.4"]
    result = imported("labelstudio", path, spans_imply_label=False)
    assert [row[2] for row in result.rows] == ["A.1"]
    assert result.left("without a label of their document") == 1


def test_a_text_in_another_field_is_named(refused, imported, written):
    data = {"title": "A", "letter": TEXT, "author": "x7"}
    path = written(
        "export.json", [{"id": 1, "data": data, "annotations": [annotation(choices("A.4"))]}]
    )
    assert "'title', 'letter', 'author'" in refused("labelstudio", path)
    result = imported("labelstudio", path, text="letter", group="author", id="title")
    assert result.posts == {"A": TEXT}


def test_of_two_fields_that_may_be_the_text_none_is_taken_without_a_word(
    refused, imported, written
):
    data = {"text": "A title", "body": TEXT}
    path = written(
        "export.json", [{"id": 1, "data": data, "annotations": [annotation(choices("A.4"))]}]
    )
    assert "text=FIELD) (the fields are 'text', 'body')" in refused("labelstudio", path)
    assert imported("labelstudio", path, text="body").posts == {"1": TEXT}


def test_a_corrected_copy_replaces_what_its_annotator_copied(imported, written):
    old = annotation(choices("A.1"), id=10)
    path = written(
        "export.json",
        [
            task(1, old, annotation(choices("A.4"), id=11, parent_annotation=10)),
            task(2, old, annotation(choices("A.4"), by=2, id=11, parent_annotation=10)),
        ],
    )
    result = imported("labelstudio", path, negatives="none")
    assert result.rows == [
        ("1", "1", "A.4", 1, None),
        ("2", "1", "A.1", 1, None),
        ("2", "2", "A.4", 1, None),
    ]
    assert result.left("made a corrected copy") == 1


def test_a_copy_that_does_not_count_replaces_nothing(imported, written):
    copy = annotation(choices("A.4"), id=11, parent_annotation=10, was_cancelled=True)
    path = written("export.json", [task(1, annotation(choices("A.1"), id=10), copy)])
    assert imported("labelstudio", path).rows == [("1", "1", "A.1", 1, None)]


@pytest.mark.parametrize(
    ("by", "told"),
    [
        (None, "must say of each of several annotations whose it is"),
        (1, "must have one annotation of each annotator"),
    ],
)
def test_several_annotations_of_one_annotator_or_of_nobody_are_not_united(
    refused, imported, written, by, told
):
    path = written(
        "export.json",
        [
            task(
                1,
                annotation(choices("A.1"), by=by, id=10),
                annotation(choices("A.4"), by=by, id=11, ground_truth=True),
                annotation(choices("A.2"), by=2, id=12),
            ),
            task(2, annotation(choices("A.1"), by=by), text=OTHER),
        ],
    )
    message = refused("labelstudio", path)
    assert f"record 1 (task 1): {told}; annotators=[ID] and" in message
    assert "task 2" not in message
    assert imported("labelstudio", path, annotators=[2]).rows == [("1", "2", "A.2", 1, None)]
    assert imported("labelstudio", path, ground_truth_only=True).rows[0][2] == "A.4"
    assert imported("labelstudio", path, faulty="leave_out").posts == {"2": OTHER}


def test_rows_of_json_min_without_annotators_are_not_united(refused, written):
    records = [
        {"id": 7, "text": TEXT, "annotation_id": n, "criteria": label}
        for n, label in enumerate(["A.1", "A.4"])
    ]
    assert "whose it is" in refused("labelstudio", written("min.json", records))


@pytest.mark.parametrize("key", ["mood:Low", "mood:*"])
def test_a_column_whose_labels_the_map_names_with_it_holds_labels(imported, written, key):
    path = written("min.json", [{"id": 1, "text": TEXT, "mood": "Low", "annotator": 1}])
    result = imported("labelstudio", path, map={key: "A.2"})
    assert result.rows == [("1", "1", "A.2", 1, None)]


def test_regions_of_paragraphs_are_refused(refused, written):
    value = {"start": "0", "end": "1", "startOffset": 0, "endOffset": 4, "paragraphlabels": ["A.4"]}
    result = {"from_name": "l", "to_name": "t", "type": "paragraphlabels", "value": value}
    path = written("export.json", [task(1, annotation(choices("A.4"), result))])
    assert "must not have regions of Paragraphs" in refused("labelstudio", path)


@pytest.mark.parametrize("field", ["dialogue", "text"])
@pytest.mark.parametrize("other", ["title", "comment"])
def test_of_a_dialogue_no_other_field_becomes_the_text(refused, written, field, other):
    data = {field: [{"author": "x", "text": TEXT}], other: "A title"}
    path = written(
        "export.json", [{"id": 1, "data": data, "annotations": [annotation(choices("A.4"))]}]
    )
    assert "must have its text in the field that `text` names" in refused("labelstudio", path)


def test_notes_on_regions_in_json_min_are_no_dialogue(imported, written):
    start, end = at(SLEEP, utf16=True)
    notes = [{"start": start, "end": end, "text": ["very sure"]}]
    record = {"id": 1, "text": TEXT, "criteria": "A.4", "notes": notes, "annotator": 1}
    assert imported("labelstudio", written("min.json", [record])).posts == {"1": TEXT}


@pytest.mark.parametrize("value", [True, False, 0.5, ["A.4", None], [["A", True]]])
@pytest.mark.parametrize("settings", [{"fields": ["criteria"]}, {}])
def test_a_value_in_a_column_of_labels_that_is_none_is_a_fault(refused, written, value, settings):
    record = {"id": 1, "text": TEXT, "criteria": value, "annotator": 1}
    other = {**record, "id": 2, "text": OTHER, "criteria": "A.1"}
    message = refused("labelstudio", written("min.json", [record, other]), **settings)
    assert "record 1 (task 1): must have labels that are text in the column 'criteria'" in message


@pytest.mark.parametrize("value", [None, "", []])
def test_an_empty_value_in_a_column_of_labels_is_no_label(imported, written, value):
    record = {"id": 1, "text": TEXT, "criteria": value, "annotator": 1}
    other = {**record, "id": 2, "text": OTHER, "criteria": "A.1"}
    result = imported("labelstudio", written("min.json", [record, other]), negatives="explicit")
    assert [(row[0], *row[2:4]) for row in result.rows] == [("1", "A.1", 0), ("2", "A.1", 1)]
