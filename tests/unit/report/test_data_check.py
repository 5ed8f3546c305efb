"""`psy-agents data check`: what a training would find in a corpus, on a page, without training."""

import csv
import json
import shlex
import stat

import numpy as np
import pytest
from transformers import AutoTokenizer

from psy_agents_noaug import check_data
from psy_agents_noaug.cli import main
from psy_agents_noaug.config.data_check import load_data_check_config
from psy_agents_noaug.config.series import load_series_config
from psy_agents_noaug.errors import DataError
from psy_agents_noaug.report.background import corpus_parts
from psy_agents_noaug.report.data_check import _warning_lines
from psy_agents_noaug.report.next_steps import next_steps
from psy_agents_noaug.run.data_check.facts import check
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tasks.base import TaskInputs
from psy_agents_noaug.tasks.build import build_task, load_encoders

PLANTED = "quavimorthle"
POSTS, ANNOTATIONS = "redsm5_posts.csv", "redsm5_annotations.csv"


@pytest.fixture
def settings(overrides):
    """The settings of a check; the tiny run's own without `report=false`, which it shares."""
    return [*overrides, "time=false"]


@pytest.fixture
def copied(tiny_corpus, tmp_path, settings):
    """A copy of the tiny corpus to change: its folder, and the settings that read it."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for path in tiny_corpus.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder, [*settings, f"data.dir={folder}"]


def facts_of(settings, task="criteria"):
    checked, config = load_data_check_config(task, settings)
    return check(config, checked, settings)


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def plant(folder):
    """Put a word into every post and every evidence."""
    posts, annotations = read(folder / POSTS), read(folder / ANNOTATIONS)
    for row in posts:
        row["text"] = f"{PLANTED} {row['text']}"
    for row in annotations:
        row["sentence_text"] = f"{row['sentence_text']}{6 * f' {PLANTED}'}"
    write(folder / POSTS, posts)
    write(folder / ANNOTATIONS, annotations)


def files_with(word, folder):
    return [path.name for path in folder.rglob("*") if path.is_file() and word in _text(path)]


def _text(path):
    return path.read_bytes().decode("utf-8", "ignore")


def test_lengths_are_those_that_the_tokenizer_counts(settings, tiny_encoder, tiny_corpus):
    (one,) = facts_of(settings).lengths
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    texts = [row["text"] for row in read(tiny_corpus / POSTS)]
    counts = sorted(len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts)
    assert sorted(one.lengths.tolist()) == counts
    configured = one.at(96)
    assert configured.texts == sum(count + one.frame > 96 for count in counts) > 0
    beyond = sum(max(count + one.frame - 96, 0) for count in counts)
    assert configured.tokens == pytest.approx(beyond / sum(counts))


def test_texts_that_do_not_fit_are_those_that_the_task_truncates(settings):
    settings = [*settings, "task.long_posts=truncate"]
    checked, config = load_data_check_config("criteria", settings)
    facts = check(config, checked, settings)
    data = facts.valid.data
    task = build_task(config, TaskInputs(load_encoders(config), data.criteria, data.examples, 4096))
    cut = {
        example.text_id
        for split, examples in data.examples.items()
        for example, truncated in zip(
            examples, task.source(split).windows.rows.truncated, strict=True
        )
        if truncated
    }
    assert facts.lengths[0].at(96).texts == len(cut) > 0


def test_posts_that_meet_two_criteria_are_counted_once_for_each_two(copied):
    folder, settings = copied
    rows = read(folder / ANNOTATIONS)
    first = next(row for row in rows if row["status"] == "1")
    other = next(
        r for r in rows if r["status"] == "1" and r["DSM5_symptom"] != first["DSM5_symptom"]
    )
    write(
        folder / ANNOTATIONS, [*rows, {**other, "post_id": first["post_id"], "sentence_text": ""}]
    )
    valid = facts_of(settings).valid
    together = valid.met_together
    assert np.array_equal(together, together.T)
    assert together.sum() - np.trace(together) == 2
    assert valid.n_met[2] == 1


def test_a_post_that_meets_a_criterion_in_several_sentences_is_counted_once(copied):
    folder, settings = copied
    met = [row for row in read(folder / ANNOTATIONS) if row["status"] == "1"]
    text = {row["post_id"]: row["text"] for row in read(folder / POSTS)}[met[0]["post_id"]]
    # All sentences of its post are evidence, too.
    write(folder / ANNOTATIONS, [*met, {**met[0], "sentence_text": text}])
    valid = facts_of([*settings, "data.unit=sentence"]).valid
    posts_of = {(row["post_id"], row["DSM5_symptom"]) for row in met}
    assert sum(valid.data.labels.positives.values()) > len(posts_of)
    assert np.trace(valid.met_together) == len(posts_of)


def test_contradicting_annotations_are_said_to_be_decided_by_the_rule_of_the_settings(copied):
    folder, settings = copied
    rows = [{**row, "annotator_id": "ada"} for row in read(folder / ANNOTATIONS)]
    met = next(row for row in rows if row["status"] == "1")
    rows.append({**met, "status": "0", "sentence_text": "", "annotator_id": "ben"})
    write(folder / ANNOTATIONS, rows)
    columns = "+data.columns.annotations.annotator_id=annotator_id"
    found = facts_of([*settings, columns, "data.merge=unanimous"])
    warnings = " ".join(_warning_lines(found))
    assert "these disagree on 1 (1 ties). `data.merge=unanimous` decides" in warnings
    assert "contradict" not in warnings
    names = {"A.1": "Depressed mood"}
    tables = {part.name: part for part in corpus_parts(found.valid.report, names, origin="given")}
    assert "not met by the merged label" in tables["annotations"].head
    assert ["pairs on which annotators disagree", "1"] in tables["corpus"].rows


def test_a_measured_time_is_of_the_updates_that_a_training_makes(overrides, make_config):
    time = facts_of([*overrides, "training.train_batch_size=4"]).time
    result = train(make_config("training.train_batch_size=4"))
    assert time.n_updates == json.loads((result.directory / "manifest.json").read_text())["steps"]
    assert time.n_evaluations == 2 + 1
    assert time.seconds == pytest.approx(
        time.n_updates * time.seconds_per_update + 3 * time.seconds_per_evaluation
    )
    assert time.n_measured > 0
    assert 0 < time.seconds < 600


def test_all_faults_of_tables_splits_and_encoder_are_one_message_and_a_page(
    copied, capsys, own_logging, tmp_path
):
    folder, settings = copied
    plant(folder)
    posts, annotations = read(folder / POSTS), read(folder / ANNOTATIONS)
    posts[3]["text"] = ""
    annotations[4]["status"] = "7"
    write(folder / POSTS, posts)
    write(folder / ANNOTATIONS, annotations)
    splits = json.loads((folder / "splits.json").read_text())
    splits["test"][0] = "p99"
    (folder / "splits.json").write_text(json.dumps(splits))
    assert main(["data", "check", *settings, "model.pretrained_model=/nowhere"]) == 2
    out, error = capsys.readouterr()
    page = tmp_path / "outputs" / "data" / "redsm5" / "data.html"
    for fault in (
        f"{POSTS}, row 4, column text",
        f"{ANNOTATIONS}, row 5, column status",
        "test: must hold known posts only ('p99')",
        "`model.pretrained_model` '/nowhere' cannot be loaded",
        f"What could be read: {page}",
    ):
        assert fault in error
    shown = page.read_text(encoding="utf-8")
    assert "A training would be refused" in shown
    assert f"{POSTS}, row 4, column text" in shown
    assert "What could be read" in shown
    assert PLANTED not in out + error
    assert files_with(PLANTED, tmp_path / "outputs") == []


def test_posts_of_a_corpus_with_faults_are_still_counted_in_tokens(copied):
    folder, settings = copied
    annotations = read(folder / ANNOTATIONS)
    annotations[0]["status"] = ""
    write(folder / ANNOTATIONS, annotations)
    facts = facts_of(settings)
    assert len(facts.faults) == 1
    assert facts.valid is None
    assert len(facts.lengths[0].lengths) == 30
    assert {table.kind: table.rows for table in facts.readable.tables} == {
        "posts": 30,
        "annotations": len(annotations),
    }


def test_what_a_training_refuses_later_is_a_fault_here(settings):
    facts = facts_of([*settings, "training.monitor=val/nothing", "model.max_length=512"])
    assert [fault.split(" ")[0] for fault in facts.faults][:1] == ["`model.max_length`"]
    facts = facts_of([*settings, "training.monitor=val/nothing"])
    assert [fault.split(" ")[0] for fault in facts.faults] == ["`training.monitor`"]


def test_no_word_of_a_post_is_shown_unless_asked_for_and_then_in_one_private_file(
    copied, capsys, own_logging, tmp_path
):
    folder, settings = copied
    plant(folder)
    assert main(["data", "check", *settings]) == 0
    out, error = capsys.readouterr()
    outputs = tmp_path / "outputs"
    assert "is not in their posts" in out  # the planted evidence is not found
    assert PLANTED not in out + error
    assert files_with(PLANTED, outputs) == []
    assert main(["data", "check", *settings, "with_text=true"]) == 0
    assert PLANTED not in "".join(capsys.readouterr())
    assert files_with(PLANTED, outputs) == ["data_with_text.html"]
    (page,) = outputs.rglob("data_with_text.html")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


def test_steps_are_commands_with_the_settings_of_the_check_and_end_in_a_training(copied):
    folder, settings = copied
    posts = read(folder / POSTS)
    posts[25]["text"] = posts[0]["text"]  # of test, and of train
    write(folder / POSTS, posts)
    steps = next_steps(facts_of(settings))
    commands = [shlex.split(step.command) for step in steps]
    assert commands[-1][:3] == ["psy-agents", "train", "task=criteria"]
    assert "time=false" not in commands[-1]
    assert set(settings) - {"time=false"} <= {*commands[-1], "model.max_length=96"}
    (drop,) = [c for c in commands if "data.duplicates=drop_from_train" in c]
    assert drop[:3] == ["psy-agents", "data", "check"]
    assert "of train are in val or test" in " ".join(step.reason for step in steps)
    again = next_steps(facts_of([*settings, "data.duplicates=drop_from_train"]))
    assert "of train are in val or test" not in " ".join(step.reason for step in again)
    assert all("data.duplicates=drop_from_train" in step.command for step in again)


def test_a_cross_validation_that_is_proposed_can_be_run_as_it_stands(copied):
    _, settings = copied
    assert any(setting.startswith("data.splits=") for setting in settings)
    (cv,) = [
        shlex.split(step.command)
        for step in next_steps(facts_of(settings))
        if " cv " in step.command
    ]
    assert load_series_config("cv", "criteria", cv[3:])[0].folds == 5


def test_no_cross_validation_is_proposed_where_a_protocol_divides_the_posts(copied):
    _, settings = copied
    own = [s for s in settings if not s.startswith(("data.splits", "data.duplicates"))]
    steps = next_steps(facts_of([*own, "protocol=redsm5_posts"]))
    assert [step.command for step in steps if " cv " in step.command] == []


def test_the_python_function_returns_the_page_and_raises_with_faults(copied):
    folder, settings = copied
    done = check_data(settings, verbose=False)
    assert done.page.is_file()
    assert "posts" in done.summary
    assert (done.page.parent / "tables" / "prevalence.csv").is_file()
    (folder / POSTS).unlink()
    with pytest.raises(DataError, match="What could be read: "):
        check_data(settings, verbose=False)
    assert not (done.page.parent / "tables" / "prevalence.csv").exists()


@pytest.mark.parametrize("task_name", ["evidence", "joint"])
def test_evidence_beyond_each_length_is_counted(settings, task_name):
    facts = facts_of(settings, task_name)
    assert facts.faults == []
    assert facts.lengths[0].n_spans > 0
    assert bool(facts.valid.expected) == (task_name == "joint")


def test_another_word_than_check_is_refused(capsys, own_logging):
    assert main(["data", "chek"]) == 2
    assert "must be followed by check" in capsys.readouterr().err
