"""Run what needs a CUDA GPU, tests and short benchmarks, in under nine minutes.

    python tools/gpu_check.py [--json FILE]

Prints a table and writes it as JSON, with the machine that it is of. A step that fails, or takes too
long, does not stop the others. Exits 1 if there is one, and 2 where there is no GPU.
"""

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from psy_agents_noaug.metrics.tables import render_table
from psy_agents_noaug.utils.reproducibility import cuda_obstacle, describe_system, system_info

REPOSITORY = Path(__file__).parents[1]
SECONDS = 530.0  # of all steps together
_UPDATES = "60"
_SHOWN_LINES = 15  # of the output of a step that failed


@dataclass(frozen=True)
class Step:
    """A command, and what it needs.

    Args:
        name: shown in the table.
        command: after `python`.
        seconds: how long it may take.
        package: what it imports and the project does not need.
    """

    name: str
    command: Sequence[str]
    seconds: float
    package: str | None = None


@dataclass
class Result:
    """What came of a step.

    Args:
        name: of the step.
        outcome: `ok`, `failed`, `too slow` or `not run`.
        seconds: that it took.
        figures: of a benchmark, or the number of tests by their outcome.
        reason: why it was not run.
    """

    name: str
    outcome: str
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def steps() -> list[Step]:
    """Return the steps, the most important first."""
    found = [Step("tests", ("-m", "pytest", "-m", "gpu", "-rfE"), 240.0)]
    for amp in ("bf16", "off"):
        for dropout in ("0.1", "0.0"):
            for system, way in (("cross_encoder", "packed"), ("cross_encoder_padded", "padded")):
                settings = (f"training.amp={amp}", f"model.encoder_dropout={dropout}")
                name = f"training, {way}, amp {amp}, dropout {dropout}"
                found.append(Step(name, _training(system, *settings), 90.0))
        name = f"training, label attention, amp {amp}, dropout 0.1"
        found.append(Step(name, _training("label_attention", f"training.amp={amp}"), 90.0))
    for reads in ("pairs", "multi_label"):
        for system in (f"trainer_{reads}", f"trainer_{reads}_best"):
            found.append(Step(f"training, {system}", _training(system), 90.0))
    for amp in ("bf16", "off"):
        for way in ("packed", "padded"):
            settings = (f"training.amp={amp}", f"training.execution={way}")
            found.append(_prediction(f"{way}, amp {amp}", "cross_encoder", *settings))
        name = f"label attention, amp {amp}"
        found.append(_prediction(name, "label_attention", f"training.amp={amp}"))
    for system in (
        "sentence_transformers",
        "sentence_transformers_bf16",
        "trainer_multi_label_best",
    ):
        found.append(_prediction(system, system))
    return found


def _training(system: str, *settings: str) -> tuple[str, ...]:
    measure = ("benchmarks/training_speed.py", "--steps", _UPDATES, "--measure", system)
    # Four posts are not trained on; a corpus as large as the updates would take long to prepare.
    size = ("--posts", "644", "training.train_batch_size=64")
    return *measure, *size, "training.device=cuda", *settings


def _prediction(name: str, system: str, *settings: str) -> Step:
    measure = ("benchmarks/inference_speed.py", "--posts", "200", "--measure", system)
    command = (*measure, "training.device=cuda", *settings)
    return Step(f"prediction, {name}", command, 60.0, package="sentence_transformers")


def run(step: Step, *, seconds_left: float) -> Result:
    """Run a step in processes of its own, which end with it."""
    if step.package and importlib.util.find_spec(step.package) is None:
        return Result(step.name, "not run", reason=f"{step.package} is not installed")
    if seconds_left <= 0.0:
        return Result(step.name, "not run", reason="no time was left")
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *step.command],
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(min(step.seconds, seconds_left))
            outcome = "ok" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            outcome = "too slow"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        seconds = time.monotonic() - began
        output.seek(0)
        lines = output.read().splitlines()
    if outcome != "ok":
        print("\n".join(lines[-_SHOWN_LINES:]), file=sys.stderr)
    return Result(step.name, outcome, seconds, figures_of(lines))


def figures_of(lines: Sequence[str]) -> dict[str, float]:
    """Return the figures in a step's output: the last line's JSON, or pytest's last counts."""
    for line in reversed(lines):
        if line.startswith("{"):
            found: dict[str, float] = json.loads(line)
            return found
        counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", line)
        if counts:
            return {name: float(number) for number, name in counts}
    return {}


def table(results: Sequence[Result]) -> str:
    """Return a row for each step."""
    rows = [["step", "outcome", "figures", "seconds"]]
    for one in results:
        figures = ", ".join(
            f"{value:.5g} {name.replace('_', ' ')}" for name, value in one.figures.items()
        )
        rows.append([one.name, one.outcome, figures or one.reason, f"{one.seconds:.0f}"])
    return render_table(rows, left=3, rules=(1,))


def exit_code(results: Sequence[Result]) -> int:
    """Return 1 if a step failed or was too slow."""
    return int(any(one.outcome in ("failed", "too slow") for one in results))


def main() -> int:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu_results.json"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        obstacle = cuda_obstacle() or f"PyTorch {torch.__version__} is built without CUDA."
        print(f"There is no CUDA GPU: {obstacle}", file=sys.stderr)
        return 2
    machine = system_info()
    print(describe_system(machine))
    began = time.monotonic()
    results = []
    for step in steps():
        results.append(run(step, seconds_left=SECONDS - (time.monotonic() - began)))
        print(f"{step.name}: {results[-1].outcome}", file=sys.stderr)
        # After each, so that what was found is kept if the machine goes away.
        written = {"machine": machine, "steps": [asdict(one) for one in results]}
        options.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    print(table(results))
    return exit_code(results)


if __name__ == "__main__":
    sys.exit(main())
