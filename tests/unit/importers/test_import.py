"""What all tools share: labels, sources, the written folder, and training on it."""

import json
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from annotated import OTHER, TEXT, at, jsonl

from psy_agents_noaug.cli import main
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.importers import sources


@pytest.fixture
def labelled(written):
    """Return a function from labels to an export with one document for each."""

    def write(*labels, name="all.jsonl"):
        records = [{"id": n, "text": f"{TEXT}{n}", "label": [v]} for n, v in enumerate(labels)]
        return written(name, jsonl(*records))

    return write


def test_labels_are_ids_names_and_aliases_in_any_case(imported, labelled):
    rows = imported("doccano", labelled("a.4", "depressed  MOOD", "fatigue", "ANHEDONIA")).rows
    assert [row[2] for row in rows] == ["A.4", "A.1", "A.6", "A.2"]


def test_unknown_labels_are_told_at_once_with_counts_and_the_nearest_criterion(refused, labelled):
    message = refused("doccano", labelled("sleep problem", "Zebra", "Zebra", "A.1"))
    lines = message.splitlines()[1:]
    assert lines == [
        "  - 'Zebra': must be mapped to a criterion, or to null (2 times)",
        "  - 'sleep problem': must be mapped to a criterion, or to null (1 times; nearest is A.4, "
        "Sleep problems)",
    ]


@pytest.mark.parametrize("suffix", ["yaml", "csv"])
def test_a_map_is_read_from_yaml_and_csv(imported, labelled, written, suffix):
    content = {
        "yaml": "Sad: A.1\nNot sad: {criterion_id: A.1, status: 0}\nOther:\nNever seen: A.2\n",
        "csv": "label,criterion_id,status\nSad,A.1,1\nNot sad,A.1,0\nOther,,\nNever seen,A.2,\n",
    }[suffix]
    path = written(f"map.{suffix}", content)
    result = imported("doccano", labelled("sad", "Not sad", "Other", "Other"), map=str(path))
    assert result.rows == [("0", None, "A.1", 1, None), ("1", None, "A.1", 0, None)]
    assert result.posts.keys() == {"0", "1", "2", "3"}
    assert result.report["labels_left_out"] == {"Other": 2}
    assert result.report["map_entries_without_label"] == ["Never seen"]
    assert list(result.report["criteria"]) == ["A.1", "A.2"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("Sad: A.99\nBad: {status: 1}\nNo: A.1\n", ["'A.99' is no criterion", "'Bad'", "quotes"]),
        ("- Sad\n", ["must map labels to criteria"]),
        ("Sad: [\n", ["must be YAML"]),
        ("Sad: 2026-13-01\n", ["must be YAML"]),
        ("Sad: {criterion_id: A.1, status: 2}", ["must have the status 0 or 1"]),
        ("low: A.1\nLow: A.6\n", ["'Low': must be there once"]),
        ("low: A.1\nlow: A.6\n", ["'low': must be there once"]),
    ],
)
def test_faults_of_a_map_are_told_at_once(refused, labelled, written, content, told):
    message = refused("doccano", labelled("Sad"), map=str(written("map.yaml", content)))
    assert all(words in message for words in told)


def test_a_label_that_is_in_a_table_twice_is_refused(refused, labelled, written):
    table = "label,criterion_id\nSleep/fatigue,A.4\nSleep/fatigue,A.6\n"
    message = refused("doccano", labelled("Sleep/fatigue"), map=str(written("map.csv", table)))
    assert "'Sleep/fatigue': must be there once" in message


def test_nothing_is_counted_of_a_document_that_contradicts_itself(imported, written):
    sleep = [*at("I cannot sleep"), "A.4"]
    labels = ["A.1", "Other", sleep]
    records = [
        {"id": 1, "text": TEXT, "label": labels},
        {"id": 2, "text": f"{TEXT}2", "label": [*labels, "No A.1"]},
    ]
    turned = {"No A.1": {"criterion_id": "A.1", "status": 0}, "Other": None}
    settings = {"map": turned, "spans_imply_label": True, "faulty": "leave_out"}
    result = imported("doccano", written("all.jsonl", jsonl(*records)), **settings)
    report = result.report
    assert (result.posts.keys(), len(result.rows)) == ({"1"}, 2)
    assert report["labels"] == {"A.1": {"A.1": 1}, "A.4": {"A.4": 1}}
    assert report["labels_left_out"] == {"Other": 1}
    assert report["offset_units"] == {"code_points": 1}


