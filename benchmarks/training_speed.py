"""Training speed: our Trainer beside `transformers.Trainer`, interleaved in one process.

Same encoder, same tokenised pairs, same batch size, number of updates and precision (fp32), dropout
as pretrained. Ours is timed as a user runs it, `runs.train`, over the updates; the other over
`trainer.train()`, without evaluation and checkpoints. Usage:

    python benchmarks/training_speed.py [--steps 20] [--rounds 3] [--json FILE] [KEY=VALUE]...
"""

import argparse
import csv
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from psy_agents_noaug import runs
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.config.schema import CriteriaTaskConfig, TrainConfig
from psy_agents_noaug.models.encoder import load_encoder
from psy_agents_noaug.prepare import prepare_data
from psy_agents_noaug.tasks.criteria import CriteriaTask, build_criteria_task
from psy_agents_noaug.utils.reproducibility import system_info


class Classifier(nn.Module):
    """Our criteria model with the signature that `transformers.Trainer` expects."""

    def __init__(self, task: CriteriaTask) -> None:
        super().__init__()
        self.model = task.model

    def forward(
        self,
        labels: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        logits = self.model(input_ids, attention_mask, token_type_ids)
        return SequenceClassifierOutput(
            loss=nn.functional.cross_entropy(logits, labels), logits=logits
        )


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds between the beginning and the end of training."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def ours(config: TrainConfig) -> float:
    """Examples per second of `runs.train`."""
    directory = runs.train(config).directory
    with (directory / "history.csv").open(newline="") as file:
        return float(next(csv.DictReader(file))["train/examples_per_second"])


def theirs(config: TrainConfig, *, steps: int, strategy: str, folder: Path) -> float:
    """Examples per second of `transformers.Trainer` on the pairs of the first epoch."""
    data = prepare_data(config.data)
    encoder = load_encoder(config.model.pretrained_model)
    assert isinstance(config.task, CriteriaTaskConfig)
    task = build_criteria_task(
        config, config.task, encoder=encoder, criteria=data.corpus.criteria, examples=data.examples
    )
    source = task.source("train")
    encoded = source.encoded
    rows = []
    for index in task.epoch_pool(0):
        tokens = slice(encoded.starts[index], encoded.starts[index + 1])
        row = {"input_ids": encoded.input_ids[tokens].tolist(), "labels": int(source.labels[index])}
        if encoded.token_type_ids is not None:
            row["token_type_ids"] = encoded.token_type_ids[tokens].tolist()
        rows.append(row)
    clock = Clock()
    Trainer(
        model=Classifier(task),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=config.training.train_batch_size,
            max_steps=steps,
            learning_rate=config.training.learning_rate,
            weight_decay=config.training.weight_decay,
            train_sampling_strategy=strategy,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=config.seed,
        ),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(encoder.tokenizer),
        processing_class=encoder.tokenizer,
        callbacks=[clock],
    ).train()
    return steps * config.training.train_batch_size / clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="updates a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for the scripts")
    options = parser.parse_args()
    if torch.cuda.device_count() > 1:
        parser.error(
            "set CUDA_VISIBLE_DEVICES to one GPU: both trainers are measured on one device"
        )
    logging.disable(logging.WARNING)
    systems: dict[str, list[float]] = {
        "psy_agents_noaug": [],
        "transformers.Trainer (default)": [],
        "transformers.Trainer (group_by_length)": [],
    }
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            config = load_train_config(
                "criteria/train",
                [
                    "model.encoder_dropout=0.1",
                    *options.overrides,
                    "training.amp=off",
                    f"training.max_steps={options.steps}",
                    "tracking=none",
                    "task.bootstrap_resamples=100",
                    f"output_dir={folder}",
                ],
            )
            rates = [
                ours(config),
                theirs(config, steps=options.steps, strategy="random", folder=Path(folder)),
                theirs(
                    config, steps=options.steps, strategy="group_by_length", folder=Path(folder)
                ),
            ]
        for rates_of_system, rate in zip(systems.values(), rates, strict=True):
            rates_of_system.append(rate)
        print(
            f"round {number + 1}/{options.rounds}: {[round(rate, 2) for rate in rates]}",
            file=sys.stderr,
        )
    medians = {name: statistics.median(rates) for name, rates in systems.items()}
    own = medians["psy_agents_noaug"]
    print(f"{'system':<40} examples/s  ours is faster by")
    for name, rate in medians.items():
        print(f"{name:<40} {rate:>10.2f}  {own / rate:>15.2f}x")
    if options.json:
        result = {"examples_per_second": systems, "medians": medians, "machine": system_info()}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
