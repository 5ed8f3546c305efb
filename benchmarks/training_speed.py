"""Training speed: our Trainer beside `transformers.Trainer`, interleaved, each in a fresh process.

Criteria task, MiniLM unless a setting says otherwise, posts of log-normal length (median 220 words),
batch size 16, dropout 0.1 everywhere. Ours is timed as a user runs it, `runs.train`, over its updates;
the other over `trainer.train()`, without evaluation and checkpoints. Both get the same tokenised pairs.
Usage:

    python benchmarks/training_speed.py [--steps 5] [--rounds 2] [--json FILE] [KEY=VALUE]...
"""

import argparse
import csv
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    in_fresh_process,
    interleaved,
    matmul_ceiling,
    peak_memory_mib,
    table,
    training_flops,
    write_corpus,
    write_results,
)
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from psy_agents_noaug import runs
from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.config.schema import CriteriaTaskConfig, TrainConfig
from psy_agents_noaug.models.encoder import load_encoder
from psy_agents_noaug.prepare import prepare_data
from psy_agents_noaug.tasks.criteria import CriteriaTask, build_criteria_task
from psy_agents_noaug.training.batching import TrainingSteps
from psy_agents_noaug.utils.reproducibility import get_device

SYSTEMS = {
    "ours": "psy_agents_noaug, training.execution=auto",
    "ours_padded": "psy_agents_noaug, training.execution=padded",
    "trainer": "transformers.Trainer, defaults",
    "trainer_best": "transformers.Trainer, grouped by length, bf16 if fast",
}


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds between the beginning and the end of training."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.began


def configuration(folder: str, *, steps: int, system: str, overrides: Sequence[str]) -> TrainConfig:
    corpus = write_corpus(Path(folder) / "corpus", n_posts=40)
    return load_train_config(
        "criteria/train",
        [
            *corpus,
            "data.unit=post",
            "data.negatives=all",
            "model.pooling=cls",
            "model.encoder_dropout=0.1",
            "training.train_batch_size=16",
            "training.amp=auto",
            f"training.max_steps={steps}",
            "tracking=none",
            "task.bootstrap_resamples=100",
            f"output_dir={folder}",
            *overrides,
            *(["training.execution=padded"] if system == "ours_padded" else []),
        ],
    )


def ours(config: TrainConfig) -> float:
    """Examples per second of `runs.train`."""
    directory = runs.train(config).directory
    with (directory / "history.csv").open(newline="") as file:
        return float(next(csv.DictReader(file))["train/examples_per_second"])


def theirs(config: TrainConfig, task: CriteriaTask, *, best: bool, folder: str) -> float:
    """Examples per second of `transformers.Trainer` on the pairs of the first epoch."""
    source = task.source("train")
    encoded = source.encoded
    rows = []
    for index in task.epoch_pool(0):
        tokens = slice(encoded.starts[index], encoded.starts[index + 1])
        row = {"input_ids": encoded.input_ids[tokens].tolist(), "labels": int(source.labels[index])}
        if encoded.token_type_ids is not None:
            row["token_type_ids"] = encoded.token_type_ids[tokens].tolist()
        rows.append(row)
    encoder = load_encoder(config.model.pretrained_model, dropout=config.model.encoder_dropout)
    encoder.model.save_pretrained(f"{folder}/encoder")  # type: ignore[operator]
    clock = Clock()
    steps = config.training.max_steps
    assert steps is not None
    Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(f"{folder}/encoder"),
        args=TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=config.training.train_batch_size,
            max_steps=steps,
            learning_rate=config.training.learning_rate,
            weight_decay=config.training.weight_decay,
            train_sampling_strategy="group_by_length" if best else "random",
            bf16=best and get_device().supports_bf16,
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


def build(config: TrainConfig) -> CriteriaTask:
    data = prepare_data(config.data)
    assert isinstance(config.task, CriteriaTaskConfig)
    return build_criteria_task(
        config,
        config.task,
        encoder=load_encoder(config.model.pretrained_model),
        criteria=data.corpus.criteria,
        examples=data.examples,
    )


def measure(system: str, *, steps: int, overrides: Sequence[str]) -> dict[str, float]:
    """Run one system in this process. Return examples a second and its memory's peak."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(folder, steps=steps, system=system, overrides=overrides)
        rate = (
            ours(config)
            if system.startswith("ours")
            else theirs(config, build(config), best=system == "trainer_best", folder=folder)
        )
        return {"examples_per_second": rate, "peak_memory_mib": peak_memory_mib()}


def workload(*, steps: int, overrides: Sequence[str]) -> dict[str, float]:
    """Return the mean real tokens and floating-point operations of an example in these updates."""
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(folder, steps=steps, system="ours", overrides=overrides)
        task = build(config)
        size = config.training.train_batch_size
        order = TrainingSteps(task, seed=config.seed, train_batch_size=size, max_tokens=1)
        seen = [index for step in range(steps) for index in order.indices(step)]
        lengths = [int(length) for length in task.source("train").lengths[seen]]
        encoder: Any = task.model.encoder
        layers = encoder.config.num_hidden_layers
        linear = sum(
            module.weight.numel()
            for module in encoder.modules()
            if isinstance(module, torch.nn.Linear)
        )
        flops = training_flops(
            lengths, linear_parameters=linear, hidden=encoder.config.hidden_size, layers=layers
        )
        return {"tokens": sum(lengths) / len(lengths), "flops": flops / len(lengths)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="updates a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/training_speed.json"))
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for the scripts")
    options = parser.parse_intermixed_args()
    if torch.cuda.device_count() > 1:
        parser.error("set CUDA_VISIBLE_DEVICES to one GPU: all are measured on one device")
    if options.measure:
        figures = measure(options.measure, steps=options.steps, overrides=options.overrides)
        print(json.dumps(figures))
        return
    medians = interleaved(
        lambda system: in_fresh_process(
            __file__, "--steps", str(options.steps), "--measure", system, *options.overrides
        ),
        options.systems,
        rounds=options.rounds,
    )
    load = workload(steps=options.steps, overrides=options.overrides)
    info = get_device()
    dtype = torch.bfloat16 if info.supports_bf16 else torch.float32
    ceiling = matmul_ceiling(dtype, info.device)
    own = medians[options.systems[0]]
    rows = {}
    for system, figures in medians.items():
        rate = figures["examples_per_second"]
        rows[SYSTEMS[system]] = {
            "examples/s": rate,
            "tokens/s": rate * load["tokens"],
            "of ceiling": rate * load["flops"] / ceiling,
            "peak MiB": figures["peak_memory_mib"],
            "speed-up": own["examples_per_second"] / rate,
            "memory": own["peak_memory_mib"] / figures["peak_memory_mib"],
        }
    print(
        f"{info.describe()}; {torch.get_num_threads()} threads; matrix products of {dtype}: "
        f"{ceiling / 1e9:.0f} GFLOP/s; {load['tokens']:.0f} real tokens an example"
    )
    print(
        table(
            rows,
            {
                "examples/s": ".2f",
                "tokens/s": ".0f",
                "of ceiling": ".0%",
                "peak MiB": ".0f",
                "speed-up": ".2f",
                "memory": ".0%",
            },
        )
    )
    print(f"speed-up, memory: of {SYSTEMS[options.systems[0]]} over (as a share of) the row's")
    write_results(options.json, figures=rows, ceiling_flops=ceiling, workload=load)


if __name__ == "__main__":
    main()
