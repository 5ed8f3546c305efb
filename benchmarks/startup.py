"""Startup, caches warm: seconds until `--help` has ended, and until the first update has ended.

MLflow makes its tables when a database is new: the first update is also measured with a new one. Usage:

python benchmarks/startup.py [--rounds 3] [--json FILE] [KEY=VALUE]...
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import interleaved, table, write_results

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_criteria.py"
IMPORTS = "import pandas, torch; from transformers import BertModel"


def seconds_of(*arguments: str | Path) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return time.perf_counter() - began


def seconds_of_imports() -> float:
    """Seconds until the imports are done, without the interpreter's shutdown."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", f"{IMPORTS}; print('done', flush=True)"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"done\n":
            raise SystemExit("pandas, torch or transformers cannot be imported")
        return time.perf_counter() - began


def first_update(folder: str, *overrides: str) -> float:
    """Seconds until a training logs its first update."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "training.max_steps=1", f"output_dir={folder}", *overrides],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "step 1/" in line:
            break
    else:
        raise SystemExit("training ended without an update; run it by hand to see why")
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/startup.json"))
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for the scripts")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        measures: dict[str, Callable[[], float]] = {
            "--help": lambda: seconds_of(SCRIPT, "--help"),
            "pandas, torch and transformers alone": seconds_of_imports,
            "first update": lambda: first_update(folder, *options.overrides),
            "first update, tracking=none": lambda: first_update(
                folder, "tracking=none", *options.overrides
            ),
            "first update, new mlflow.db": lambda: first_update(
                tempfile.mkdtemp(dir=folder), *options.overrides
            ),
        }
        measures["first update"]()  # fills the caches and makes the database
        rows = interleaved(
            lambda name: {"seconds": measures[name]()}, list(measures), rounds=options.rounds
        )
    print(table(rows, {"seconds": ".2f"}))
    write_results(options.json, figures=rows)


if __name__ == "__main__":
    main()
