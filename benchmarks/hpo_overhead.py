"""What a search adds to its trainings: trials of a study beside direct `train`, in time and memory.

A tiny random encoder on the bundled corpus, so that nothing hides what the search itself costs; one
process each, in turn. Memory is what the process holds after so many trials. Usage:

    python benchmarks/hpo_overhead.py [--trials 20] [--rounds 2] [--json FILE]
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from common import in_fresh_process, interleaved, table, write_results
from transformers import BertConfig, BertModel

from psy_agents_noaug.config.loading import load_train_config
from psy_agents_noaug.hpo.stages import run_stage
from psy_agents_noaug.models.encoder import load_encoder
from psy_agents_noaug.run.train import train

SYSTEMS = ("direct", "search")
# What is searched must not change what a training costs: learning rates, weight decay, warmup are left.
UNSEARCHED = [
    f"hpo.{key}=null"
    for key in (
        "space.training.train_batch_size",
        "space.model",
        "task_spaces.criteria.model",
        "task_spaces.criteria.task",
    )
]


def settings(folder: Path) -> list[str]:
    """A run of a few updates with a tiny encoder."""
    tokenizer = load_encoder(load_train_config("criteria", []).model.pretrained_model).tokenizer
    tiny: Any = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        )
    )
    tiny.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    return [
        f"model.pretrained_model={folder / 'encoder'}",
        "model.max_length=128",
        "training.max_steps=20",
        "tracking=none",
        f"output_dir={folder / 'outputs'}",
    ]


def resident_mib() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


class MemoryOfTrials(logging.Handler):
    """Notes how much memory is held when a trial is told of."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.held: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("trial "):
            self.held.append(resident_mib())


def measure(system: str, *, n_trials: int) -> dict[str, float]:
    logging.getLogger("psy_agents_noaug").setLevel(logging.ERROR)
    memory = MemoryOfTrials()
    logging.getLogger("psy_agents_noaug.hpo.workers").addHandler(memory)
    with tempfile.TemporaryDirectory() as name:
        overrides = settings(Path(name))
        began = time.perf_counter()
        if system == "direct":
            for number in range(n_trials):
                train(load_train_config("criteria", [*overrides, f"run_name=r{number}"]))
                memory.held.append(resident_mib())
        else:
            study = ["hpo=stage1_coarse", "task=criteria", f"hpo.n_trials={n_trials}"]
            run_stage([*study, "hpo.pruner.name=none", *UNSEARCHED, *overrides])
        seconds = time.perf_counter() - began
    return {
        "seconds each": seconds / n_trials,
        "MiB after 5": memory.held[min(4, n_trials - 1)],
        "MiB at the end": memory.held[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/hpo_overhead.json"))
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, n_trials=options.trials)))
        return
    rows = interleaved(
        lambda system: in_fresh_process(
            __file__, "--trials", str(options.trials), "--measure", system
        ),
        SYSTEMS,
        rounds=options.rounds,
    )
    print(table(rows, dict.fromkeys(next(iter(rows.values())), ".2f")))
    ratio = rows["search"]["seconds each"] / rows["direct"]["seconds each"]
    print(f"a trial takes {ratio:.2f} times as long as a training started directly")
    write_results(options.json, figures=rows, ratio=ratio)


if __name__ == "__main__":
    main()
