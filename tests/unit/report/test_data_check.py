"""`psy-agents data check`: what a training would find in a corpus, on a page, without training."""

import csv
import json
import logging
import shlex
import shutil
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from psy_agents_noaug import check_data
from psy_agents_noaug.cli import main
from psy_agents_noaug.config.data_check import load_data_check_config
from psy_agents_noaug.config.series import load_series_config
from psy_agents_noaug.errors import DataError, OutOfMemoryError
from psy_agents_noaug.report.background import corpus_parts
from psy_agents_noaug.report.data_check import _facts, _warning_lines, data_sections
from psy_agents_noaug.report.figures import drawing
from psy_agents_noaug.report.next_steps import next_steps
from psy_agents_noaug.run.data_check import facts as facts_module
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


def parts_of(facts, title):
    """Return the parts of a section of the page."""
    with drawing():
        return [
            p for section in data_sections(facts) if section.title == title for p in section.parts
        ]


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def leave_unused(folder):
    """Take p10 to p13 out of train."""
    splits = json.loads((folder / "splits.json").read_text())
    splits |= {"train": splits["train"][:10], "unused": splits["train"][10:]}
    (folder / "splits.json").write_text(json.dumps(splits))


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


def test_criteria_are_counted_in_the_posts_that_have_pairs(copied):
    folder, settings = copied
    leave_unused(folder)
    valid = facts_of(settings).valid
    met = [number for number in range(30) if number % 4 and number not in range(10, 14)]
    assert valid.n_paired == 26
    assert valid.n_met == {0: 26 - len(met), 1: len(met)}
    assert valid.met_together.sum() == len(met)


def test_posts_without_annotation_are_in_no_share_where_their_pairs_are_dropped(copied):
    folder, settings = copied
    rows = read(folder / ANNOTATIONS)
    write(folder / ANNOTATIONS, [row for row in rows if row["post_id"] not in ("p00", "p01")])
    valid = facts_of([*settings, "data.unannotated_pairs=drop"]).valid
    assert valid.n_paired == sum(valid.n_met.values()) == 28


@pytest.mark.parametrize("more", [(), ("data.merge=any",)])
def test_a_post_meets_a_criterion_of_which_no_sentence_is_known_to_show_it(copied, more):
    folder, settings = copied
    rows = [{**row, "annotator_id": "ada"} for row in read(folder / ANNOTATIONS)]
    rows[1]["sentence_text"] = ""
    write(folder / ANNOTATIONS, rows)
    columns = "+data.columns.annotations.annotator_id=annotator_id"
    valid = facts_of([*settings, columns, "data.unit=sentence", *more]).valid
    n_met = sum(row["status"] == "1" for row in rows)
    assert np.trace(valid.met_together) == n_met
    assert valid.n_met == {0: 30 - n_met, 1: n_met}


@pytest.mark.parametrize("unannotated_pairs", ["negative", "drop"])
def test_the_page_has_the_warnings_of_a_training(
    copied, make_config, caplog, tiny_encoder, tmp_path, unannotated_pairs
):
    folder, settings = copied
    encoder = tmp_path / "adapted"
    shutil.copytree(tiny_encoder, encoder)
    (encoder / "adaptation.json").write_text("{}")
    posts, annotations = read(folder / POSTS), read(folder / ANNOTATIONS)
    posts[25]["text"] = posts[0]["text"]  # of test, and of train
    annotations[1]["sentence_text"] = annotations[4]["sentence_text"] = ""
    write(folder / POSTS, posts)
    write(folder / ANNOTATIONS, annotations)
    more = [
        f"data.dir={folder}",
        f"model.pretrained_model={encoder}",
        "data.unit=sentence",
        "data.duplicates=drop_from_train",
        f"data.unannotated_pairs={unannotated_pairs}",
    ]
    facts = facts_of([*settings, *more])
    caplog.clear()
    train(make_config(*more))
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert set(_warning_lines(facts)) <= set(told)
    for part in (
        "annotations have no sentence",
        "exact duplicates of a text",
        "texts are left out of training",
        "fewer than 20",
        "was adapted to posts from which val and test of another corpus",
    ):
        assert part in " ".join(_warning_lines(facts))


def test_pairs_at_a_glance_are_those_of_the_splits(copied):
    folder, settings = copied
    leave_unused(folder)
    known = _facts(facts_of([*settings, "data.held_out_criteria=[A.2]"]))
    met = [n for n in range(30) if n % 4 and n not in range(10, 14) and n % 9 != 1]
    assert known["pairs of a post and a criterion"] == f"{26 * 8}, of which {len(met)} met"
    assert known["splits"] == "train 10 posts, val 8 posts, test 8 posts, 4 posts unused"
    assert known["held-out criteria"] == "A.2 (8 pairs of test, 0 met)"


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


