"""The Python interface: `train` and `evaluate`, as the commands of the same names."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psy_agents_noaug.config.loading import (
    flat,
    given,
    load_evaluate_config,
    load_train_config,
    to_overrides,
)

if TYPE_CHECKING:
    from psy_agents_noaug.run.evaluate import RunResult

Overrides = Mapping[str, Any] | Sequence[str]


def train(
    overrides: Overrides = (), *, task: str = "criteria", verbose: bool = True
) -> "RunResult":
    """Train a model, keep the best checkpoint by val, and report it on val.

    Args:
        overrides: settings as a mapping, nested or with dotted keys (`{"training.epochs": 3}`), or as
            the command line has them (`["training.epochs=3"]`).
        task: its name, where `overrides` do not choose one.
        verbose: show what happens, and the progress, on standard error.

    Returns:
        The run's `directory`, `metrics` by name, `table` (a pandas DataFrame) and `summary` (text).

    Raises:
        ConfigError, DataError, CheckpointError: the user's to mend; nothing was trained.
        NonFiniteError: the loss or a gradient is NaN or infinite.
        Interrupted: stopped by a signal, state saved; `resume=auto` goes on.
    """
    arguments = _arguments(overrides)
    config = load_train_config(_task(arguments) or task, arguments)
    # Imported late: torch takes seconds, and a wrong key should be told at once.
    from psy_agents_noaug.run.train import train as train_config

    with _logging(verbose):
        return train_config(config)


def evaluate(
    checkpoint: "str | Path | RunResult",
    overrides: Overrides = (),
    *,
    split: str = "test",
    verbose: bool = True,
) -> "RunResult":
    """Evaluate a trained model on a split. Every evaluation is recorded beside the run.

    Args:
        checkpoint: a checkpoint, a run's directory, or what `train` returned.
        overrides: settings that replace those of the training, as in `train`.
        split: train, val or test.
        verbose: show what happens on standard error.

    Returns:
        As `train`.

    Raises:
        ConfigError, DataError, CheckpointError: the user's to mend.
    """
    from psy_agents_noaug.run.evaluate import RunResult, checkpoint_task
    from psy_agents_noaug.run.evaluate import evaluate as evaluate_config

    path = checkpoint.directory if isinstance(checkpoint, RunResult) else Path(checkpoint)
    arguments = [
        *_arguments(overrides),
        *to_overrides({"checkpoint": str(path), "split": split}),
    ]
    task = _task(arguments) or checkpoint_task(path)
    evaluation, explicit = load_evaluate_config(task, arguments)
    with _logging(verbose):
        return evaluate_config(evaluation, task_name=task, explicit=explicit)


def _arguments(overrides: Overrides) -> list[str]:
    """Return overrides in Hydra's syntax."""
    if not isinstance(overrides, Mapping):
        return list(overrides)
    values = flat(overrides)
    return to_overrides({k: str(v) if isinstance(v, Path) else v for k, v in values.items()})


def _task(arguments: list[str]) -> str | None:
    """Take the choice of the task out of the arguments, and return it."""
    chosen = given(arguments).get("task")
    arguments[:] = [item for item in arguments if not item.startswith("task=")]
    return None if chosen is None else str(chosen)


@contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """Show our log lines while a run lasts, unless the program has set up logging itself."""
    logger = logging.getLogger("psy_agents_noaug")
    if not verbose or logger.hasHandlers():
        yield
        return
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
