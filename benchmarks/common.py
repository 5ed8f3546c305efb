"""What the benchmarks share: a corpus of Reddit-length posts, fresh processes, memory, targets."""

import csv
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from psy_agents_noaug.config.schema import ModelConfig
from psy_agents_noaug.data import sample
from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.data.encoding import frames_of
from psy_agents_noaug.models.encoder import load_encoder
from psy_agents_noaug.utils.reproducibility import system_info

MEDIAN_WORDS = 220
# Of the logarithm: a tenth of the posts is longer than 610 words, a tenth shorter than 80.
SPREAD = 0.8
N_CRITERIA = len(MAJOR_DEPRESSIVE_EPISODE)


def corpus_settings(folder: Path) -> list[str]:
    """Return the settings that read the corpus that `write_corpus` writes into `folder`."""
    return [
        "data=tables",
        f"data.dir={folder}",
        "data.posts=posts.csv",
        "data.annotations=annotations.csv",
        "data.splits=splits.json",
    ]


def write_corpus(
    folder: Path,
    *,
    n_posts: int,
    n_held_out: int | None = None,
    cut: Callable[[str], str] = str,
    seed: int = 0,
) -> list[str]:
    """Write posts of log-normal length, made of the bundled corpus's words; return the settings.

    The labels are arbitrary: what is measured does not depend on them.

    Args:
        folder: of the files.
        n_posts: of all splits.
        n_held_out: posts of val, and as many of test; None: a twentieth.
        cut: shortens a post.
        seed: of lengths and words.
    """
    with (Path(sample.__file__).parent / "redsm5_posts.csv").open(
        newline="", encoding="utf-8"
    ) as file:
        words = [word for row in csv.DictReader(file) for word in row["text"].split()]
    draw = random.Random(seed)
    posts, annotations = [], []
    for number, length in enumerate(draw.sample(_lengths(n_posts), n_posts)):
        begin = draw.randrange(len(words))
        text = " ".join(words[(begin + k) % len(words)] for k in range(length))
        # Another word first, as equal posts would be reported as duplicates.
        posts.append((f"p{number}", cut(f"{number} {text}")))
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
    return corpus_settings(folder)


def _lengths(n_posts: int) -> list[int]:
    """Return words of each post: quantiles, so that corpora of any size are about as long a post."""
    ranks = ((number + 0.5) / n_posts for number in range(n_posts))
    quantiles = map(statistics.NormalDist(0.0, SPREAD).inv_cdf, ranks)
    return [max(5, round(MEDIAN_WORDS * math.exp(quantile))) for quantile in quantiles]


def cut_for(model: ModelConfig) -> Callable[[str], str]:
    """Return what cuts a post to the tokens that fit beside the longest criterion.

    Every way to read a post then reads all of it, at once.
    """
    tokenizer = load_encoder(model.pretrained_model).tokenizer
    texts = [criterion.text for criterion in MAJOR_DEPRESSIVE_EPISODE]
    frames = frames_of(tokenizer, texts, max_length=model.max_length)
    n_tokens = model.max_length - max(map(len, frames.values()))
    return lambda text: first_words(tokenizer, text, n_tokens=n_tokens)


def first_words(tokenizer: Any, text: str, *, n_tokens: int) -> str:
    """Return the first words of `text`, as many as have at most `n_tokens` tokens together."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    if len(offsets) <= n_tokens:
        return text
    return text[: offsets[n_tokens][0]].rpartition(" ")[0]


def save_encoder(model: ModelConfig, folder: Path) -> Any:
    """Save the encoder for other libraries. Return its tokenizer."""
    encoder = load_encoder(model.pretrained_model, dropout=model.encoder_dropout)
    encoder.model.save_pretrained(folder)  # type: ignore[operator]
    encoder.tokenizer.save_pretrained(folder)
    return encoder.tokenizer


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
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where `ru_maxrss` is no less than the parent's
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
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


def flops_of(encoder: Any, lengths: Sequence[int], *, last_layer_firsts: bool = False) -> float:
    """Floating-point operations of forward and backward over sequences of these many real tokens.

    2 a parameter and token forward and twice that backward, and attention's two products of T x T x H.

    Args:
        encoder: a transformers model.
        lengths: tokens of each sequence.
        last_layer_firsts: whether our packed BERT computes all but the keys and values of its last layer
            for first tokens alone.
    """
    config = encoder.config
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    width, layers = int(config.hidden_size), int(config.num_hidden_layers)
    flops = 2.0 * _linear_parameters(encoder) * tokens + 4.0 * width * layers * squares
    if last_layer_firsts and config.model_type == "bert":
        last = encoder.encoder.layer[-1]
        skipped = (last.attention.output, last.intermediate, last.output)
        flops -= 2.0 * sum(map(_linear_parameters, skipped)) * (tokens - len(lengths))
    return 3.0 * flops


def _linear_parameters(module: torch.nn.Module) -> int:
    linear = (part for part in module.modules() if isinstance(part, torch.nn.Linear))
    return sum(part.weight.numel() for part in linear)


def long_posts(*, whole: bool) -> str:
    """Say what becomes of posts that are longer than `model.max_length`."""
    if whole:
        return (
            "Posts longer than model.max_length: psy_agents_noaug reads them in windows "
            "(task.long_posts), other libraries read their beginning alone."
        )
    return (
        "Posts are cut to the tokens that fit into model.max_length beside the longest criterion: "
        "every row reads the same."
    )


@dataclass(frozen=True)
class Target:
    """How many times as fast as another system the first one is to be.

    Args:
        over: key of the other system.
        figure: the column that is compared.
        floor: the least ratio.
        aim: the ratio that is hoped for; None: the floor.
    """

    over: str
    figure: str
    floor: float
    aim: float | None = None


def target_lines(
    rows: Mapping[str, Mapping[str, float]],
    targets: Sequence[Target],
    *,
    fast: str,
    names: Mapping[str, str],
) -> list[str]:
    """Return a line for each target whose two systems were measured: the ratio, and if it holds.

    Args:
        rows: figures by system.
        targets: of the system `fast`.
        fast: its key.
        names: shown ones, by system.
    """
    lines = []
    for target in targets:
        if fast not in rows or target.over not in rows:
            continue
        ratio = rows[fast][target.figure] / rows[target.over][target.figure]
        aim = "" if target.aim is None else f", aim {target.aim:g}"
        holds = "holds" if ratio >= target.floor else "MISSED"
        lines.append(
            f"{names[fast]} / {names[target.over]}, {target.figure}: "
            f"{ratio:.2f} (floor {target.floor:g}{aim}): {holds}"
        )
    return lines


def table(rows: Mapping[str, Mapping[str, float]], columns: Mapping[str, str]) -> str:
    """Render figures, a row a system; `columns` maps a figure's name to its format."""
    width = max(map(len, rows))
    widths = {
        name: max(len(name), *(len(format(figures[name], form)) for figures in rows.values()))
        for name, form in columns.items()
    }
    lines = [" " * width + "".join(f"  {name:>{widths[name]}}" for name in columns)]
    for system, figures in rows.items():
        cells = (
            f"  {format(figures[name], form):>{widths[name]}}" for name, form in columns.items()
        )
        lines.append(f"{system:<{width}}{''.join(cells)}")
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
