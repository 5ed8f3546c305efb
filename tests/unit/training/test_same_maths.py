"""Packed, padded and `transformers.Trainer`: other ways to the same weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.evaluate import RunResult
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tasks.base import TaskInputs
from psy_agents_noaug.tasks.build import build_task, load_encoders
from psy_agents_noaug.training.batching import TrainingSteps
from psy_agents_noaug.training.checkpoint import load_checkpoint

MakeConfig = Callable[..., TrainConfig]
# The biases of attention's keys have no gradient but rounding, which Adam scales up to whole updates
# unless epsilon is larger than it.
WITHOUT_CHANCE = (
    "model.encoder_dropout=0.0",
    "model.head_dropout=0.0",
    "training.adam_epsilon=0.0001",
    "training.early_stopping=null",
)


def last_weights(result: RunResult) -> dict[str, Tensor]:
    path = result.directory / "checkpoints" / "last_checkpoint.pt"
    return load_checkpoint(path, task=result.directory.parent.name).weights


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of any tensor, relative to its norm; tensors of rounding noise count as of norm 0.001."""
    assert one.keys() == other.keys()
    return max(
        float((one[name] - other[name]).norm() / one[name].norm().clamp_min(1e-3)) for name in one
    )


@pytest.mark.parametrize(
    ("task_name", "pooling"),
    [
        ("criteria", "cls"),
        pytest.param("criteria", "mean", marks=pytest.mark.slow),
        pytest.param("evidence", "cls", marks=pytest.mark.slow),
        pytest.param("joint", "cls", marks=pytest.mark.slow),
    ],
)
def test_packed_and_padded_training_end_in_the_same_weights(
    make_config: MakeConfig, pooling: str
) -> None:
    packed, padded = (
        train(
            make_config(
                *WITHOUT_CHANCE,
                f"model.pooling={pooling}",
                f"training.execution={execution}",
                f"run_name={execution}",
            )
        )
        for execution in ("packed", "padded")
    )
    assert largest_difference(last_weights(packed), last_weights(padded)) < 1e-4


class Wrapped(nn.Module):
    """Our criteria model, padded, with the signature that `transformers.Trainer` expects."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels: Tensor, pairs: Tensor, **inputs: Tensor) -> SequenceClassifierOutput:
        odds = self.model(inputs, pairs=pairs, n_pairs=len(labels))
        loss = nn.functional.binary_cross_entropy_with_logits(odds, labels.float())
        return SequenceClassifierOutput(loss=loss, logits=odds)


@pytest.mark.slow
def test_fifty_updates_are_those_of_transformers_trainer(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    settings = (
        *WITHOUT_CHANCE,
        "model.pooling=cls",
        "data.negatives=all",  # 126 pairs, so that no update is of fewer than the others
        "training.train_batch_size=7",
        "training.epochs=50",
        "training.max_steps=50",
        "training.eval_steps=50",
        "training.warmup_ratio=0.0",
        "training.weight_decay=0.01",
    )
    config = make_config(*settings, "training.execution=padded")
    torch.manual_seed(config.seed)
    data = prepare_data(config)
    task = build_task(
        config, TaskInputs(load_encoders(config), data.corpus.criteria, data.examples, 10_000)
    )
    size = config.training.train_batch_size
    steps = TrainingSteps(task, seed=config.seed, train_batch_size=size, max_tokens=10**9)
    source = task.source("train")
    order = [steps.indices(step) for step in range(50)]
    assert {len(indices) for indices in order} == {size}
    trainer = Trainer(
        model=Wrapped(task.model),
        args=TrainingArguments(
            output_dir=str(tmp_path / "theirs"),
            max_steps=50,
            per_device_train_batch_size=size,
            train_sampling_strategy="sequential",
            learning_rate=config.training.learning_rate,
            weight_decay=config.training.weight_decay,
            adam_epsilon=config.training.adam_epsilon,
            max_grad_norm=config.training.max_grad_norm,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=True,
        ),
        train_dataset=[index for indices in order for index in indices],
        data_collator=source.collate,
    )
    trainer.train()
    ours = train(make_config(*settings, "training.execution=packed"))
    assert largest_difference(last_weights(ours), task.model.state_dict()) < 1e-4
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    history = (ours.directory / "history.csv").read_text().splitlines()
    recorded = dict(zip(history[0].split(","), history[1].split(","), strict=True))
    assert float(recorded["train/loss"]) == pytest.approx(sum(losses) / 50, rel=1e-4)
