"""What the benchmarks share: a corpus of Reddit-length posts, fresh processes, memory, a ceiling."""

import csv
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from psy_agents_noaug.data import sample
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.utils.reproducibility import system_info

MEDIAN_WORDS = 220
# Of the logarithm: a tenth of the posts is longer than 610 words, a tenth shorter than 80.
SPREAD = 0.8


def write_corpus(
    folder: Path, *, n_posts: int, n_held_out: int | None = None, seed: int = 0
) -> list[str]:
    """Write posts of log-normal length, made of the bundled corpus's words; return the settings.

    The labels are arbitrary: what is measured does not depend on them. `n_held_out` posts, a twentieth
    unless given, are val, and as many test.
    """
    with (Path(sample.__file__).parent / "redsm5_posts.csv").open(
        newline="", encoding="utf-8"
    ) as file:
        words = [word for row in csv.DictReader(file) for word in row["text"].split()]
    draw = random.Random(seed)
    posts, annotations = [], []
    for number in range(n_posts):
        length = max(5, round(MEDIAN_WORDS * draw.lognormvariate(0.0, SPREAD)))
        begin = draw.randrange(len(words))
        text = " ".join(words[(begin + k) % len(words)] for k in range(length))
        # Another word first, as equal posts would be reported as duplicates.
        posts.append((f"p{number}", f"{number} {text}"))
        criterion = MAJOR_DEPRESSIVE_EPISODE[number % len(MAJOR_DEPRESSIVE_EPISODE)]
        annotations.append((f"p{number}", criterion.criterion_id, 1))
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "posts.csv", ("post_id", "text"), posts)
    _write(folder / "annotations.csv", ("post_id", "criterion_id", "status"), annotations)
    ids = [post_id for post_id, _ in posts]
    held_out = n_held_out or max(1, n_posts // 20)
    splits = {
        "format": 1,
        "train": ids[2 * held_out :],
        "val": ids[:held_out],
        "test": ids[held_out : 2 * held_out],
    }
    (folder / "splits.json").write_text(json.dumps(splits))
    return [
        "data=tables",
        f"data.dir={folder}",
        "data.posts=posts.csv",
        "data.annotations=annotations.csv",
        "data.splits=splits.json",
    ]


def in_fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run `script` with `arguments` in a process of its own; return the JSON of its last line."""
    done = subprocess.run(
        [sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{Path(script).name} {' '.join(arguments)} exited with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def interleaved(
    measure: Callable[[str], Mapping[str, Any]], systems: Sequence[str], *, rounds: int
) -> dict[str, dict[str, float]]:
    """Measure every system once a round, in turn; return the medians of their figures."""
    found: dict[str, list[Mapping[str, Any]]] = {system: [] for system in systems}
    for number in range(rounds):
        for system in systems:
            figures = measure(system)
            found[system].append(figures)
            print(f"round {number + 1}/{rounds}: {system}: {dict(figures)}", file=sys.stderr)
    return {
        system: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for system, runs in found.items()
    }


def peak_memory_mib() -> float:
    """The most memory that this process has held: on its GPU if it used one, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def matmul_ceiling(dtype: torch.dtype, device: torch.device, *, size: int | None = None) -> float:
    """Return the floating-point operations a second of a large matrix product, best of ten."""
    size = size or (8192 if device.type == "cuda" else 1536)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2.0 * size**3 / min(seconds)


def training_flops(
    lengths: Sequence[int], *, linear_parameters: int, hidden: int, layers: int
) -> float:
    """Floating-point operations of forward and backward over sequences of these many real tokens.

    2 a parameter and token forward and twice that backward, and attention's two products of T x T x H.
    """
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    return 3.0 * (2.0 * linear_parameters * tokens + 4.0 * hidden * layers * squares)


def table(rows: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]) -> str:
    """Render figures, a row a system; `columns` maps a figure's name to its format."""
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"  {name:>12}" for name in columns)]
    for system, figures in rows.items():
        cells = "".join(f"  {format(figures[name], form):>12}" for name, form in columns.items())
        lines.append(f"{system:<{width}}{cells}")
    return "\n".join(lines)


def write_results(path: Path, **results: Any) -> None:
    """Write figures and the machine they are of as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**results, "machine": system_info()}, indent=2) + "\n")


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
