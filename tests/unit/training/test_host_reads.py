"""How often an update reads from its device: each time the host waits for a GPU.

Tensors on the device `meta` have no values, so that reading one raises. What only a GPU can show is
marked `gpu`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tasks.base import Task, TaskInputs
from psy_agents_noaug.tasks.build import build_task, load_encoders
from psy_agents_noaug.training.trainer import Trainer
from psy_agents_noaug.utils.host import to_device

MakeConfig = Callable[..., TrainConfig]
EVERY_TASK = pytest.mark.parametrize("task_name", ["criteria", "evidence", "joint"])
# Calls that return what Python needs the value of.
READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy")


def _task(config: TrainConfig) -> Task:
    data = prepare_data(config)
    return build_task(
        config,
        TaskInputs(load_encoders(config), data.corpus.criteria, data.examples, max_tokens=256),
    )


def _loss(task: Task, device: torch.device) -> None:
    """Compute the losses of a batch and their gradients on `device`."""
    source = task.source("train")
    task.model.to(device).train()
    batch = {name: to_device(value, device) for name, value in source.collate([0, 1, 2]).items()}
    task.loss(task.model, batch).sum().backward()


@EVERY_TASK
def test_losses_and_gradients_are_computed_without_reading_from_the_device(
    make_config: MakeConfig,
) -> None:
    _loss(_task(make_config("training.execution=packed")), torch.device("meta"))


@pytest.mark.parametrize("max_grad_norm", ["1.0", "null"])
def test_after_the_gradients_an_update_reads_from_the_device_once(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, max_grad_norm: str
) -> None:
    seen: list[str] = []
    updates: list[list[str]] = []

    def noting(name: str) -> Callable[..., object]:
        read = getattr(torch.Tensor, name)

        def noted(self: torch.Tensor, *args: object) -> object:
            seen.append(name)
            return read(self, *args)

        return noted

    gradients, update = Trainer._gradients_within_memory, Trainer._update

    def computed(self: Trainer, *args: Any) -> Any:
        found = gradients(self, *args)
        seen.clear()
        return found

    def updated(self: Trainer) -> bool:
        is_made = update(self)
        updates.append(seen.copy())
        return is_made

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, noting(name))
    monkeypatch.setattr(Trainer, "_gradients_within_memory", computed)
    monkeypatch.setattr(Trainer, "_update", updated)
    train(make_config("training.max_steps=2", f"training.max_grad_norm={max_grad_norm}"))
    assert updates == [["tolist"], ["tolist"]]


@pytest.mark.gpu
@EVERY_TASK
def test_on_a_gpu_nothing_waits_for_it_but_the_end_of_the_update(make_config: MakeConfig) -> None:
    task = _task(make_config("training.execution=packed", "training.device=cuda"))
    device = torch.device("cuda")
    _loss(task, device)  # The first time, libraries are loaded.
    torch.cuda.set_sync_debug_mode("error")
    try:
        _loss(task, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@EVERY_TASK
@pytest.mark.parametrize("amp", ["off", "auto"])
def test_on_a_gpu_two_runs_with_one_seed_are_bit_identical(
    make_config: MakeConfig, weights_of: Callable[[RunResult], tuple[str, str]], amp: str
) -> None:
    settings = ("training.device=cuda", f"training.amp={amp}", "training.execution=packed")
    first, second = (train(make_config(*settings, f"run_name={name}")) for name in ("a", "b"))
    assert weights_of(first) == weights_of(second)
    assert first.metrics == second.metrics
