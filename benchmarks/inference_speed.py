"""Prediction speed: both of our architectures, `transformers.Trainer` and `CrossEncoder`, in turn.

MiniLM and nine criteria, posts of log-normal length (median 220 words), cut to what every row reads
whole (`--whole-posts`: as they are). A row reads pairs of a criterion and a post; or nine times as many
posts, so as many examples, once for all criteria. All are timed with the tokenising: ours over
`Evaluator.predict`, without cached tokens, `sentence_transformers` over `CrossEncoder.predict(pairs)`,
Trainer over the tokenizer and `trainer.predict`. Each is in a fresh process. Usage:

    python benchmarks/inference_speed.py [--quick] [--posts 48] [--rounds 2] [--json FILE] [KEY=VALUE]...
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psy_agents_noaug  # noqa: F401  (before torch, as in a command: it may say how threads wait)

# isort: split
import torch
from common import (
    N_CRITERIA,
    Target,
    corpus_settings,
    cut_for,
    in_fresh_process,
    interleaved,
    long_posts,
    peak_memory_mib,
    save_encoder,
    table,
    target_lines,
    write_corpus,
    write_results,
)
from sentence_transformers import CrossEncoder
from training_speed import build, read_of
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.run.data import PreparedData, prepare_data
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.tasks.base import TaskInputs
from psy_agents_noaug.tasks.build import build_task, load_encoders
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.utils.reproducibility import get_device


@dataclass(frozen=True)
class System:
    """What is measured: a row of the table.

    Args:
        name: shown.
        library: that predicts.
        reads_posts: whether a post is read once for all criteria, and not once for each.
        in_bf16: whether a model of another library is in bf16; ours chooses (`training.amp=auto`).
    """

    name: str
    library: Literal["ours", "trainer", "sentence_transformers"]
    reads_posts: bool = False
    in_bf16: bool = False


SYSTEMS = {
    "label_attention": System("psy_agents_noaug, label attention", "ours", reads_posts=True),
    "cross_encoder": System("psy_agents_noaug, cross-encoder", "ours"),
    "trainer_multi_label": System(
        "Trainer.predict, multi-label, defaults", "trainer", reads_posts=True
    ),
    "trainer_multi_label_best": System(
        "Trainer.predict, multi-label, sorted, bf16", "trainer", reads_posts=True, in_bf16=True
    ),
    "sentence_transformers": System("CrossEncoder.predict, as it comes", "sentence_transformers"),
    "sentence_transformers_bf16": System(
        "CrossEncoder.predict, bf16", "sentence_transformers", in_bf16=True
    ),
}
TARGETS = (
    Target("cross_encoder", "pairs/s", floor=7.0),
    Target("trainer_multi_label_best", "posts/s", floor=1.5),
)
COLUMNS = {
    "posts/s": ".2f",
    "pairs/s": ".1f",
    "tokens/s": ".0f",
    "tokens a post": ".0f",
    "peak MiB": ".0f",
    "speed-up": ".2f",
}
_HELD_OUT = 2  # posts of val, and of test


def measure(
    system: str, *, n_posts: int, overrides: Sequence[str], whole_posts: bool
) -> dict[str, float]:
    """Predict the pairs of train with one system. Return its rates and its memory's peak."""
    logging.disable(logging.WARNING)
    row = SYSTEMS[system]
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(folder, reads_posts=row.reads_posts, overrides=overrides)
        n_read = n_posts * N_CRITERIA if row.reads_posts else n_posts
        write_corpus(
            Path(folder) / "corpus",
            n_posts=n_read + 2 * _HELD_OUT,
            n_held_out=_HELD_OUT,
            cut=str if whole_posts else cut_for(config.model),
        )
        data = prepare_data(config)
        if row.library == "ours":
            seconds = ours(config, data)
        elif row.library == "trainer":
            seconds = trainer(config, data, folder=folder, best=row.in_bf16)
        else:
            seconds = cross_encoder(config, data, folder=folder, in_bf16=row.in_bf16)
        memory = peak_memory_mib()
        task = build(config)
        indices = range(len(task.source("train").ids))
        tokens = sum(read_of(task, indices, windows=row.library == "ours"))
        return {
            "pairs_per_second": len(data.examples["train"]) / seconds,
            "tokens_per_second": tokens / seconds,
            "tokens_per_post": tokens / n_read,
            "peak_memory_mib": memory,
        }


def configuration(folder: str, *, reads_posts: bool, overrides: Sequence[str]) -> TrainConfig:
    """Return the configuration for a corpus in `folder`."""
    architecture = "label_attention" if reads_posts else "cross_encoder"
    return load_train_config(
        "criteria",
        [
            *corpus_settings(Path(folder) / "corpus"),
            "data.unit=post",
            "data.negatives=all",
            "model.pooling=cls",
            "training.amp=auto",
            "data.token_cache=off",
            *overrides,
            f"model.architecture={architecture}",
        ],
    )


