"""Training speed: our Trainer beside `transformers.Trainer`, interleaved, each in a fresh process.

Criteria task, MiniLM unless a setting says otherwise, posts of log-normal length (median 220 words),
batch size 16, dropout 0.1 everywhere, the same tokenised pairs. Ours is timed as a user runs it,
`train` with full reproducibility, over its updates; the other over `trainer.train()`, without
evaluation and checkpoints. With its defaults the other trains on the very examples of our updates. At
its best it gets the batches that `group_by_length` makes of fifty, longest first, of which it trains on
some of every length; so speeds are compared by real tokens a second. Usage:

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

from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.models.encoder import load_encoder
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tasks.base import TaskInputs
from psy_agents_noaug.tasks.build import load_encoders
from psy_agents_noaug.tasks.criteria.task import CriteriaTask
from psy_agents_noaug.training.batching import TrainingSteps
from psy_agents_noaug.utils.reproducibility import get_device

SYSTEMS = {
    "ours": "psy_agents_noaug, training.execution=auto",
    "ours_padded": "psy_agents_noaug, training.execution=padded",
    "trainer": "transformers.Trainer, defaults",
    "trainer_best": "transformers.Trainer, grouped by length, bf16 if fast",
}
_GROUPED = 50  # of the sampler in transformers


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds between the beginning and the end of training."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.began


def configuration(
    folder: str,
    *,
    steps: int,
    system: str,
    overrides: Sequence[str],
    n_posts: int = 40,
    n_held_out: int | None = None,
) -> TrainConfig:
    corpus = write_corpus(Path(folder) / "corpus", n_posts=n_posts, n_held_out=n_held_out)
    return load_train_config(
        "criteria",
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
            f"output_dir={folder}",
            *overrides,
            *(["training.execution=padded"] if system == "ours_padded" else []),
        ],
    )


def ours(config: TrainConfig) -> float:
    """Examples per second of `train`."""
    directory = train(config).directory
    with (directory / "history.csv").open(newline="") as file:
        return float(next(csv.DictReader(file))["train/examples_per_second"])


def theirs(config: TrainConfig, *, best: bool, folder: str) -> float:
    """Examples per second of `transformers.Trainer`."""
    task = build(config)
    source, steps = task.source("train"), config.training.max_steps
    assert steps is not None
    rows = []
    for index in trained_on(config, task, grouped=best):
        ids, types = source.encoded.row(index)
        row = {"input_ids": ids.tolist(), "labels": int(source.labels[index])}
        if source.encoded.has_segments:
            row["token_type_ids"] = types.tolist()
        rows.append(row)
    encoder = load_encoder(config.model.pretrained_model, dropout=config.model.encoder_dropout)
    encoder.model.save_pretrained(f"{folder}/encoder")  # type: ignore[operator]
    tokenizer = encoder.tokenizer
    del task, source, encoder
    clock = Clock()
    Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(f"{folder}/encoder"),
        args=TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=config.training.train_batch_size,
            max_steps=steps,
            learning_rate=config.training.learning_rate,
            weight_decay=config.training.weight_decay,
            train_sampling_strategy="sequential" if best else "random",
            bf16=best and get_device().supports_bf16,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=config.seed,
        ),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=[clock],
    ).train()
    return steps * config.training.train_batch_size / clock.seconds


def trained_on(config: TrainConfig, task: CriteriaTask, *, grouped: bool) -> list[int]:
    """Return the examples that the updates are about, in order.

    grouped: the batches of fifty of our updates, sorted by length, at even distances.
    """
    steps, size = config.training.max_steps, config.training.train_batch_size
    assert steps is not None
    order = TrainingSteps(task, seed=config.seed, train_batch_size=size, max_tokens=1)
    if not grouped:
        return [int(index) for step in range(steps) for index in order.indices(step)]
    pool = [int(index) for step in range(_GROUPED) for index in order.indices(step)]
    lengths = task.source("train").lengths
    pool.sort(key=lambda index: -int(lengths[index]))
    chosen = [int((step + 0.5) * _GROUPED / steps) for step in range(steps)]
    return [index for batch in chosen for index in pool[batch * size : (batch + 1) * size]]


def build(config: TrainConfig) -> CriteriaTask:
    data = prepare_data(config)
    inputs = TaskInputs(load_encoders(config), data.corpus.criteria, data.examples, max_tokens=1)
    return CriteriaTask(config, inputs)


def measure(system: str, *, steps: int, overrides: Sequence[str]) -> dict[str, float]:
    """Run one system in this process. Return examples a second and its memory's peak."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(folder, steps=steps, system=system, overrides=overrides)
        rate = (
            ours(config)
            if system.startswith("ours")
            else theirs(config, best=system == "trainer_best", folder=folder)
        )
        return {"examples_per_second": rate, "peak_memory_mib": peak_memory_mib()}


def workload(system: str, *, steps: int, overrides: Sequence[str]) -> dict[str, float]:
    """Return the mean real tokens and floating-point operations of an example of these updates."""
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(folder, steps=steps, system=system, overrides=overrides)
        task = build(config)
        seen = trained_on(config, task, grouped=system == "trainer_best")
        lengths = [int(length) for length in task.source("train").lengths[seen]]
        encoder: Any = task.model.encoder
        flops = training_flops(
            lengths,
            linear_parameters=linear_parameters(encoder),
            hidden=encoder.config.hidden_size,
            layers=encoder.config.num_hidden_layers,
        )
        if system == "ours" and encoder.config.model_type == "bert":
            # All but the keys and values of the last layer is computed for first tokens alone.
            last = encoder.encoder.layer[-1]
            skipped = sum(
                map(linear_parameters, (last.attention.output, last.intermediate, last.output))
            )
            flops -= 6.0 * skipped * (sum(lengths) - len(lengths))
        return {"tokens": sum(lengths) / len(lengths), "flops": flops / len(lengths)}


def linear_parameters(module: torch.nn.Module) -> int:
    linear = (part for part in module.modules() if isinstance(part, torch.nn.Linear))
    return sum(part.weight.numel() for part in linear)


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
    load = {
        system: workload(system, steps=options.steps, overrides=options.overrides)
        for system in options.systems
    }
    info = get_device()
    dtype = torch.bfloat16 if info.supports_bf16 else torch.float32
    ceiling = matmul_ceiling(dtype, info.device)
    rows = {}
    for system, figures in medians.items():
        rate = figures["examples_per_second"]
        rows[SYSTEMS[system]] = {
            "examples/s": rate,
            "tokens/s": rate * load[system]["tokens"],
            "of ceiling": rate * load[system]["flops"] / ceiling,
            "peak MiB": figures["peak_memory_mib"],
        }
    own = rows[SYSTEMS[options.systems[0]]]
    for row in rows.values():
        row["speed-up"] = own["tokens/s"] / row["tokens/s"]
        row["memory"] = own["peak MiB"] / row["peak MiB"]
    print(
        f"{info.describe()}; {torch.get_num_threads()} threads; matrix products of {dtype}: "
        f"{ceiling / 1e9:.0f} GFLOP/s; {load[options.systems[0]]['tokens']:.0f} real tokens an example"
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
    print(
        f"speed-up (tokens/s), memory: of {SYSTEMS[options.systems[0]]} over (as a share of) the row's"
    )
    write_results(options.json, figures=rows, ceiling_flops=ceiling, workload=load)


if __name__ == "__main__":
    main()
