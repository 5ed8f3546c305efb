"""Training speed: both of our architectures beside `transformers.Trainer`, in turn, in fresh processes.

Criteria task, nine criteria, MiniLM unless a setting says otherwise, posts of log-normal length (median
220 words), dropout 0.1 everywhere. An update reads `training.train_batch_size` posts, once for all
criteria (label attention, and Trainer's `multi_label_classification`), or as many pairs of a criterion
and a post (cross-encoder, and Trainer's pairs). Posts are cut to what every row reads whole
(`--whole-posts`: as they are).

Ours is timed as a user runs it, `train` with full reproducibility, over its updates; Trainer over
`trainer.train()`, without evaluation and checkpoints. With its defaults, Trainer trains on the very
examples of our updates. At its best it gets the batches that `group_by_length` makes of fifty, longest
first, of which it trains on some of every length. As the examples of a few updates are longer or
shorter than those of others, posts a second are tokens a second over the tokens that the row reads of a
post of the corpus, and pairs are nine times as many. Usage:

    python benchmarks/training_speed.py [--quick] [--steps 5] [--rounds 2] [--json FILE] [KEY=VALUE]...
"""

import argparse
import csv
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psy_agents_noaug  # noqa: F401  (before torch, as in a command: it may say how threads wait)

# isort: split
import torch
from common import (
    N_CRITERIA,
    Target,
    corpus_settings,
    cut_for,
    flops_of,
    in_fresh_process,
    interleaved,
    long_posts,
    matmul_ceiling,
    peak_memory_mib,
    save_encoder,
    table,
    target_lines,
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
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.train import train
from psy_agents_noaug.tasks.base import TaskInputs
from psy_agents_noaug.tasks.build import load_encoders
from psy_agents_noaug.tasks.criteria.task import CriteriaTask
from psy_agents_noaug.tasks.pairs import PairSource, TextSource
from psy_agents_noaug.training.batching import TrainingSteps
from psy_agents_noaug.utils.reproducibility import get_device


@dataclass(frozen=True)
class System:
    """What is measured: a row of the table.

    Args:
        name: shown.
        settings: of ours; of Trainer, those by which its examples are made.
        trainer: how `transformers.Trainer` is used; None: ours.
    """

    name: str
    settings: Sequence[str] = ()
    trainer: Literal["defaults", "best"] | None = None


_POSTS = ("model.architecture=label_attention",)
SYSTEMS = {
    "label_attention": System("psy_agents_noaug, label attention", _POSTS),
    "cross_encoder": System("psy_agents_noaug, cross-encoder"),
    "cross_encoder_padded": System(
        "psy_agents_noaug, cross-encoder, padded", ("training.execution=padded",)
    ),
    "trainer_multi_label": System("Trainer, multi-label, defaults", _POSTS, trainer="defaults"),
    "trainer_multi_label_best": System(
        "Trainer, multi-label, grouped by length, bf16 if fast", _POSTS, trainer="best"
    ),
    "trainer_pairs": System("Trainer, pairs, defaults", trainer="defaults"),
    "trainer_pairs_best": System("Trainer, pairs, grouped by length, bf16 if fast", trainer="best"),
}
TARGETS = (
    Target("cross_encoder", "pairs/s", floor=7.0, aim=9.0),
    Target("trainer_multi_label", "posts/s", floor=6.0),
    Target("trainer_multi_label_best", "posts/s", floor=3.0),
)
COLUMNS = {
    "posts/s": ".2f",
    "pairs/s": ".1f",
    "tokens/s": ".0f",
    "tokens a post": ".0f",
    "of ceiling": ".0%",
    "peak MiB": ".0f",
    "speed-up": ".2f",
    "memory": ".0%",
}
_GROUPED = 50  # of the sampler in transformers
_HELD_OUT = 2  # posts of val, and of test


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds between the beginning and the end of training."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.began


def settings_of(folder: str, *, steps: int, system: str, overrides: Sequence[str]) -> list[str]:
    """Return the settings of a training of `steps` updates in `folder`."""
    return [
        *corpus_settings(Path(folder) / "corpus"),
        "data.unit=post",
        "data.negatives=all",
        "model.pooling=cls",
        "model.encoder_dropout=0.1",
        "training.train_batch_size=16",
        "training.amp=auto",
        f"training.max_steps={steps}",
        f"training.eval_steps={steps}",
        "tracking=none",
        f"output_dir={folder}",
        *overrides,
        *SYSTEMS[system].settings,
    ]


def configuration(
    folder: str,
    *,
    steps: int,
    system: str,
    overrides: Sequence[str],
    n_posts: int | None = None,
    whole_posts: bool = False,
) -> TrainConfig:
    """Write a corpus into `folder`, and return the configuration of a training on it.

    Args:
        folder: of corpus and outputs.
        steps: updates.
        system: key of `SYSTEMS`.
        overrides: settings that win.
        n_posts: of the corpus; None: as many as updates of posts need for one epoch.
        whole_posts: whether posts are not cut to what every system reads whole.
    """
    settings = settings_of(folder, steps=steps, system=system, overrides=overrides)
    config = load_train_config("criteria", settings)
    write_corpus(
        Path(folder) / "corpus",
        n_posts=n_posts or steps * config.training.train_batch_size + 2 * _HELD_OUT,
        n_held_out=_HELD_OUT,
        cut=str if whole_posts else cut_for(config.model),
    )
    return config


def ours(config: TrainConfig) -> float:
    """Examples per second of `train`."""
    directory = train(config).directory
    with (directory / "history.csv").open(newline="") as file:
        return float(next(csv.DictReader(file))["train/examples_per_second"])


def theirs(config: TrainConfig, *, best: bool, folder: str) -> float:
    """Examples per second of `transformers.Trainer`."""
    task = build(config)
    steps = config.training.max_steps
    assert steps is not None
    rows = features(task.source("train"), trained_on(config, task, grouped=best))
    tokenizer = save_encoder(config.model, Path(folder) / "encoder")
    multi_label = {"problem_type": "multi_label_classification", "num_labels": N_CRITERIA}
    model = AutoModelForSequenceClassification.from_pretrained(
        f"{folder}/encoder", **(multi_label if task.reads_texts else {})
    )
    del task
    clock = Clock()
    Trainer(
        model=model,
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


def features(source: PairSource | TextSource, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Return examples for Trainer: the first window of each, which is the truncated text."""
    pairs = source.pairs
    rows = []
    for index in indices:
        own = source.predicted([index])
        ids, types = pairs.windows.rows.row(int(pairs.windows.starts[own[0]]))
        labels = pairs.labels[own]
        row: dict[str, Any] = {"input_ids": ids.tolist()}
        row["labels"] = int(labels[0]) if source is pairs else labels.astype(float).tolist()
        if pairs.windows.rows.has_segments:
            row["token_type_ids"] = types.tolist()
        rows.append(row)
    return rows


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


def measure(
    system: str,
    *,
    steps: int,
    overrides: Sequence[str],
    n_posts: int | None,
    whole_posts: bool,
) -> dict[str, float]:
    """Train with one system in this process. Return its rates and its memory's peak."""
    logging.disable(logging.WARNING)
    trainer = SYSTEMS[system].trainer
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(
            folder,
            steps=steps,
            system=system,
            overrides=overrides,
            n_posts=n_posts,
            whole_posts=whole_posts,
        )
        rate = theirs(config, best=trainer == "best", folder=folder) if trainer else ours(config)
        memory = peak_memory_mib()
        task = build(config)
        seen = trained_on(config, task, grouped=trainer == "best")
        lengths = read_of(task, seen, windows=trainer is None)
        all_lengths = read_of(task, range(len(task.source("train").ids)), windows=trainer is None)
        posts = {example.post_id for example in task.examples["train"]}
        encoder = task.model.encoder
        flops = flops_of(encoder, lengths, last_layer_firsts=system == "cross_encoder")
        return {
            "examples_per_second": rate,
            "tokens_per_second": rate * sum(lengths) / len(seen),
            "tokens_per_post": sum(all_lengths) / len(posts),
            "flops_per_second": rate * flops / len(seen),
            "peak_memory_mib": memory,
        }


def read_of(task: CriteriaTask, indices: Sequence[int], *, windows: bool) -> list[int]:
    """Return the tokens of each row that the encoder reads of these training examples.

    windows: of all windows; else of the first alone.
    """
    source = task.source("train")
    firsts = [source.predicted([index])[0] for index in indices]
    all_windows = source.pairs.windows
    read = source.pairs.windows_of(firsts)[0] if windows else all_windows.starts[firsts]
    lengths: list[int] = all_windows.rows.lengths[read].tolist()
    return lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="updates a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a first impression in about two minutes: one round of two updates, nothing padded of ours",
    )
    parser.add_argument("--posts", type=int, help="of the corpus; four are not trained on")
    parser.add_argument("--whole-posts", action="store_true", help="do not cut posts")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/training_speed.json"))
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for the scripts")
    options = parser.parse_intermixed_args()
    if torch.cuda.device_count() > 1:
        parser.error("set CUDA_VISIBLE_DEVICES to one GPU: all are measured on one device")
    if options.measure:
        figures = measure(
            options.measure,
            steps=options.steps,
            overrides=options.overrides,
            n_posts=options.posts,
            whole_posts=options.whole_posts,
        )
        print(json.dumps(figures))
        return
    if options.quick:
        options.steps, options.rounds = 2, 1
        options.systems = [name for name in options.systems if name != "cross_encoder_padded"]
    passed_on = ["--steps", str(options.steps)]
    passed_on += ["--posts", str(options.posts)] if options.posts else []
    passed_on += ["--whole-posts"] if options.whole_posts else []
    medians = interleaved(
        lambda system: in_fresh_process(
            __file__, *passed_on, "--measure", system, *options.overrides
        ),
        options.systems,
        rounds=options.rounds,
    )
    info = get_device()
    dtype = torch.bfloat16 if info.supports_bf16 else torch.float32
    ceiling = matmul_ceiling(dtype, info.device)
    rows = {system: row_of(figures, ceiling=ceiling) for system, figures in medians.items()}
    first = next(iter(rows))
    for row in rows.values():
        row["speed-up"] = rows[first]["pairs/s"] / row["pairs/s"]
        row["memory"] = rows[first]["peak MiB"] / row["peak MiB"]
    names = {key: system.name for key, system in SYSTEMS.items()}
    print(
        f"{info.describe()}; {torch.get_num_threads()} threads; matrix products of {dtype}: "
        f"{ceiling / 1e9:.0f} GFLOP/s"
    )
    print(long_posts(whole=options.whole_posts))
    print(table({names[key]: row for key, row in rows.items()}, COLUMNS))
    print(f"speed-up (pairs/s), memory: of {names[first]} over (as a share of) the row's")
    targets = target_lines(rows, TARGETS, fast="label_attention", names=names)
    print("\n".join(targets))
    write_results(options.json, figures=rows, ceiling_flops=ceiling, targets=targets)


def row_of(figures: Mapping[str, float], *, ceiling: float) -> dict[str, float]:
    """Return a system's figures as the table has them."""
    posts = figures["tokens_per_second"] / figures["tokens_per_post"]
    return {
        "posts/s": posts,
        "pairs/s": N_CRITERIA * posts,
        "tokens/s": figures["tokens_per_second"],
        "tokens a post": figures["tokens_per_post"],
        "of ceiling": figures["flops_per_second"] / ceiling,
        "peak MiB": figures["peak_memory_mib"],
    }


if __name__ == "__main__":
    main()