def test_criteria_of_ones_own_are_all_kept(imported, labelled, written):
    table = "criterion_id,name,text,aliases\nX1,Joy,Is glad.,GLAD|HAPPY\nX2,Fear,Is afraid.,\n"
    path = written("criteria.csv", table)
    result = imported("doccano", labelled("happy"), criteria=str(path), negatives="explicit")
    assert result.rows == [("0", None, "X1", 1, None), ("0", None, "X2", 0, None)]


def test_the_tables_may_be_csv_and_the_command_names_them(imported, labelled):
    result = imported("doccano", labelled("A.1"), format="csv")
    assert sorted(p.name for p in result.folder.iterdir()) == [
        "annotations.csv",
        "criteria.csv",
        "import.json",
        "posts.csv",
    ]
    assert "data.posts=posts.csv" in result.summary
    assert "I cannot sleep" not in (result.folder / "import.json").read_text()
    assert (result.folder / "posts.csv").stat().st_mode & 0o777 == 0o600


def parts(*groups, **more):
    """One document, written apart for each annotator, with an author or without."""
    return [
        {"id": 1, "text": TEXT, "label": ["A.4"], "user": n, "group_id": group, **more}
        for n, group in enumerate(groups)
    ]


@pytest.mark.parametrize("groups", [("ann", None), (None, "ann"), (None, "ann", "ann")])
def test_the_author_that_any_part_of_a_document_names_is_kept(imported, written, groups):
    result = imported("doccano", written("all.jsonl", jsonl(*parts(*groups))))
    posts = pq.read_table(result.folder / "posts.parquet").to_pylist()
    assert [post["group_id"] for post in posts] == ["ann"]


def test_two_authors_of_a_document_are_refused(imported, refused, written):
    other = {"id": 2, "text": OTHER, "label": ["A.1"], "group_id": "eve"}
    path = written("all.jsonl", jsonl(*parts(None, "ann", "eve"), other))
    message = refused("doccano", path)
    assert "line 3: must have one author in all parts of a document" in message
    assert "('1' has another at line 2)" in message
    kept = imported("doccano", path, faulty="leave_out")
    assert (list(kept.posts.values()), kept.left("with faults")) == ([OTHER], 1)


def test_same_words_of_two_authors_without_an_identifier_are_refused(refused, written):
    path = written("all.jsonl", jsonl(*parts("ann", "eve", id=None)))
    assert "must have one author in all parts of a document" in refused("doccano", path)


def test_an_output_that_is_there_is_not_overwritten(imported, labelled, tmp_path):
    (tmp_path / "export" / "kept").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is not empty"):
        imported("doccano", labelled("A.1"), output=str(tmp_path / "export"))


def test_settings_of_another_tool_are_refused(imported, labelled):
    with pytest.raises(ConfigError, match="`with_predictions` belong to labelstudio"):
        imported("doccano", labelled("A.1"), with_predictions=True)


def test_an_export_without_a_label_writes_nothing(refused, written):
    path = written("all.jsonl", jsonl({"id": 1, "text": OTHER, "label": []}))
    message = refused("doccano", path, empty="leave_out")
    assert "no document has a label of a criterion" in message


# -------------------------------------------------------------------------------------------- sources


def test_what_is_not_there_or_no_export_is_told(refused, written, tmp_path):
    assert "no such file or folder" in refused("brat", tmp_path / "none")
    assert "there is no .txt, .ann file" in refused("brat", written("a.csv", "x"))
    assert "the archive cannot be read" in refused("doccano", written("a.zip", b"PK\x03\x04x"))
    assert "must be UTF-8" in refused("doccano", written("a.jsonl", b'{"a": "\xfa"}'))


