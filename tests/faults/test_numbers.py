"""NaN and infinite numbers: in a loss, a gradient, a score, a weight, or the optimizer's state."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from psy_agents_noaug.config.schema import EvaluateConfig, TrainConfig
from psy_agents_noaug.errors import CheckpointError, NonFiniteError
from psy_agents_noaug.hpo.objective import Objective, OutputSettings
from psy_agents_noaug.hpo.workers import FailedTrialError
from psy_agents_noaug.run.evaluate import evaluate
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tasks.criteria.task import CriteriaTask
from psy_agents_noaug.training import checkpoint as checkpoint_module
from psy_agents_noaug.training import trainer
from psy_agents_noaug.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

MakeConfig = Callable[..., TrainConfig]
Together = Callable[..., list[tuple[int, str]]]
TASKS = pytest.mark.parametrize("task_name", ["criteria", "evidence", "joint"])


@TASKS
@pytest.mark.faults(
    "the learning rate is so large that scores are NaN at the evaluation",
    "one message with what to lower, exit 2; checkpoints stay those of the evaluation before",
)
def test_scores_that_are_not_finite_are_one_message(
    start_script: Callable[..., Any], overrides: list[str], tmp_path: Path, task_name: str
) -> None:
    process = start_script(
        f"train_{task_name}.py", *overrides, "training.learning_rate=1e30", "training.eval_steps=1"
    )
    done = process.wait()
    assert done.returncode == 2
    found = re.findall(r"^NonFiniteError: .*scores .*are NaN or infinite.*$", done.stderr, re.M)
    assert len(found) == 1
    assert "training.learning_rate" in found[0]
    assert "Traceback" not in done.stderr
    # Of the first step, whose learning rate is 0.
    assert {load_checkpoint(path).step for path in tmp_path.rglob("*.pt")} == {1}


@pytest.mark.faults(
    "an update makes weights infinite",
    "one message; the checkpoint before it stays as it is, and is finite",
)
def test_weights_that_are_not_finite_are_never_saved(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.Trainer._update

    def poisoned(self: trainer.Trainer) -> bool:
        updated = original(self)
        if self.step == 2:
            with torch.no_grad():
                self._parameters[-1][-1] = math.inf
        return updated

    monkeypatch.setattr(trainer.Trainer, "_update", poisoned)
    config = make_config("run_name=poisoned", "training.save_steps=1")
    with pytest.raises(
        NonFiniteError, match=r"After step 3, head\S+ are NaN or infinite, so last_"
    ):
        train(config)
    last = Path(config.output_dir) / "criteria/poisoned/checkpoints/last_checkpoint.pt"
    assert load_checkpoint(last).step == 2


@pytest.mark.parametrize("part", ["weights", "optimizer"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.faults(
    "a weight or the optimizer's state is NaN or infinite", "the checkpoint is not written"
)
def test_a_checkpoint_with_a_number_that_is_not_finite_is_not_written(
    tmp_path: Path, part: str, value: float
) -> None:
    weights, moments = {"head.weight": torch.zeros(3)}, {"exp_avg_sq": torch.zeros(3)}
    (weights["head.weight"] if part == "weights" else moments["exp_avg_sq"])[1] = value
    resume = {"optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1.0}]}}
    bad = Checkpoint("criteria", 7, {}, {}, weights, resume=resume)
    name = "head.weight" if part == "weights" else "the optimizer's state"
    with pytest.raises(NonFiniteError, match=f"After step 7, {name} are NaN"):
        save_checkpoint(tmp_path / "last_checkpoint.pt", bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.faults(
    "`eval` or `resume` of a checkpoint whose weights are not finite", "refused, naming the weights"
)
def test_a_checkpoint_whose_weights_are_not_finite_is_not_evaluated(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = train(make_config("training.epochs=1")).directory / "checkpoints/best_checkpoint.pt"
    saved = load_checkpoint(best)
    saved.weights["head.layers.1.bias"][0] = math.nan
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "_non_finite", lambda values: [])
        save_checkpoint(best, saved)
    with pytest.raises(
        CheckpointError, match=r"refused: its weights head\.layers\.1\.bias are NaN"
    ):
        evaluate(
            EvaluateConfig(checkpoint=str(best), split="val"), task_name="criteria", explicit={}
        )


@pytest.mark.faults(
    "a trial of a search whose scores or weights are not finite",
    "the trial has failed, with the reason; the next one runs",
)
def test_a_trial_that_is_not_finite_has_failed_and_the_next_one_runs(
    overrides_for: Callable[..., list[str]], tmp_path: Path
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    base = dict(item.split("=", 1) for item in overrides_for(tmp_path / "outputs"))
    del base["output_dir"]
    rates = iter(["1e30", "0.001"])
    objective = Objective(
        "criteria",
        propose=lambda trial: {
            **base,
            "report": False,
            **{key: float(base[key]) for key in ("data.negatives",)},
            **{key: int(value) for key, value in base.items() if value.isdigit()},
            "training.learning_rate": float(next(rates)),
            "training.eval_steps": 1,
        },
        monitor="val/f1_macro",
        output=OutputSettings(tmp_path / "trials", tracking={}, parent_run_id=None),
    )
    with pytest.raises(FailedTrialError, match="scores are NaN or infinite"):
        objective(study.ask())
    assert objective(study.ask()) >= 0.0


@pytest.mark.faults(
    "NaN in the loss of one of two processes", "both name the example and end; none waits"
)
def test_a_loss_of_one_process_that_is_not_finite_ends_all_of_them(
    make_config: MakeConfig, together: Together
) -> None:
    original = CriteriaTask.loss

    def work(rank: int) -> None:
        def poisoned(*given: Any) -> torch.Tensor:
            loss = original(*given)
            return loss * math.nan if rank == 1 else loss

        CriteriaTask.loss = poisoned  # type: ignore[method-assign]
        train(make_config())

    found = together(2, work, seconds=60)
    assert [code for code, _ in found] == [2, 2]
    assert found[0] == found[1]
    assert re.match(r"NonFiniteError: The loss is NaN .* step 0.*\n  - p\d\d/A\.\d", found[0][1])
