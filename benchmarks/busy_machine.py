"""Training beside other work: tokens a second, idle and beside a process that keeps a core busy.

Trains criteria with `scripts/train_criteria.py`, as a user does, on the corpus of `training_speed.py`.
Measures this shell's environment and, with the variables of each `--env` added, others, in turn. Prints
which share of the idle rate remains beside the busy process, and exits 1 if it is less than 40 % in this
shell's environment. Other work on the machine spoils the idle figures. Usage:

    python benchmarks/busy_machine.py [--steps 5] [--rounds 3] [--env NAME=VALUE]... [KEY=VALUE]...
    python benchmarks/busy_machine.py --env GOMP_SPINCOUNT=10000 --env "A=1 OMP_WAIT_POLICY=PASSIVE"
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from common import interleaved, table, write_results
from training_speed import configuration, settings_of

from psy_agents_noaug.utils.reproducibility import get_device

FLOOR = 0.4  # of the idle rate
AS_IS = "this environment"
COLUMNS = {
    "idle tokens/s": ".0f",
    "busy tokens/s": ".0f",
    "remains": ".0%",
    "idle, of first": ".0%",
}
SCRIPT = Path(__file__).parents[1] / "scripts" / "train_criteria.py"
_THREADS = ("GOMP_", "KMP_", "MKL_", "OMP_")  # how the names of variables about threads begin
# It ends with its parent, in whatever way that ends.
BUSY = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy_core() -> Iterator[int]:
    """Keep a core busy by a process, of which this gives the id."""
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def tokens_per_second(
    settings: Sequence[str], environment: Mapping[str, str], *, busy: bool
) -> float:
    """Train in a process of its own.

    Args:
        settings: of the training.
        environment: variables that are added.
        busy: whether another process keeps a core busy.
    """
    with tempfile.TemporaryDirectory() as folder, busy_core() if busy else nullcontext():
        done = subprocess.run(
            [sys.executable, SCRIPT, *settings, f"output_dir={folder}", "run_name=run"],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{done.stderr}\nThe training exited with {done.returncode}.")
        with (Path(folder) / "criteria" / "run" / "history.csv").open(newline="") as file:
            return float(next(csv.DictReader(file))["train/tokens_per_second"])


def variables(text: str) -> dict[str, str]:
    """Return the environment variables in `NAME=VALUE NAME=VALUE`."""
    pairs = [part.partition("=") for part in text.split()]
    if not pairs or not all(name and equals for name, equals, _ in pairs):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=VALUE, or several with blanks between"
        )
    return {name: value for name, _, value in pairs}


def rows_of(
    medians: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the row of each environment.

    Args:
        medians: `tokens/s` by `NAME, idle` and `NAME, busy`.
        names: of the environments; the first is compared with.
    """
    rows = {}
    first = medians[f"{names[0]}, idle"]["tokens/s"]
    for name in names:
        idle, busy = (medians[f"{name}, {state}"]["tokens/s"] for state in ("idle", "busy"))
        rows[name] = {
            "idle tokens/s": idle,
            "busy tokens/s": busy,
            "remains": busy / idle,
            "idle, of first": idle / first,
        }
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="updates a training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--env", action="append", default=[], type=variables, help="variables of an environment"
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/busy_machine.json"))
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for the scripts")
    options = parser.parse_intermixed_args()
    environments: dict[str, dict[str, str]] = {AS_IS: {}}
    for own in options.env:
        environments[" ".join(f"{name}={value}" for name, value in own.items())] = own
    system = "cross_encoder"
    with tempfile.TemporaryDirectory() as folder:
        given = {"steps": options.steps, "system": system, "overrides": options.overrides}
        configuration(folder, **given)
        settings = settings_of(folder, **given)
        measures = {
            f"{name}, {state}": (own, state == "busy")
            for name, own in environments.items()
            for state in ("idle", "busy")
        }
        medians = interleaved(
            lambda name: {
                "tokens/s": tokens_per_second(settings, measures[name][0], busy=measures[name][1])
            },
            list(measures),
            rounds=options.rounds,
        )
    rows = rows_of(medians, list(environments))
    print(get_device().describe())
    present = {name: value for name, value in os.environ.items() if name.startswith(_THREADS)}
    if present:
        print(f"set in this environment: {' '.join(f'{n}={v}' for n, v in present.items())}")
    print(table(rows, COLUMNS))
    remains = rows[AS_IS]["remains"]
    holds = remains >= FLOOR
    print(
        f"{remains:.0%} of the idle rate remain beside a busy process "
        f"(floor {FLOOR:.0%}): {'holds' if holds else 'MISSED'}"
    )
    write_results(options.json, figures=rows, environment=present)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