def test_a_measured_time_is_of_the_updates_that_a_training_makes(
    overrides, make_config, monkeypatch
):
    """By a clock on which the first update takes 5 s, each further one 1 s, and 48 pairs of val 1 s."""
    ticks = iter([0, 5, 6, 7, 8, 9, 10, 11, 20, 21])
    clock = SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr("psy_agents_noaug.run.data_check.timing.time", clock)
    time = facts_of([*overrides, "training.train_batch_size=4"]).time
    result = train(make_config("training.train_batch_size=4"))
    assert time.n_updates == json.loads((result.directory / "manifest.json").read_text())["steps"]
    assert time.n_evaluations == 2 + 1
    assert time.n_measured == 6  # without the first, until 10 s are over
    assert time.seconds == pytest.approx(time.n_updates * 1.0 + 3 * 72 / 48)


def test_a_time_that_cannot_be_measured_costs_the_page_nothing_else(overrides, monkeypatch):
    def training_time(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(facts_module, "training_time", training_time)
    facts = facts_of(overrides)
    assert (facts.time, facts.faults) == (None, [])
    (warnings,) = parts_of(facts, "Warnings")
    assert "The time of a training was not measured. Memory ran out" in " ".join(warnings.lines)


def test_memory_that_runs_out_is_an_error_with_a_remedy(settings, monkeypatch):
    def prepare_data(_):
        raise MemoryError

    monkeypatch.setattr(facts_module, "prepare_data", prepare_data)
    with pytest.raises(OutOfMemoryError, match="free memory on this machine"):
        facts_of(settings)


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


def test_a_post_without_a_text_is_known_to_the_split_file(copied):
    folder, settings = copied
    posts = read(folder / POSTS)
    posts[3]["text"] = ""
    write(folder / POSTS, posts)
    (fault,) = facts_of(settings).faults
    assert f"{POSTS}, row 4, column text" in fault


def test_labels_that_are_too_many_to_be_listed_are_counted(copied):
    folder, settings = copied
    rows = read(folder / ANNOTATIONS)
    for number, row in enumerate(rows):
        row["DSM5_symptom"] = f"X.{number}"
    write(folder / ANNOTATIONS, [*rows, *({**row, "status": "7"} for row in rows[:4])])
    *_, labels = parts_of(facts_of(settings), "What could be read")
    assert len(labels.rows) == 30
    assert labels.notes == ["4 rarer labels are not listed."]


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


def test_evidence_is_shown_in_its_words_whatever_the_names_of_the_posts(copied):
    folder, settings = copied
    splits = json.loads((folder / "splits.json").read_text())
    splits |= {name: [f"p (1)/{one}" for one in splits[name]] for name in ("train", "val", "test")}
    (folder / "splits.json").write_text(json.dumps(splits))
    posts, annotations = read(folder / POSTS), read(folder / ANNOTATIONS)
    for row in (*posts, *annotations):
        row["post_id"] = f"p (1)/{row['post_id']}"
    annotations[5]["sentence_text"] = f"{PLANTED} jumped over {PLANTED}"
    annotations[6]["sentence_text"] = annotations[6]["sentence_text"].replace("e", "i", 2)
    write(folder / POSTS, posts)
    write(folder / ANNOTATIONS, annotations)
    (table,) = parts_of(facts_of([*settings, "with_text=true"]), "Evidence to look at")
    assert [row[1:] for row in table.rows] == [
        ["not in the post", annotations[5]["sentence_text"]],
        ["found by similarity (score)", annotations[6]["sentence_text"]],
    ]


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


def test_no_setting_is_proposed_that_a_protocol_refuses(copied):
    folder, settings = copied
    own = [s for s in settings if not s.startswith(("data.splits", "data.duplicates"))]
    posts = read(folder / POSTS)
    for post in posts[1:]:
        post["text"] = posts[0]["text"]
    write(folder / POSTS, posts)
    facts = facts_of([*own, "protocol=redsm5_posts"])
    assert facts.valid.n_crossing
    assert not any("drop_from_train" in step.command for step in next_steps(facts))


def test_no_cross_validation_is_proposed_where_it_would_bring_unused_posts_back(copied):
    folder, settings = copied
    leave_unused(folder)
    assert [step for step in next_steps(facts_of(settings)) if " cv " in step.command] == []


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
