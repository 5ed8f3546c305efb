"""What full reproducibility costs: training with deterministic algorithms and without, interleaved.

Trains as `training_speed.py` does, each round both ways in fresh processes; the cost is the median over
the rounds of one way's time over the other's. Usage:

    python benchmarks/determinism_cost.py [--steps 4] [--rounds 5] [--json FILE] [KEY=VALUE]...
"""

import argparse
import statistics
from pathlib import Path

import training_speed
from common import in_fresh_process, write_results

from psy_agents_noaug.utils.reproducibility import get_device


def examples_per_second(*overrides: str, steps: int) -> float:
    figures = in_fresh_process(
        training_speed.__file__, "--steps", str(steps), "--measure", "cross_encoder", *overrides
    )
    return float(figures["examples_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="updates a round")
    parser.add_argument("--rounds", type=int, default=5)
    default = Path("benchmarks/results/determinism_cost.json")
    parser.add_argument("--json", type=Path, default=default)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for the scripts")
    options = parser.parse_intermixed_args()
    rates: dict[str, list[float]] = {"true": [], "false": []}
    for number in range(options.rounds):
        # Which comes first changes, so that a machine that slows down favours neither.
        for value in sorted(rates, reverse=number % 2 == 0):
            overrides = (*options.overrides, f"training.deterministic={value}")
            rates[value].append(examples_per_second(*overrides, steps=options.steps))
    costs = [free / exact - 1 for exact, free in zip(rates["true"], rates["false"], strict=True)]
    print(get_device().describe())
    for value, found in rates.items():
        print(f"training.deterministic={value:<6} {statistics.median(found):.2f} examples/s")
    print(
        f"reproducibility costs {statistics.median(costs):+.1%} "
        f"(rounds: {', '.join(f'{cost:+.1%}' for cost in costs)})"
    )
    write_results(options.json, examples_per_second=rates, costs=costs)


if __name__ == "__main__":
    main()
