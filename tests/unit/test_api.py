"""The Python interface, as a notebook uses it."""

import logging
import os
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import psy_agents_noaug
from psy_agents_noaug import api, evaluate, train
from psy_agents_noaug.errors import ConfigError


def test_train_takes_a_mapping_or_a_list_and_returns_figures_and_a_table(overrides, tmp_path):
    listed = train([*overrides, "run_name=listed"], task="criteria", verbose=False)
    settings = dict(item.split("=", 1) for item in overrides if "." not in item)
    nested = {
        "task": "criteria",
        "data": "redsm5",
        "output_dir": tmp_path / "outputs",
        "run_name": "mapped",
        "tracking": settings["tracking"],
        "data.negatives": 2.0,
        "training": {"epochs": 2, "train_batch_size": 8, "micro_batch_tokens": 256, "amp": "off"},
    }
    values = dict(item.split("=", 1) for item in overrides if "." in item)
    for key in ("data.dir", "data.splits", "model.pretrained_model"):
        nested[key] = values[key]
    nested |= {"model.max_length": 96}
    nested["training"]["learning_rate"] = 0.001
    mapped = train(nested, verbose=False)
    assert mapped.metrics == listed.metrics
    assert mapped.directory == tmp_path / "outputs" / "criteria" / "mapped"
    assert mapped.table.loc[("val", "all"), "f1_macro"] == mapped.metrics["val/f1_macro"]
    key = "val/per_criterion/A.1/n_pairs"
    assert mapped.table.loc[("val", "per_criterion/A.1"), "n_pairs"] == mapped.metrics[key]


def test_evaluate_takes_a_result_a_directory_or_a_checkpoint(overrides):
    trained = train(overrides, task="criteria", verbose=False)
    best = trained.directory / "checkpoints" / "best_checkpoint.pt"
    found = [
        evaluate(given, split="val", verbose=False).metrics
        for given in (trained, trained.directory, str(best))
    ]
    assert found[0] == found[1] == found[2]
    assert found[0]["val/f1_macro"] == trained.metrics["val/f1_macro"]


def test_a_task_that_does_not_exist_and_a_wrong_key_are_told():
    with pytest.raises(ConfigError, match="one of criteria, evidence, joint"):
        train({"task": "severity"})
    with pytest.raises(ConfigError, match=r"did you mean `training\.epochs`"):
        train({"training.epoch": 1})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("training.epochs=3", "must be a mapping or a list"),
        (None, "must be a mapping or a list"),
        ([1], "must be KEY=VALUE or GROUP=CHOICE"),
        (["hydra.run.dir=x"], "must be KEY=VALUE or GROUP=CHOICE"),
        (["task=joint", "task=criteria"], "`task` must be joint here"),
    ],
)
def test_settings_of_another_form_are_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        train(overrides)


def test_a_task_is_chosen_once_and_the_arguments_of_an_evaluation_are_no_settings(tmp_path):
    with pytest.raises(
        ConfigError, match="given once, but is evidence and, in the settings, joint"
    ):
        train(["task=joint"], task="evidence")
    for settings in ({"split": "val"}, ["checkpoint=x"]):
        with pytest.raises(ConfigError, match="`checkpoint` and `split` are arguments"):
            evaluate(tmp_path, settings)


def test_values_of_numpy_and_tuples_are_those_of_python():
    values = {
        "a.b": np.float64(1e-4),
        "c": (np.int64(3), np.array([0.5])),
        "d": Path("x/y"),
        "e": None,
    }
    _, words = api._arguments(values)
    assert words == ["++a.b=0.0001", "++c=[3,[0.5]]", "++d='x/y'", "++e=null"]


def test_the_number_of_threads_of_one_run_is_not_that_of_the_next(overrides):
    before = torch.get_num_threads()
    short = [*overrides, "training.max_steps=1"]
    train([*short, f"training.num_threads={before + 1}"], verbose=False)
    assert torch.get_num_threads() == before


def test_what_happens_is_shown_unless_the_program_logs_itself(overrides, capsys, own_logging):
    logging.getLogger().handlers[:] = []  # pytest's own
    train([*overrides, "training.max_steps=1"], task="criteria")
    assert "INFO Execution" in capsys.readouterr().err
    train([*overrides, "training.max_steps=1"], task="criteria", verbose=False)
    assert "INFO" not in capsys.readouterr().err
    logger = logging.getLogger("psy_agents_noaug")
    assert not logger.handlers


@pytest.mark.slow
def test_ten_trainings_in_one_process_leak_no_threads_files_or_memory(overrides):
    process = psutil.Process()
    held = []
    tracked = [item for item in overrides if not item.startswith("tracking=")]
    for _ in range(10):
        train([*tracked, "training.max_steps=2"], task="criteria", verbose=False)
        files = process.num_fds() if os.name == "posix" else len(process.open_files())
        held.append((threading.active_count(), files, process.memory_info().rss / 2**20))
    threads, files, memory = zip(*held, strict=True)
    assert threads[-1] <= threads[2]
    assert files[-1] <= files[2]
    assert memory[-1] - memory[2] < 30


def test_the_package_has_the_interface_that_it_names():
    assert all(hasattr(psy_agents_noaug, name) for name in psy_agents_noaug.__all__)
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        _ = psy_agents_noaug.predict
