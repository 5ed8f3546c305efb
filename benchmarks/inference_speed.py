"""Prediction speed: our Evaluator beside `sentence_transformers.CrossEncoder.predict`, interleaved.

MiniLM with a head of two classes on the same (criterion, post) pairs, posts of log-normal length (median
220 words). Both are timed with the tokenising: ours over `Evaluator.predict`, without cached tokens, the
other over `predict(pairs)`. Each is in a fresh process. Usage:

    python benchmarks/inference_speed.py [--posts 48] [--rounds 2] [--json FILE] [KEY=VALUE]...
"""

import argparse
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
    peak_memory_mib,
    table,
    write_corpus,
    write_results,
)
from sentence_transformers import CrossEncoder

from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.models.encoder import load_encoder
from psy_agents_noaug.run.data import prepare_data
from psy_agents_noaug.run.hardware import prepare_hardware
from psy_agents_noaug.tasks.base import TaskInputs
from psy_agents_noaug.tasks.build import build_task, load_encoders
from psy_agents_noaug.training.evaluator import Evaluator
from psy_agents_noaug.utils.reproducibility import get_device

SYSTEMS = {
    "ours": "psy_agents_noaug",
    "cross_encoder": "CrossEncoder.predict, as it comes",
    "cross_encoder_bf16": "CrossEncoder.predict, bf16",
}


def measure(system: str, *, n_posts: int, overrides: Sequence[str]) -> dict[str, float]:
    """Predict the pairs of train with one system. Return pairs a second and its memory's peak."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "corpus", n_posts=n_posts)
        settings = [
            "data.unit=post",
            "data.negatives=all",
            "model.pooling=cls",
            "training.amp=auto",
            "data.token_cache=off",
        ]
        config = load_train_config("criteria", [*corpus, *settings, *overrides])
        data = prepare_data(config)
        examples = data.examples["train"]
        reads = {criterion.criterion_id: criterion.text for criterion in data.corpus.criteria}
        pairs = [(reads[example.criterion_id], example.text) for example in examples]
        if system == "ours":
            hardware = prepare_hardware(config)
            inputs = TaskInputs(
                load_encoders(config),
                data.corpus.criteria,
                {"train": examples},
                hardware.max_tokens_held,
            )
            task = build_task(config, inputs)
            task.model.to(hardware.distributed.device)
            evaluator = Evaluator(task, hardware, eval_batch_size=config.training.eval_batch_size)
            began = time.perf_counter()
            evaluator.predict(task.model, task.source("train"))
        else:
            encoder = load_encoder(config.model.pretrained_model)
            model: Any = encoder.model
            model.save_pretrained(f"{folder}/encoder")
            encoder.tokenizer.save_pretrained(f"{folder}/encoder")
            del encoder, model
            options = {"dtype": torch.bfloat16} if system == "cross_encoder_bf16" else {}
            peer = CrossEncoder(
                f"{folder}/encoder",
                num_labels=2,
                max_length=config.model.max_length,
                model_kwargs=options,
            )
            began = time.perf_counter()
            peer.predict(pairs, show_progress_bar=False)
        seconds = time.perf_counter() - began
        return {"pairs_per_second": len(pairs) / seconds, "peak_memory_mib": peak_memory_mib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--posts", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/inference_speed.json")
    )
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for the scripts")
    options = parser.parse_intermixed_args()
    if options.measure:
        figures = measure(options.measure, n_posts=options.posts, overrides=options.overrides)
        print(json.dumps(figures))
        return
    info = get_device()
    # Without bf16 units PyTorch emulates bf16, about a hundred times slower than fp32.
    systems = [system for system in SYSTEMS if info.supports_bf16 or system != "cross_encoder_bf16"]
    medians = interleaved(
        lambda system: in_fresh_process(
            __file__, "--posts", str(options.posts), "--measure", system, *options.overrides
        ),
        systems,
        rounds=options.rounds,
    )
    own = medians["ours"]["pairs_per_second"]
    rows = {
        SYSTEMS[system]: {
            "pairs/s": figures["pairs_per_second"],
            "peak MiB": figures["peak_memory_mib"],
            "speed-up": own / figures["pairs_per_second"],
        }
        for system, figures in medians.items()
    }
    print(info.describe())
    print(table(rows, {"pairs/s": ".2f", "peak MiB": ".0f", "speed-up": ".2f"}))
    write_results(options.json, figures=rows)


if __name__ == "__main__":
    main()
