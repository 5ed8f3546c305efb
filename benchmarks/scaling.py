"""Whether cost grows with the work alone: the same updates on 1, 4 and 16 times the corpus.

Trains as `training_speed.py` does, each size in a fresh process, interleaved. Preparation is reading,
checking, dividing and tokenising the corpus, without a cache. Usage:

    python benchmarks/scaling.py [--posts 40] [--steps 8] [--rounds 2] [--json FILE] [KEY=VALUE]...
"""

import argparse
import csv
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import training_speed
from common import in_fresh_process, interleaved, peak_memory_mib, table, write_results

from psy_agents_noaug.run.train import train
from psy_agents_noaug.utils.reproducibility import get_device

TIMES = (1, 4, 16)


def measure(*, n_posts: int, steps: int, overrides: Sequence[str]) -> dict[str, float]:
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        config = training_speed.configuration(
            folder,
            steps=steps,
            system="cross_encoder",
            overrides=["data.token_cache=off", *overrides],
            n_posts=n_posts,
        )
        began = time.perf_counter()
        task = training_speed.build(config)
        task.source("train")
        preparation = time.perf_counter() - began
        del task
        directory = train(config).directory
        with (directory / "history.csv").open(newline="") as file:
            row = next(csv.DictReader(file))
        return {
            "prepared posts/s": n_posts / preparation,
            "tokens/s": float(row["train/tokens_per_second"]),
            "peak MiB": peak_memory_mib(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--posts", type=int, default=40, help="of the smallest corpus")
    parser.add_argument("--steps", type=int, default=8, help="updates a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scaling.json"))
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for the scripts")
    options = parser.parse_intermixed_args()
    if options.measure:
        figures = measure(n_posts=options.measure, steps=options.steps, overrides=options.overrides)
        print(json.dumps(figures))
        return
    medians = interleaved(
        lambda posts: in_fresh_process(
            __file__, "--steps", str(options.steps), "--measure", posts, *options.overrides
        ),
        [str(times * options.posts) for times in TIMES],
        rounds=options.rounds,
    )
    rows = {f"{posts} posts": figures for posts, figures in medians.items()}
    first = next(iter(rows.values()))
    for figures in rows.values():
        figures["speed"] = figures["tokens/s"] / first["tokens/s"]
        figures["memory"] = figures["peak MiB"] / first["peak MiB"]
    print(get_device().describe())
    print(
        table(
            rows,
            {
                "prepared posts/s": ".0f",
                "tokens/s": ".0f",
                "speed": ".2f",
                "peak MiB": ".0f",
                "memory": ".2f",
            },
        )
    )
    write_results(options.json, figures=rows)


if __name__ == "__main__":
    main()