def ours(config: TrainConfig, data: PreparedData) -> float:
    """Seconds of a prediction with our Evaluator."""
    hardware = prepare_hardware(config)
    inputs = TaskInputs(
        load_encoders(config),
        data.corpus.criteria,
        {"train": data.examples["train"]},
        hardware.max_tokens_held,
    )
    task = build_task(config, inputs)
    task.model.to(hardware.distributed.device)
    evaluator = Evaluator(task, hardware, eval_batch_size=config.training.eval_batch_size)
    began = time.perf_counter()
    evaluator.predict(task.model, task.source("train"))
    return time.perf_counter() - began


def trainer(config: TrainConfig, data: PreparedData, *, folder: str, best: bool) -> float:
    """Seconds of a prediction of all criteria with `transformers.Trainer`.

    best: in bf16, in batches of 32 texts of similar length, as `CrossEncoder.predict` does.
    """
    texts = list({example.post_id: example.text for example in data.examples["train"]}.values())
    tokenizer = save_encoder(config.model, Path(folder) / "encoder")
    peer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            f"{folder}/encoder",
            problem_type="multi_label_classification",
            num_labels=N_CRITERIA,
        ),
        args=TrainingArguments(
            output_dir=folder,
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16_full_eval=best,
            **({"per_device_eval_batch_size": 32} if best else {}),
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    began = time.perf_counter()
    encoded = tokenizer(texts, truncation=True, max_length=config.model.max_length)
    rows = [
        {name: values[index] for name, values in encoded.items()} for index in range(len(texts))
    ]
    if best:
        rows.sort(key=lambda row: -len(row["input_ids"]))
    peer.predict(rows)
    return time.perf_counter() - began


def cross_encoder(config: TrainConfig, data: PreparedData, *, folder: str, in_bf16: bool) -> float:
    """Seconds of a prediction with `sentence_transformers.CrossEncoder`."""
    reads = {criterion.criterion_id: criterion.text for criterion in data.corpus.criteria}
    pairs = [(reads[example.criterion_id], example.text) for example in data.examples["train"]]
    save_encoder(config.model, Path(folder) / "encoder")
    peer = CrossEncoder(
        f"{folder}/encoder",
        num_labels=2,
        max_length=config.model.max_length,
        model_kwargs={"dtype": torch.bfloat16} if in_bf16 else {},
    )
    began = time.perf_counter()
    peer.predict(pairs, show_progress_bar=False)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--posts", type=int, default=48, help="of which every pair is read")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a first impression in about two minutes: one round of 24 posts",
    )
    parser.add_argument("--whole-posts", action="store_true", help="do not cut posts")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/inference_speed.json")
    )
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for the scripts")
    options = parser.parse_intermixed_args()
    if options.measure:
        figures = measure(
            options.measure,
            n_posts=options.posts,
            overrides=options.overrides,
            whole_posts=options.whole_posts,
        )
        print(json.dumps(figures))
        return
    if options.quick:
        options.posts, options.rounds = 24, 1
    info = get_device()
    # Without bf16 units PyTorch emulates bf16, about a hundred times slower than fp32.
    systems = [key for key in options.systems if info.supports_bf16 or not SYSTEMS[key].in_bf16]
    passed_on = ["--posts", str(options.posts), *(["--whole-posts"] * options.whole_posts)]
    medians = interleaved(
        lambda system: in_fresh_process(
            __file__, *passed_on, "--measure", system, *options.overrides
        ),
        systems,
        rounds=options.rounds,
    )
    own = medians[systems[0]]["pairs_per_second"]
    rows = {
        system: {
            "posts/s": figures["pairs_per_second"] / N_CRITERIA,
            "pairs/s": figures["pairs_per_second"],
            "tokens/s": figures["tokens_per_second"],
            "tokens a post": figures["tokens_per_post"],
            "peak MiB": figures["peak_memory_mib"],
            "speed-up": own / figures["pairs_per_second"],
        }
        for system, figures in medians.items()
    }
    names = {key: system.name for key, system in SYSTEMS.items()}
    print(f"{info.describe()}; {torch.get_num_threads()} threads")
    print(long_posts(whole=options.whole_posts))
    print(table({names[key]: row for key, row in rows.items()}, COLUMNS))
    print(f"speed-up (pairs/s): of {names[systems[0]]} over the row's")
    targets = target_lines(rows, TARGETS, fast="label_attention", names=names)
    print("\n".join(targets))
    write_results(options.json, figures=rows, targets=targets)


if __name__ == "__main__":
    main()
