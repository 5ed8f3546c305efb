"""What each setting is worth on this machine: one change at a time, in time and in memory.

Trains as `training_speed.py` does, each setting in a fresh process, interleaved. Settings that this
machine cannot use are left out and named. Usage:

    python benchmarks/hardware_optimizations.py [--steps 3] [--rounds 2] [--json FILE] [KEY=VALUE]...
"""

import argparse
import sys
from pathlib import Path

import torch
import training_speed
from common import in_fresh_process, interleaved, table, write_results

from psy_agents_noaug.utils.reproducibility import get_device

BASE = ("training.amp=off", "training.deterministic=true", "training.num_workers=0")
CHANGES = {
    "as configured (packed, fp32)": (),
    "padded": ("training.execution=padded",),
    "memory given back": ("training.keep_freed_memory=false",),
    "encoder without dropout": ("model.encoder_dropout=0.0",),
    "not deterministic": ("training.deterministic=false",),
    "2 worker processes": ("training.num_workers=2",),
    "gradient checkpointing": ("training.gradient_checkpointing=true",),
    "compile (padded; compiling included)": ("training.compile=true",),
    "bf16": ("training.amp=bf16",),
    "pin_memory off": ("training.pin_memory=false",),
    "cudnn_benchmark": ("training.deterministic=false", "training.cudnn_benchmark=true"),
    "all together": ("training.amp=bf16", "training.deterministic=false", "training.tf32=true"),
}
NEEDS_BF16 = {"bf16", "all together"}
NEEDS_CUDA = {"pin_memory off", "cudnn_benchmark"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="updates a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES))
    default = Path("benchmarks/results/hardware_optimizations.json")
    parser.add_argument("--json", type=Path, default=default)
    parser.add_argument("overrides", nargs="*", help="settings of the run, as for the scripts")
    options = parser.parse_intermixed_args()
    info = get_device()
    impossible = (set() if info.supports_bf16 else NEEDS_BF16) | (
        set() if torch.cuda.is_available() else NEEDS_CUDA
    )
    base = next(iter(CHANGES))
    names = [base, *(n for n in options.only if n != base and n not in impossible)]
    medians = interleaved(
        lambda name: in_fresh_process(
            training_speed.__file__,
            "--steps",
            str(options.steps),
            "--measure",
            "cross_encoder",
            *BASE,
            *CHANGES[name],
            *options.overrides,
        ),
        names,
        rounds=options.rounds,
    )
    first = medians[base]
    rows = {
        name: {
            "examples/s": figures["examples_per_second"],
            "speed": figures["examples_per_second"] / first["examples_per_second"],
            "peak MiB": figures["peak_memory_mib"],
            "memory": figures["peak_memory_mib"] / first["peak_memory_mib"],
        }
        for name, figures in medians.items()
    }
    print(info.describe())
    print(table(rows, {"examples/s": ".2f", "speed": ".2f", "peak MiB": ".0f", "memory": ".2f"}))
    left_out = [name for name in options.only if name in impossible]
    if left_out:
        print(
            f"left out, as this machine lacks what they need: {', '.join(left_out)}",
            file=sys.stderr,
        )
    write_results(options.json, figures=rows, left_out=left_out)


if __name__ == "__main__":
    main()
