"""Prediction at scale: posts a second, memory over time, and what kills cost, for each architecture.

Trains a MiniLM for one update (speed does not depend on the weights), then predicts nine criteria of
made-up posts with `psy-agents predict`, as a user does: once undisturbed, once with SIGKILLs at random
moments and the same command again, and compares the merged bytes. The posts are made of the bundled
corpus's words, and as long as its posts, or have `--words` each. Usage:

    python benchmarks/prediction_scale.py [--posts 100000] [--slow-posts 5000] [--words 20] [K=V]...
    python benchmarks/prediction_scale.py --merge-posts 10000000

K=V are settings of the prediction. `--merge-posts` measures merging alone, of made-up predictions.
"""

import argparse
import csv
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from common import N_CRITERIA, in_fresh_process, table, write_corpus, write_results

from psy_agents_noaug.data import sample

COMMAND = (sys.executable, "-m", "psy_agents_noaug")
# As many posts as go through the slow one in a night are measured, and the rest is arithmetic.
ARCHITECTURES = {
    "label_attention": "MiniLM, label attention",
    "cross_encoder": "MiniLM, cross-encoder, nine criteria",
}
SLOW = "cross_encoder"
COLUMNS = {
    "posts": ".0f",
    "posts/s": ".1f",
    "core s/1000": ".1f",
    "MiB, 1st fifth": ".0f",
    "MiB, last fifth": ".0f",
    "kills": ".0f",
    "s a kill": ".1f",
    "s to start": ".1f",
    "s a unit": ".1f",
    "bytes a post": ".0f",
}
RUNS = ("calm", "hard")
_SECONDS_BETWEEN_SAMPLES = 0.2


@dataclass(frozen=True)
class Sample:
    """A process: seconds since the first command began, resident MiB, seconds of cores until then."""

    at: float
    mib: float
    cpu: float


@dataclass
class Run:
    """A prediction from its start to its end, with the commands that kills made necessary.

    Args:
        seconds: of all commands together.
        samples: of the last command.
        kills: how many commands were killed.
        parts: when each part was written, in seconds since the first command began.
    """

    seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    kills: int = 0
    parts: list[float] = field(default_factory=list)