def test_an_archive_that_grows_is_refused(refused, written, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 10**6)
    path = written("bomb.zip", b"")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", b"0" * 10**7)
    assert path.stat().st_size < 10**5
    assert "may hold at most" in refused("doccano", path)


def test_names_in_an_archive_lead_nowhere(imported, written, tmp_path):
    path = written("evil.zip", b"")
    line = jsonl({"id": 1, "text": TEXT, "label": ["A.4"]})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../../escaped.jsonl", line)
        archive.writestr("/etc/absolute.jsonl", line)
        archive.writestr("__MACOSX/._x.jsonl", b"\x00")
    result = imported("doccano", path)
    assert result.report["annotators"] == {"absolute": 1, "escaped": 1}
    assert not list(tmp_path.parent.rglob("escaped.jsonl"))


def test_links_are_followed_and_hidden_files_are_not_read(imported, refused, written, tmp_path):
    line = jsonl({"id": 1, "text": TEXT, "label": ["A.4"]})
    folder = written("corpus/.ipynb_checkpoints/other.jsonl", "no JSON").parents[1]
    written("corpus/._anna.jsonl", b"\x00")
    (folder / "anna.jsonl").symlink_to(written("elsewhere/a.jsonl", line))
    (folder / "more").symlink_to(written("linked/ben.jsonl", line).parent)
    (folder / "more" / "back").symlink_to(folder)
    assert imported("doccano", folder).report["annotators"] == {"anna": 1, "ben": 1}
    (folder / "zoe.jsonl").symlink_to(folder / "anna.jsonl")
    assert "zoe.jsonl: is the same file as" in refused("doccano", folder)
    (folder / "zoe.jsonl").unlink()
    (folder / "lost.jsonl").symlink_to(tmp_path / "nowhere")
    assert "lost.jsonl: is a link to a file that is not there" in refused("doccano", folder)


@pytest.mark.parametrize("kind", ["array", "lines"])
def test_a_task_with_a_key_twice_is_left_out_by_its_record(imported, refused, written, kind):
    choices = {"type": "choices", "from_name": "s", "value": {"choices": ["A.4"]}}
    tasks = [
        {"id": n, "data": {"text": text}, "annotations": [{"completed_by": 1, "result": [choices]}]}
        for n, text in ((5, TEXT), (6, OTHER))
    ]
    lines = jsonl(*tasks).splitlines()
    lines[0] = lines[0].replace('"choices": ["A.4"]', '"choices": ["A.1"], "choices": ["A.4"]')
    content = {"array": f"[{lines[0]}, {lines[1]}]", "lines": "\n".join(lines)}[kind]
    path = written("export.json", content)
    assert "1: must have each key once ('choices')" in refused("labelstudio", path)
    assert imported("labelstudio", path, faulty="leave_out").posts == {"6": OTHER}


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_told_whatever_is_damaged(refused, written, kind):
    whole = written("whole.zip", b"")
    with zipfile.ZipFile(whole, "w", kind) as archive:
        archive.writestr("é.jsonl", jsonl({"id": 1, "text": TEXT, "label": ["A.4"]}))
    content = whole.read_bytes()
    start = 30 + len("é.jsonl".encode()) + (9 if kind == zipfile.ZIP_LZMA else 0)
    damaged = content[:start] + b"\xff" * 20 + content[start + 20 :]
    for name, changed in (
        ("data.zip", damaged),
        ("name.zip", content.replace("é".encode(), b"\xff\xfe")),
    ):
        message = refused("doccano", written(name, changed))
        assert f"{name}: the archive cannot be read" in message


def test_an_archive_with_a_file_without_a_name_is_told(refused, written):
    path = written("nameless.zip", b"")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jsonl", "")
        archive.filelist[0].filename = ""
    assert "the archive cannot be read (IndexError)" in refused("doccano", path)


