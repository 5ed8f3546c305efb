import shutil

import optuna
import pytest
import torch
from optuna.exceptions import TrialPruned

from psy_agents_noaug.errors import ConfigError, NonFiniteError, OutOfMemoryError, StoppedError
from psy_agents_noaug.hpo import objective as module
from psy_agents_noaug.hpo.objective import Objective, OutputSettings, Reporter
from psy_agents_noaug.hpo.workers import FailedTrialError
from psy_agents_noaug.run import train as train_module
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.train import train

MONITOR = "val/f1_macro"


@pytest.fixture
def study():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())


@pytest.fixture
def base(overrides_for, tmp_path):
    given = (item.split("=", 1) for item in overrides_for(tmp_path / "outputs"))
    own = {key: value for key, value in given if key not in ("tracking", "output_dir")}
    numbers = {key: float(value) for key, value in own.items() if value.replace(".", "").isdigit()}
    whole = {key: int(value) for key, value in numbers.items() if value == int(value)}
    return {
        **own,
        **numbers,
        **whole,
        "data.negatives": 2.0,
        "report": False,
        "tracking": "none",
    }


@pytest.fixture
def make(base, tmp_path):
    def build(**changes):
        settings = {
            "propose": lambda trial: dict(base),
            "monitor": MONITOR,
            "output": OutputSettings(tmp_path / "trials", tracking={}, parent_run_id=None),
        }
        return Objective("criteria", **(settings | changes))

    return build


def test_a_trial_is_the_training_that_a_user_would_make(make, base, study, tmp_path, make_config):
    trial = study.ask()
    value = make()(trial)
    config = make_config("run_name=by_hand")
    assert train(config).metrics[MONITOR] == value
    assert trial.user_attrs["overrides"] == {k: v for k, v in base.items() if k != "tracking"}
    reported = study.trials[0].intermediate_values
    assert list(reported) == [1, 2]
    assert max(reported.values()) == value


@pytest.mark.slow
def test_a_search_keeps_no_checkpoint_and_looks_at_no_test(make, study, tmp_path):
    make()(study.ask())
    run = tmp_path / "trials/criteria/trial-0000"
    assert (run / "metrics.json").is_file()
    assert "test/" not in (run / "metrics.json").read_text()
    assert not (run / "evaluations.jsonl").exists()
    assert not list(run.rglob("*.pt"))
    assert not (tmp_path / "trials/checkpoints").is_symlink()


@pytest.mark.faults(
    "a worker is killed while it removes a trial's checkpoints", "the trial is trained again"
)
def test_a_trial_whose_checkpoints_are_half_removed_is_trained_again(
    make, study, monkeypatch, tmp_path
):
    class KilledError(Exception):
        pass

    remove = shutil.rmtree

    def removed_until_it_is_killed(folder, **options):
        if getattr(folder, "name", "") != "checkpoints":
            return remove(folder, **options)
        (folder / "best_checkpoint.pt").unlink()
        raise KilledError

    monkeypatch.setattr(shutil, "rmtree", removed_until_it_is_killed)
    with pytest.raises(KilledError):
        make()(study.ask())
    # Else its next worker would go on from the last step, where it needs the best checkpoint.
    assert not list(tmp_path.rglob("*_checkpoint.pt"))


def test_checkpoints_are_kept_where_they_are_wanted(make, study, tmp_path):
    make(keep_checkpoints=True)(study.ask())
    found = {path.name for path in (tmp_path / "trials/criteria/trial-0000").rglob("*.pt")}
    assert found == {"best_checkpoint.pt"}
    assert (tmp_path / "trials/checkpoints/best_checkpoint.pt").is_file()


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (OutOfMemoryError("Memory ran out with one example\nat a time"), FailedTrialError),
        (NonFiniteError("The loss is NaN"), FailedTrialError),
        (StoppedError(), TrialPruned),
        (ConfigError("no such key"), ConfigError),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
def test_what_ends_a_training_is_told_apart(make, study, monkeypatch, error, becomes):
    def train(*_, **__):
        raise error

    monkeypatch.setattr(module, "train", train)
    with pytest.raises(becomes) as caught:
        make()(study.ask())
    if becomes is FailedTrialError:
        assert str(caught.value) == str(error).splitlines()[0]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "CUDA out of memory."),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate"),
            "DefaultCPUAllocator: can't allocate",
        ),
    ],
)
def test_memory_that_runs_out_anywhere_fails_the_trial_with_its_cause(
    make, study, monkeypatch, error, cause
):
    def prepare_data(*_, **__):
        raise error

    monkeypatch.setattr(train_module, "prepare_data", prepare_data)
    with pytest.raises(FailedTrialError) as caught:
        make()(study.ask())
    assert str(caught.value).startswith(f"Memory ran out ({cause}): free memory")


def test_a_trial_whose_settings_exclude_each_other_has_failed(make, base, study):
    one_pass = {"model.architecture": "label_attention", "model.criterion_vectors": "learned"}
    unfit = {**base, **one_pass, "data.held_out_criteria": ["A.8"]}
    objective = make(propose=lambda trial: unfit)
    with pytest.raises(FailedTrialError, match="has no vector for"):
        objective(study.ask())


def test_a_trial_without_a_defined_figure_has_failed(make, study, monkeypatch):
    metrics = {MONITOR: None, f"{MONITOR}_undefined": "no positive pair"}
    result = RunResult(torch.__file__, metrics, "")
    monkeypatch.setattr(module, "train", lambda *_, **__: result)
    with pytest.raises(FailedTrialError, match="undefined: no positive pair"):
        make()(study.ask())


@pytest.mark.slow
def test_a_pruner_stops_the_training_after_the_evaluation_that_it_saw(make, study, tmp_path):
    study.pruner = optuna.pruners.ThresholdPruner(lower=2.0)
    trial = study.ask()
    with pytest.raises(TrialPruned):
        make()(trial)
    assert list(study.trials[0].intermediate_values) == [1]
    # The next trial is not bothered.
    study.pruner = optuna.pruners.NopPruner()
    assert make()(study.ask()) >= 0.0


def test_a_resumed_training_reports_the_evaluations_before_it_too(study):
    reporter = Reporter(study.ask(), MONITOR)
    reporter([{MONITOR: 0.1}, {MONITOR: None}, {MONITOR: 0.3}])
    reporter([{MONITOR: 0.1}, {MONITOR: None}, {MONITOR: 0.3}, {MONITOR: 0.2}])
    assert study.trials[0].intermediate_values == {1: 0.1, 3: 0.3, 4: 0.2}