def write_posts(
    path: Path, *, n_posts: int, group: int, n_words: int | None = None, seed: int = 0
) -> None:
    """Write made-up posts in row groups, of `n_words`, or as long as those of the bundled corpus."""
    source = Path(sample.__file__).parent / "redsm5_posts.csv"
    with source.open(newline="", encoding="utf-8") as file:
        texts = [row["text"].split() for row in csv.DictReader(file)]
    words = sorted({word for text in texts for word in text})
    lengths = [n_words] if n_words else [*map(len, texts)]
    draw = random.Random(seed)
    schema = pa.schema([("post_id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, n_posts, group):
            ids = [f"p{number}" for number in range(begin, min(begin + group, n_posts))]
            made = [" ".join(draw.choices(words, k=draw.choice(lengths))) for _ in ids]
            writer.write_table(pa.table({"post_id": ids, "text": made}, schema=schema))


def train(folder: Path, architecture: str) -> Path:
    """Train for one update. Return the run's directory."""
    overrides = write_corpus(folder / "corpus", n_posts=40)
    subprocess.run(
        [
            *COMMAND,
            "train",
            *overrides,
            f"model.architecture={architecture}",
            "training.max_steps=1",
            "tracking=none",
            f"output_dir={folder}",
            "run_name=run",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return folder / "criteria" / "run"


def predict(
    command: Sequence[str], output: Path, places: Iterable[float] = (), *, unit_seconds: float = 0.0
) -> Run:
    """Run a prediction until it is done.

    Args:
        command: of the prediction.
        output: its folder.
        places: where commands are killed, in units of the work: 3.4 is 0.4 of a unit's time after the
            third part was seen.
        unit_seconds: a unit's time.
    """
    run, waiting = Run(), sorted(places, reverse=True)
    began = time.time()
    while True:
        run.samples = []
        kill_at = None
        with tempfile.TemporaryFile() as errors:
            process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
            while process.poll() is None:
                _sample(process, run, began)
                if kill_at is None and waiting and len(_parts(output)) >= int(waiting[-1]):
                    kill_at = time.time() + waiting.pop() % 1 * unit_seconds
                if kill_at is not None and time.time() >= kill_at:
                    process.kill()
                time.sleep(_SECONDS_BETWEEN_SAMPLES)
            if process.returncode == 0:
                break
            if process.returncode != -signal.SIGKILL:
                errors.seek(0)
                raise SystemExit(errors.read().decode())
        run.kills += 1
    run.seconds = time.time() - began
    run.parts = sorted(path.stat().st_mtime - began for path in _parts(output))
    return run


def _parts(output: Path) -> list[Path]:
    return list(output.glob("part-*"))


def _sample(process: psutil.Popen, run: Run, began: float) -> None:
    with suppress(psutil.NoSuchProcess):
        cpu = process.cpu_times()
        mib = process.memory_info().rss / 2**20
        run.samples.append(Sample(time.time() - began, mib, cpu.user + cpu.system))


def merged_sha256(output: Path, path: Path) -> str:
    """Merge the parts, and return the hash of the file."""
    subprocess.run(
        [*COMMAND, "merge", output, f"output={path}"], check=True, stdout=subprocess.DEVNULL
    )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def measure(
    architecture: str,
    *,
    n_posts: int,
    n_words: int | None,
    kills: int,
    settings: Sequence[str],
    group: int,
) -> dict[str, float]:
    """Predict once undisturbed and once with kills. Return rates, memory, and what a kill costs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = train(folder, architecture)
        write_posts(folder / "posts.parquet", n_posts=n_posts, group=group, n_words=n_words)
        command = [
            *COMMAND,
            "predict",
            f"checkpoint={checkpoint}",
            f"data.posts={folder / 'posts.parquet'}",
            f"unit_posts={group}",
            *settings,
        ]
        calm = predict([*command, f"output={folder / 'calm'}"], folder / "calm")
        draw, n_units = random.Random(0), len(calm.parts)
        places = [draw.uniform(0, n_units - 1) for _ in range(kills)]
        unit_seconds = (calm.parts[-1] - calm.parts[0]) / (n_units - 1)
        hard = predict(
            [*command, f"output={folder / 'hard'}"],
            folder / "hard",
            places,
            unit_seconds=unit_seconds,
        )
        merged = {name: merged_sha256(folder / name, folder / "all.parquet") for name in RUNS}
        bytes_a_post = (folder / "all.parquet").stat().st_size / n_posts
    if len(set(merged.values())) != 1:
        raise SystemExit(f"{architecture}: the merged files differ after {hard.kills} kills.")
    # Without the start, and the first part, in which kernels and caches are made.
    n_later = n_posts - group
    seconds = calm.parts[-1] - calm.parts[0]
    later = [sample for sample in calm.samples if sample.at >= calm.parts[0]]
    return {
        "posts": n_posts,
        "posts/s": n_later / seconds,
        "core s/1000": 1000 * (later[-1].cpu - later[0].cpu) / n_later,
        "MiB, 1st fifth": max(sample.mib for sample in later[: len(later) // 5 + 1]),
        "MiB, last fifth": max(sample.mib for sample in later[-len(later) // 5 :]),
        "kills": hard.kills,
        "s a kill": (hard.seconds - calm.seconds) / max(hard.kills, 1),
        "s to start": calm.parts[0] - seconds * group / n_later,
        "s a unit": seconds * group / n_later,
        "bytes a post": bytes_a_post,
    }


def measure_merge(n_posts: int, *, group: int) -> dict[str, float]:
    """Merge made-up predictions. Return the time, the memory, and the bytes."""
    return in_fresh_process(__file__, "--merge-now", str(n_posts), "--unit-posts", str(group))


def merge_now(n_posts: int, *, group: int) -> dict[str, float]:
    """Make predictions of posts without texts, and merge them in a process of its own."""
    from psy_agents_noaug.run.scale.plan import input_paths, make_plan, settle_plan
    from psy_agents_noaug.run.scale.posts import UnitReader
    from psy_agents_noaug.run.scale.units import Job, LocalEngine

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schema = pa.schema([("post_id", pa.string()), ("text", pa.string())])
        with pq.ParquetWriter(folder / "posts.parquet", schema) as writer:
            for begin in range(0, n_posts, group):
                ids = [f"p{number}" for number in range(begin, min(begin + group, n_posts))]
                writer.write_table(pa.table({"post_id": ids, "text": ids}, schema=schema))
        scorer = MadeUpScorer()
        plan = make_plan(
            input_paths(str(folder / "posts.parquet")),
            scorer=scorer.identity,
            columns={},
            unit_posts=group,
        )
        output = folder / "scores"
        settle_plan(plan, output)
        list(LocalEngine(lambda: scorer).settle(Job(plan, output, UnitReader(group)), plan.units))
        parts = sum(path.stat().st_size for path in output.glob("part-*"))
        began = time.perf_counter()
        process = psutil.Popen(
            [*COMMAND, "merge", output, f"output={folder / 'all.parquet'}"],
            stdout=subprocess.DEVNULL,
        )
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, process.memory_info().rss / 2**20)
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit("The merge failed.")
        return {
            "posts": n_posts,
            "s": time.perf_counter() - began,
            "peak MiB": peak,
            "bytes a post in parts": parts / n_posts,
            "bytes a post merged": (folder / "all.parquet").stat().st_size / n_posts,
        }


class MadeUpScorer:
    """Has the columns of predictions of nine criteria, and random numbers in them."""

    def __init__(self) -> None:
        span = pa.struct(
            [("start_char", pa.int64()), ("end_char", pa.int64()), ("score", pa.float64())]
        )
        self.schema = pa.schema(
            [
                ("post_id", pa.string()),
                ("criterion_id", pa.string()),
                ("probability", pa.float64()),
                ("calibrated_probability", pa.float64()),
                ("decision", pa.int64()),
                ("threshold", pa.float64()),
                ("evidence", pa.list_(span)),
            ]
        )
        self.identity = {"checkpoint_sha256": "", "weights_sha256": "", "settings": "{}"}
        self.machine = "made up"
        self._draw = random.Random(0)

    def __call__(self, posts: pa.Table) -> pa.Table:
        n_rows = len(posts) * N_CRITERIA
        criteria = [f"A.{number + 1}" for number in range(N_CRITERIA)]
        drawn = [self._draw.random() for _ in range(n_rows)]
        ids = [post_id for post_id in posts["post_id"].to_pylist() for _ in criteria]
        columns = {
            "post_id": ids,
            "criterion_id": criteria * len(posts),
            "probability": drawn,
            "calibrated_probability": [value / 2 for value in drawn],
            "decision": [int(value > 0.9) for value in drawn],
            "threshold": [0.9] * n_rows,
            "evidence": pa.nulls(n_rows, self.schema.field("evidence").type),
        }
        return pa.table(columns, schema=self.schema)


def main() -> None:
    """Measure what is asked for, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--posts", type=int, default=100_000)
    parser.add_argument("--slow-posts", type=int, help=f"of {SLOW}; without it, --posts")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--unit-posts", type=int, default=1000)
    parser.add_argument(
        "--words", type=int, help="of every post; without it, as the bundled corpus"
    )
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--merge-posts", type=int, help="measure merging alone")
    parser.add_argument("--merge-now", type=int, help=argparse.SUPPRESS)
    default = Path(__file__).parent / "results" / "prediction_scale.json"
    parser.add_argument("--json", type=Path, default=default)
    options, settings = parser.parse_known_intermixed_args()
    if options.merge_now:
        print(json.dumps(merge_now(options.merge_now, group=options.unit_posts)))
        return
    if options.merge_posts:
        rows = {"merge": measure_merge(options.merge_posts, group=options.unit_posts)}
        print(table(rows, dict.fromkeys(rows["merge"], ".0f")))
        write_results(options.json.with_stem("prediction_merge"), figures=rows)
        return
    sizes = {
        name: options.slow_posts if name == SLOW and options.slow_posts else options.posts
        for name in options.architectures
    }
    if min(sizes.values()) < 2 * options.unit_posts:
        parser.error(f"rates need at least two units, of {options.unit_posts} posts each")
    rows = {}
    for architecture, n_posts in sizes.items():
        rows[ARCHITECTURES[architecture]] = measure(
            architecture,
            n_posts=n_posts,
            n_words=options.words,
            kills=options.kills,
            settings=settings,
            group=options.unit_posts,
        )
        print(rows[ARCHITECTURES[architecture]], file=sys.stderr)
    print(table(rows, COLUMNS))
    print(
        "core s/1000: seconds of a core for 1000 posts; s a kill: what each added to the prediction's "
        "time; the merged bytes after the kills are those of the undisturbed run"
    )
    write_results(options.json, figures=rows)


if __name__ == "__main__":
    main()