@pytest.mark.parametrize("field", ["from_name", "id", "label"])
def test_names_that_cannot_be_written_are_refused(refused, written, field):
    given = {"from_name": "sure", "id": 1, "label": "Other", field: "\ud800"}
    value = {"start": 4, "end": 18, "text": "I cannot sleep"}
    region = {"id": "r", "from_name": "l", "type": "labels", "value": {**value, "labels": ["A.4"]}}
    rating = {"type": "rating", "from_name": given["from_name"], "id": "r", "value": {"rating": 2}}
    other = {"type": "choices", "from_name": "o", "value": {"choices": [given["label"]]}}
    task = {
        "id": given["id"],
        "data": {"text": TEXT},
        "annotations": [{"completed_by": 1, "result": [region, rating, other]}],
    }
    settings = {"spans_imply_label": True, "map": {"o:*": None}, "offset_unit": "code_points"}
    assert "must not have NUL or unpaired surrogates" in refused(
        "labelstudio", written("e.json", [task]), **settings
    )


# ------------------------------------------------------------------------------------- command line


def test_the_command_line_names_the_tools(capsys, own_logging):
    assert main(["import", "labelstdio", "x.json"]) == 2
    assert "did you mean `labelstudio`?" in capsys.readouterr().err
    assert main(["import", "x.json"]) == 2
    assert "labelstudio|doccano|brat|inception|spacy FILE" in capsys.readouterr().err
    assert main(["import", "spacy", "x", "with_predictions=true"]) == 2
    assert "`with_predictions` belong to labelstudio" in capsys.readouterr().err
    assert main(["import", "--help"]) == 0
    keys = capsys.readouterr().out.partition("with the overrides given here:\n")[2]
    assert yaml.safe_load(keys)["negatives"] == "auto"


def test_the_current_folder_has_a_name(written, monkeypatch, capsys, own_logging):
    folder = written("all.jsonl", jsonl({"id": 1, "text": TEXT, "label": ["A.4"]})).parent
    monkeypatch.chdir(folder)
    assert main(["import", "doccano", "."]) == 0
    assert "1 documents: 1 posts" in capsys.readouterr().out
    report = json.loads((folder.parent / f"{folder.name}_tables/import.json").read_text())
    assert report["file"] == folder.name


def test_an_imported_folder_trains_as_it_is(written, tmp_path, tiny_encoder, capsys, own_logging):
    records = []
    for number in range(24):
        label = ["A.1", "A.4"][number % 2]
        words = ["I cry all day", "I cannot sleep"][number % 2]
        text = f"😀 Post {number} of its own {number * 7}. {words}. Fine else {number}."
        start, end = at(words, text, utf16=True)
        value = {"start": start, "end": end, "text": words, "labels": [label]}
        result = {"type": "labels", "from_name": "l", "to_name": "t", "value": value}
        reviews = [{"completed_by": by, "result": [result]} for by in (1, 2)]
        records.append({"id": number, "data": {"text": text}, "annotations": reviews})
    path = written("export.json", records)
    folder = tmp_path / "corpus"
    assert (
        main(["import", "labelstudio", str(path), "spans_imply_label=true", f"output={folder}"])
        == 0
    )
    assert "to train:" in capsys.readouterr().out
    small = [
        f"model.pretrained_model={tiny_encoder}",
        "model.max_length=96",
        "training.epochs=1",
        "training.amp=off",
        "tracking=none",
        "report=false",
        f"output_dir={tmp_path / 'outputs'}",
    ]
    given = ["train", "task=criteria", "data=imported", f"data.dir={folder}", *small]
    assert main(given) == 0
    records[0]["annotations"][1]["result"] = []
    path.write_text(json.dumps(records))
    other = tmp_path / "other"
    assert (
        main(["import", "labelstudio", str(path), "spans_imply_label=true", f"output={other}"]) == 0
    )
    capsys.readouterr()
    assert main([*given[:3], f"data.dir={other}", *small]) == 2
    message = capsys.readouterr().err
    assert "Annotators give different labels to 1 pairs" in message
    assert "must agree (post '0', criterion A.1)" in message
    assert Path(folder / "import.json").is_file()
