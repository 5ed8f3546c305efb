"""`format=labelstudio`: predictions that Label Studio reads."""

import json

import pytest

from psy_agents_noaug.cli import main
from psy_agents_noaug.config.loading import load_export_config
from psy_agents_noaug.errors import ConfigError, DataError
from psy_agents_noaug.exports.labelstudio import export_predictions

TEXT = "😀 I cannot sleep. Fine."


@pytest.fixture
def exported(tmp_path):
    """Return a function from lines of predictions and settings to the tasks that are written."""

    def export(*lines, **more):
        path = tmp_path / "predicted.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        (tmp_path / "posts.csv").write_text(f"post_id,text,group_id\n1,{TEXT},g\n2,Fine.,\n")
        given = {"predictions": path, "posts": tmp_path / "posts.csv", **more}
        words = [f"{key}={value}" for key, value in given.items() if value is not None]
        summary = export_predictions(load_export_config(["format=labelstudio", *words]))
        return json.loads((tmp_path / "predicted-labelstudio.json").read_text()), summary

    return export


def line(post_id="1", criterion_id="A.4", decision=1, **more):
    return {"post_id": post_id, "criterion_id": criterion_id, "decision": decision, **more}


def test_tasks_have_choices_spans_in_utf_16_and_posts_without_predictions(exported):
    evidence = [{"start_char": 2, "end_char": 16, "score": 0.5}]
    tasks, summary = exported(
        line(evidence=evidence), line(criterion_id="A.1", decision=0), line("2", decision=0)
    )
    first, second = tasks
    assert first["data"] == {"post_id": "1", "text": TEXT, "group_id": "g"}
    choices, labels = first["predictions"][0]["result"]
    assert choices["value"] == {"choices": ["A.4"]}
    assert labels["value"] == {
        "start": 3,
        "end": 17,
        "text": "I cannot sleep",
        "labels": ["A.4"],
    }
    assert labels["score"] == 0.5
    assert second["predictions"][0] == {"model_version": "predicted", "result": []}
    assert '<Label value="A.4"/>' in summary


def test_a_sentence_that_meets_a_criterion_is_its_evidence(exported):
    tasks, _ = exported(line(start_char=2, end_char=17, probability=0.9))
    assert tasks[0]["predictions"][0]["result"][1]["value"]["text"] == "I cannot sleep."


def test_criteria_of_a_file_have_their_ids_as_names(exported):
    # A.4 may be irritability, of another disorder.
    _, summary = exported(line(), line(criterion_id="A.5"))
    assert '<Choice value="A.4"/>' in summary
    assert '<Choice value="A.5"/>' in summary


def test_all_faults_are_told(exported):
    outside = line(evidence=[{"start_char": 2, "end_char": 99}])
    with pytest.raises(DataError) as caught:
        exported(line("9"), outside)
    assert "line 1: must be of a post" in str(caught.value)
    assert "line 2: must have evidence inside" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("absent.parquet", None, "cannot be read as predictions"),
        ("bad.parquet", "no parquet", "cannot be read as predictions"),
        ("bad.csv", "post_id,criterion_id,evidence\n1,A.4,[{\n", "row 1: must have evidence with"),
        ("bad.jsonl", "[1]\n", "line 1: must be a JSON object"),
    ],
)
def test_a_file_that_holds_no_predictions_is_refused(tmp_path, name, content, told):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=told):
        export_predictions(load_export_config(["format=labelstudio", f"predictions={path}"]))


def test_posts_are_needed_and_outputs_are_not_overwritten(exported):
    with pytest.raises(ConfigError, match="posts=FILE"):
        exported(line(), posts=None)
    exported(line(text=TEXT), posts=None)
    with pytest.raises(ConfigError, match="is there already"):
        exported(line())


def test_rows_that_decide_nothing_and_posts_that_are_there_twice_are_faults(exported, tmp_path):
    twice = tmp_path / "twice.csv"
    twice.write_text("post_id,text\n1,One.\n1,Two.\n")
    with pytest.raises(DataError) as caught:
        exported(line(decision=None, probability=0.9), line(evidence=["words"]), posts=twice)
    assert "line 1: must have a decision or evidence" in str(caught.value)
    assert "line 2: must have evidence with start_char, end_char" in str(caught.value)
    assert "twice.csv, row 2: must have each post once ('1')" in str(caught.value)


def test_a_post_has_one_text(exported):
    with pytest.raises(DataError, match="line 2: must have the text that earlier rows"):
        exported(line(text=TEXT), line(criterion_id="A.1", text="Fine."), posts=None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["format=labelstudio"], "`predictions` must be given"),
        (["format=onnx"], "`checkpoint` must be given"),
        (["format=onnx", "checkpoint=a", "predictions=b"], "`predictions` is not read"),
        (["format=labelstudio", "predictions=b", "push=me/it"], "holds posts"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words, told):
    with pytest.raises(ConfigError, match=told):
        load_export_config(words)


@pytest.mark.slow
@pytest.mark.parametrize("task_name", ["evidence"])
def test_predictions_of_a_run_are_corrected_and_read_back(tmp_path, overrides, capsys, own_logging):
    assert main(["train", "task=evidence", *overrides, "run_name=small"]) == 0
    run = tmp_path / "outputs" / "evidence" / "small"
    assert main(["export", f"predictions={run}", "format=labelstudio", "split=val"]) == 0
    path = run / "exports" / "labelstudio-val.json"
    tasks = json.loads(path.read_text())
    assert len(tasks) == 8
    for task in tasks:  # what Label Studio exports after somebody has submitted them
        choice = {"choices": ["Fatigue"]}
        result = {"type": "choices", "from_name": "criteria", "to_name": "text", "value": choice}
        task["annotations"] = [{"completed_by": 1, "result": [result]}]
    corrected = tmp_path / "corrected.json"
    corrected.write_text(json.dumps(tasks))
    folder = tmp_path / "corpus"
    assert main(["import", "labelstudio", str(corrected), f"output={folder}"]) == 0
    assert "8 posts" in capsys.readouterr().out
