"""Runs of tiny models to report on."""

from pathlib import Path

import pytest

from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.config.schema import EvaluateConfig
from psy_agents_noaug.run.evaluate import evaluate
from psy_agents_noaug.run.train import train


def trained(overrides, task, *more) -> Path:
    """Return the directory of a run that is evaluated on test."""
    run = train(load_train_config(task, [*overrides, *more])).directory
    settings = EvaluateConfig(checkpoint=str(run), split="test")
    return evaluate(settings, task_name=task, explicit={}).directory


@pytest.fixture(scope="session")
def joint_run(overrides_for, tmp_path_factory) -> Path:
    """A run of the joint task, which has the figures of both others."""
    return trained(overrides_for(tmp_path_factory.mktemp("joint"), "joint"), "joint")


@pytest.fixture(scope="session")
def sentence_run(overrides_for, tmp_path_factory) -> Path:
    """A run of the criteria task that judges all sentences."""
    overrides = overrides_for(tmp_path_factory.mktemp("sentences"))
    return trained(overrides, "criteria", "data.unit=sentence", "data.sentences=all")
