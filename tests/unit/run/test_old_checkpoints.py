"""Checkpoints of version 0.1.0, made by it from the tiny encoder and corpus of `conftest.py`."""

import shutil
from pathlib import Path

import pytest

from psy_agents_noaug import evaluate, load, train
from psy_agents_noaug.config.loading import as_of_today
from psy_agents_noaug.errors import CheckpointError, ConfigError
from psy_agents_noaug.run.directory import RunDirectory, differences
from psy_agents_noaug.run.sharing import shareable
from psy_agents_noaug.training.checkpoint import load_checkpoint, save_checkpoint

QUIET = {"tracking": "none", "report": False}
FOLDER = Path(__file__).parents[2] / "data" / "checkpoints_0.1.0"
# Figures on val that version 0.1.0 reported.
FIGURES = {
    "criteria": {"f1_macro": 0.30317460317460315, "brier": 0.12544680944657413},
    "evidence": {"evidence_iou_f1": 0.03898809523809524, "evidence_char_f1": 0.11484244508459984},
    "joint": {
        "joint_score": 0.12458664021164022,
        "f1_macro": 0.22685185185185186,
        "comprehensiveness": -0.011870843004172956,
        "n_faithfulness": 71,
    },
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Evaluations of a checkpoint that lies alone go to `outputs` in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("task", sorted(FIGURES))
def test_an_old_checkpoint_is_evaluated_to_the_figures_of_its_time(task, tiny_corpus, tmp_path):
    path = tmp_path / f"{task}.pt"
    shutil.copy(FOLDER / f"{task}.pt", path)
    found = evaluate(path, {**QUIET, "data.dir": tiny_corpus}, split="val", verbose=False).metrics
    for name, value in FIGURES[task].items():
        # Another CPU rounds differently.
        assert found[f"val/{name}"] == pytest.approx(value, abs=1e-4)


def test_who_evaluates_an_old_checkpoint_is_told_once_what_it_gives_away(
    tiny_corpus, tmp_path, caplog
):
    path = tmp_path / "criteria.pt"
    shutil.copy(FOLDER / "criteria.pt", path)
    evaluate(path, {**QUIET, "data.dir": tiny_corpus}, split="val", verbose=False)
    (told,) = [r.getMessage() for r in caplog.records if "which of them it was trained on" in r.msg]
    assert "Do not share it. Train again, or export it" in told


def test_who_predicts_with_an_old_checkpoint_is_told_once_what_it_gives_away(caplog):
    load(FOLDER / "criteria.pt", verbose=False)
    (told,) = [r.getMessage() for r in caplog.records if "which of them it was trained on" in r.msg]
    assert "Do not share it. Train again, or export it" in told


def test_posts_that_an_old_checkpoint_has_seen_are_still_refused(tiny_corpus, tmp_path):
    path = tmp_path / "criteria.pt"
    shutil.copy(FOLDER / "criteria.pt", path)
    settings = {**QUIET, "data.dir": tiny_corpus, "data.splits": None, "data.split_seed": 3}
    with pytest.raises(CheckpointError, match="posts of test in training"):
        evaluate(path, settings, verbose=False)


@pytest.mark.parametrize("task", sorted(FIGURES))
def test_a_shareable_copy_of_an_old_checkpoint_has_no_hashes_and_the_same_figures(
    task, tiny_corpus, tmp_path
):
    path = tmp_path / "copy.pt"
    save_checkpoint(path, shareable(load_checkpoint(FOLDER / f"{task}.pt")))
    assert {"seen_texts", "seen_posts"}.isdisjoint(load_checkpoint(path).metadata)
    settings = {**QUIET, "data.dir": tiny_corpus, "data.splits": "splits.json"}
    found = evaluate(path, settings, split="val", verbose=False).metrics
    for name, value in FIGURES[task].items():
        assert found[f"val/{name}"] == pytest.approx(value, abs=1e-4)


def test_an_old_checkpoint_is_judged_on_annotated_sentences_as_in_its_time(tiny_corpus, tmp_path):
    path = tmp_path / "criteria.pt"
    shutil.copy(FOLDER / "criteria.pt", path)
    settings = {**QUIET, "data.dir": tiny_corpus, "data.unit": "sentence"}
    found = evaluate(path, settings, split="val", verbose=False)
    assert found.metrics["val/n_pairs"] == 8 * 9  # one annotation in each post
    assert found.metrics["val/annotated_sentences_only"] == 1


@pytest.mark.slow
def test_an_old_run_is_resumed(tiny_corpus, tmp_path):
    shutil.copytree(tiny_corpus, "corpus")
    run = RunDirectory(tmp_path / "outputs" / "criteria" / "old")
    run.checkpoints.mkdir(parents=True)
    shutil.copy(FOLDER / "criteria_config.yaml", run.config)
    shutil.copy(FOLDER / "criteria.pt", run.best_checkpoint)
    shutil.copy(FOLDER / "criteria_last.pt", run.last_checkpoint)
    before = load_checkpoint(run.last_checkpoint, task="criteria")
    assert before.resume is not None
    assert before.resume["state"]["step"] == before.step == 4
    settings = as_of_today(load_checkpoint(run.best_checkpoint).config)
    settings |= {"resume": str(run.path), "task.name": "criteria"}
    with pytest.raises(ConfigError, match=r"`task\.long_posts` was 'truncate', but is 'windows'"):
        train(settings, task="criteria", verbose=False)
    settings["task.long_posts"] = "truncate"
    result = train(settings, task="criteria", verbose=False)
    assert result.directory == run.path
    assert result.metrics["val/f1_macro"] == pytest.approx(
        FIGURES["criteria"]["f1_macro"], abs=1e-4
    )


def test_a_setting_that_is_gone_is_no_difference(make_config):
    recorded = make_config().model_dump(mode="json")
    recorded["training"]["persistent_workers"] = True
    assert differences(recorded, make_config()) == []
    del recorded["tracking"]  # as a search records it
    assert differences(recorded, make_config()) == []


def test_evaluations_recorded_under_the_old_name_are_counted(tmp_path):
    run = RunDirectory(tmp_path)
    (tmp_path / "looks.jsonl").write_text('{"split": "test"}\n{"split": "val"}\n')
    assert run.record_evaluation("test", weights_sha256="0") == 2
    assert run.record_evaluation("test", weights_sha256="0") == 3
