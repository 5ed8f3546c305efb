"""The Python interface: `train` and `evaluate`, as the commands of the same names."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psy_agents_noaug.config.command_line import is_setting, take_task
from psy_agents_noaug.config.loading import (
    flat,
    load_evaluate_config,
    load_train_config,
    to_overrides,
)
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.utils.shown import PrintableFormatter

if TYPE_CHECKING:
    from psy_agents_noaug.run.evaluate import RunResult

Overrides = Mapping[str, Any] | Sequence[str]


def train(
    overrides: Overrides = (), *, task: str | None = None, verbose: bool = True
) -> "RunResult":
    """Train a model, keep the best checkpoint by val, and report it on val.

    Args:
        overrides: settings as a mapping, nested or with dotted keys (`{"training.epochs": 3}`), or as
            the command line has them (`["training.epochs=3"]`).
        task: its name, unless `overrides` choose one; criteria by default.
        verbose: show what happens, and the progress, on standard error.

    Returns:
        The run's `directory`, `metrics` by name, `table` (a pandas DataFrame) and `summary` (text).

    Raises:
        ConfigError, DataError, CheckpointError: the user's to mend; nothing was trained.
        NonFiniteError: the loss or a gradient is NaN or infinite.
        Interrupted: stopped by a signal, state saved; `resume=auto` goes on.
    """
    chosen, arguments = _arguments(overrides)
    if task is not None and chosen not in (None, task):
        raise ConfigError(
            f"`task` must be given once, but is {task} and, in the settings, {chosen}."
        )
    config = load_train_config(chosen or task or "criteria", arguments)
    # Imported late: torch takes seconds, and a wrong key should be reported at once.
    from psy_agents_noaug.run.train import train as train_config

    with _logging(verbose), _thread_count_restored():
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
    chosen, arguments = _arguments(overrides)
    if any(word.lstrip("+").startswith(("checkpoint=", "split=")) for word in arguments):
        raise ConfigError("`checkpoint` and `split` are arguments of `evaluate`, not settings.")
    arguments += to_overrides({"checkpoint": str(path), "split": split})
    task = chosen or checkpoint_task(path)
    evaluation, explicit = load_evaluate_config(task, arguments)
    with _logging(verbose), _thread_count_restored():
        return evaluate_config(evaluation, task_name=task, explicit=explicit)


def _arguments(overrides: Overrides) -> tuple[str | None, list[str]]:
    """Return the task, if one is chosen, and the other overrides in Hydra's syntax."""
    if isinstance(overrides, str) or not isinstance(overrides, Mapping | Sequence):
        raise ConfigError(f"Settings must be a mapping or a list, but are {overrides!r} instead.")
    words = [str(word) for word in overrides]
    if isinstance(overrides, Mapping):
        words = to_overrides({key: _plain(value) for key, value in flat(overrides).items()})
    if faults := [word for word in words if not is_setting(word)]:
        raise ConfigError(
            f"Settings must be KEY=VALUE or GROUP=CHOICE, but there are: {', '.join(faults)}."
        )
    return take_task(words)


def _plain(value: Any) -> Any:
    """Return paths as text, tuples as lists, and numbers of NumPy or PyTorch as Python's."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


@contextmanager
def _thread_count_restored() -> Iterator[None]:
    """Keep `training.num_threads` of one run from the next one in the same process."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """Show our log lines while a run lasts, through the handlers of the program where it has some."""
    logger = logging.getLogger("psy_agents_noaug")
    if not verbose:
        yield
        return
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    handler.setFormatter(PrintableFormatter())
    if not logger.hasHandlers():
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
