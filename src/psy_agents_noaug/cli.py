"""What every script does around a run: overrides in, a table out, an exit code that means something.

0 done; 2 a config, data or checkpoint error, in one message; 130 / 143 stopped by a signal, state
saved; anything else is a bug and keeps its traceback (exit 1).
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import yaml

from psy_agents_noaug.config.loading import (
    CONFIG_DIR,
    compose_config,
    load_evaluate_config,
    load_train_config,
)
from psy_agents_noaug.errors import Interrupted, PsyAgentsError

if TYPE_CHECKING:
    from psy_agents_noaug.run.train import RunResult

_STOPPED = (
    "Stopped outside of training; resume=auto goes on from the last checkpoint, if there is one."
)


def run_train(config_name: str, argv: Sequence[str]) -> int:
    """Train with `configs/<config_name>.yaml` and the overrides in `argv`; return the exit code."""

    def run() -> "RunResult":
        config = load_train_config(config_name, argv)
        # Imported late: torch takes seconds, and a wrong key should be told at once.
        from psy_agents_noaug.run.train import train

        return train(config)

    return _run(config_name, argv, run)


def run_evaluate(config_name: str, argv: Sequence[str]) -> int:
    """Evaluate the `checkpoint=` in `argv`; return the exit code."""

    def run() -> "RunResult":
        evaluation, explicit = load_evaluate_config(config_name, argv)
        from psy_agents_noaug.run.train import evaluate

        return evaluate(evaluation, task_name=config_name.split("/")[0], explicit=explicit)

    return _run(config_name, argv, run)


def run_train_best(argv: Sequence[str]) -> int:
    """Train the `task=` of `argv` with the file of its `best_config=`; return the exit code."""
    tasks = [item.removeprefix("task=") for item in argv if item.startswith("task=")]
    rest = [item for item in argv if not item.startswith("task=")]
    if len(tasks) != 1 or not (CONFIG_DIR / tasks[0] / "train.yaml").is_file():
        sys.stderr.write(
            "ConfigError: say which task to train: task=criteria, evidence or joint.\n"
        )
        return 2
    if not any(item.startswith("best_config=") for item in rest) and not {"--help", "-h"} & set(
        rest
    ):
        sys.stderr.write(
            "ConfigError: `best_config` must be given: best_config=outputs/hpo_stage2/best_config.yaml\n"
        )
        return 2
    return run_train(f"{tasks[0]}/train", rest)


def run_hpo(argv: Sequence[str]) -> int:
    """Run the stage that `argv` asks for; return the exit code."""

    def run() -> str:
        if {"--help", "-h"} & set(argv):
            return _hpo_help(argv)
        from psy_agents_noaug.hpo.stages import run_stage

        return run_stage(argv)

    return _guarded(run)


def _run(config_name: str, argv: Sequence[str], run: Callable[[], "RunResult"]) -> int:
    def shown() -> str:
        if {"--help", "-h"} & set(argv):
            return _help(config_name, [item for item in argv if item not in ("--help", "-h")])
        result = run()
        return f"\n{result.summary}\n\nrun directory: {result.directory}"

    return _guarded(shown)


def _guarded(run: Callable[[], str]) -> int:
    """Print what `run` returns; turn what stops it into a message and an exit code."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(levelname)s %(message)s",
        handlers=[_StderrHandler()],
        force=True,
    )
    speaks = _is_first_process()
    logging.getLogger("psy_agents_noaug").setLevel(logging.INFO if speaks else logging.ERROR)
    signal.signal(signal.SIGTERM, _stop)
    try:
        shown = run()
    except PsyAgentsError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    except Interrupted as stop:
        # Asked again, it is ending already; only SIGKILL ends it sooner.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.stderr.write(f"{stop}\n")
        _leave_process_group()
        return stop.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(f"{_STOPPED}\n")
        return 130
    if speaks and shown:
        _print(shown)
    _leave_process_group()
    return 0


def _leave_process_group() -> None:
    """End the threads of a process group, which may crash an interpreter that ends before them.

    Not after an error of this process alone: with NCCL, leaving may wait for the others.
    """
    torch = sys.modules.get("torch")
    if (
        torch is not None
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
    ):
        torch.distributed.destroy_process_group()


def _is_first_process() -> bool:
    """Whether this is the one, of several (torchrun, accelerate launch), that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def _hpo_help(argv: Sequence[str]) -> str:
    stages = sorted(p.stem for p in (CONFIG_DIR / "hpo").glob("*.yaml") if p.stem[0] != "_")
    chosen = [item.removeprefix("hpo=") for item in argv if item.startswith("hpo=")]
    lines = [
        f"usage: {sys.argv[0]} hpo=STAGE task=TASK [hpo.KEY=VALUE | KEY=VALUE | GROUP=CHOICE]...",
        "",
        f"stages: {', '.join(stages)}; tasks: criteria, evidence, joint.",
        "hpo.KEY changes the stage; other keys are the trainings' (scripts/train_<task>.py --help).",
    ]
    for stage in chosen or stages[:1]:
        composed = yaml.safe_dump(compose_config(f"hpo/{stage}", []), sort_keys=False)
        lines += [
            "",
            f"{stage}:",
            *(f"  hpo.{line}" if line[0] != " " else f"  {line}" for line in composed.splitlines()),
        ]
    return "\n".join(lines)


def _help(config_name: str, overrides: Sequence[str]) -> str:
    groups = [
        f"  {folder.name}: "
        + ", ".join(sorted(p.stem for p in folder.glob("*.yaml") if not p.stem.startswith("_")))
        for folder in sorted(CONFIG_DIR.iterdir())
        if folder.is_dir() and not (folder / "train.yaml").is_file()
    ]
    composed = yaml.safe_dump(compose_config(config_name, overrides), sort_keys=False)
    return "\n".join(
        [
            f"usage: {sys.argv[0]} [GROUP=CHOICE | KEY=VALUE]...",
            "",
            "Overrides are in Hydra's syntax: data=redsm5 data.dir=DIR training.epochs=3.",
            "What each key does stands beside it in the files of configs/.",
            "",
            "groups and their choices:",
            *groups,
            "",
            "keys and their values, with the overrides given here:",
            *(f"  {line}" for line in composed.splitlines()),
        ]
    )


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment, so that lines stay clear of a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _stop(number: int, frame: FrameType | None) -> None:
    """Turn a SIGTERM outside of training, which handles its own, into an orderly end."""
    raise Interrupted(_STOPPED, exit_code=128 + number)


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
