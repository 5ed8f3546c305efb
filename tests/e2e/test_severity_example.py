"""A task in a package of its own: installed, trained, evaluated and resumed by the ordinary commands."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from psy_agents_noaug.data.dsm5 import MAJOR_DEPRESSIVE_EPISODE
from psy_agents_noaug.training.checkpoint import load_checkpoint, weights_sha256

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "severity_task"
DEGREES = ["not at all", "a little", "a lot", "all the time"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example's package, as pip installs it."""
    folder = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "severity_task"
    subprocess.run(["cp", "-r", str(EXAMPLE), str(source)], check=True)
    command = ["pip", "install", "--no-deps", "--no-build-isolation", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", *command, str(source)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Posts with severities from 0 to 3."""
    folder = tmp_path_factory.mktemp("severities")
    posts, annotations = [], []
    for number in range(36):
        criterion = MAJOR_DEPRESSIVE_EPISODE[number % 9]
        posts.append((f"p{number}", f"{criterion.text} It is so {DEGREES[number % 4]}. {number}"))
        annotations.append((f"p{number}", criterion.criterion_id, number % 4))
    write(folder / "posts.csv", ["post_id", "text"], posts)
    write(folder / "annotations.csv", ["post_id", "criterion_id", "status"], annotations)
    return folder


@pytest.fixture
def command(installed: Path, corpus: Path, tiny_encoder: Path, tmp_path: Path) -> Callable:
    """Return a function from a verb and overrides to the command line and environment of a process."""

    def make(verb: str, *overrides: str) -> tuple[list[str], dict[str, str]]:
        settings = [
            "task=severity",
            "data=tables",
            f"data.dir={corpus}",
            "data.posts=posts.csv",
            "data.annotations=annotations.csv",
            "data.unannotated_pairs=drop",
            f"model.pretrained_model={tiny_encoder}",
            "model.max_length=96",
            "tracking=none",
            "training.epochs=20",
            "training.train_batch_size=4",
            f"output_dir={tmp_path / 'outputs'}",
        ]
        given = settings if verb == "train" else []
        paths = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
        argv = [sys.executable, "-m", "psy_agents_noaug", verb, *given, *overrides]
        return argv, {**os.environ, "PYTHONPATH": paths}

    return make


def run(command: tuple[list[str], dict[str, str]]) -> subprocess.CompletedProcess[str]:
    argv, environment = command
    return subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


def test_it_trains_evaluates_and_resumes_to_the_same_weights(command, tmp_path):
    done = run(command("train", "run_name=whole"))
    assert done.returncode == 0, done.stderr
    assert "weighted kappa" in done.stdout
    whole = tmp_path / "outputs" / "severity" / "whole"
    metrics = json.loads((whole / "metrics.json").read_text())
    assert 0.0 <= metrics["val/mae"] <= 3.0

    evaluated = run(command("eval", f"checkpoint={whole}"))
    assert evaluated.returncode == 0, evaluated.stderr
    lines = (whole / "predictions" / "test.jsonl").read_text().splitlines()
    assert {json.loads(line)["label"] for line in lines} <= {0, 1, 2, 3}
    assert "test/kappa_quadratic" in json.loads((whole / "metrics.json").read_text())
    assert "On test the mae is" in (whole / "report.html").read_text()

    argv, environment = command("train", "run_name=parts", "training.save_steps=1", "resume=auto")
    parts = tmp_path / "outputs" / "severity" / "parts"
    process = subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL)
    while not (parts / "checkpoints" / "last_checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    resumed = run((argv, environment))
    assert resumed.returncode == 0, resumed.stderr
    assert last_weights(parts) == last_weights(whole)


def test_what_the_task_does_not_have_is_refused(command, corpus, tmp_path):
    annotations = tmp_path / "annotations.csv"
    annotations.write_text((corpus / "annotations.csv").read_text().replace(",3\n", ",4\n"))
    refused = run(command("train", f"data.annotations={annotations}"))
    assert refused.returncode == 2
    assert "must be a whole number from 0 to 3" in refused.stderr
    refused = run(command("train", "training.monitor=val/f1_macro"))
    assert refused.returncode == 2
    assert "There are: val/kappa_quadratic, val/mae." in refused.stderr
    refused = run(command("train", "model.architecture=label_attention"))
    assert refused.returncode == 2
    expected = (
        "`model.architecture` must be cross_encoder for the severity task, but is label_attention"
    )
    assert refused.stderr.count("\n  - ") == refused.stderr.count(expected) == 1
    assert not list((tmp_path / "outputs").glob("severity/*"))


def last_weights(directory: Path) -> str:
    path = directory / "checkpoints" / "last_checkpoint.pt"
    return weights_sha256(load_checkpoint(path, task="severity").weights)


def write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
