"""The Python interface: `train`, `evaluate`, `load` and the other verbs of the command line."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from psy_agents_noaug.config.adaptation import load_adapt_config
from psy_agents_noaug.config.command_line import is_setting, take_task
from psy_agents_noaug.config.data_check import load_data_check_config
from psy_agents_noaug.config.loading import (
    flat,
    load_evaluate_config,
    load_export_config,
    to_overrides,
    validate,
)
from psy_agents_noaug.config.prediction import OVERRIDABLE, load_predict_config
from psy_agents_noaug.config.series import load_series_config
from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.utils.shown import PrintableFormatter

if TYPE_CHECKING:
    from psy_agents_noaug.exports.export import ExportResult
    from psy_agents_noaug.report.data_check import DataCheck
    from psy_agents_noaug.run.adapt import Adaptation
    from psy_agents_noaug.run.evaluate import RunResult
    from psy_agents_noaug.run.predictor import Predictor

    Trained = str | Path | RunResult

Overrides = Mapping[str, Any] | Sequence[str]


def train(
    overrides: Overrides = (), *, task: str | None = None, verbose: bool = True
) -> "RunResult":
    """Train a model, keep the best checkpoint by val, and report it on val.

    With `refit=train+val`, cross-validate on both and train on both, as `psy-agents train` does.

    Args:
        overrides: settings as a mapping, nested or with dotted keys (`{"training.epochs": 3}`), or as
            the command line has them (`["training.epochs=3"]`).
        task: its name, unless `overrides` choose one; criteria by default.
        verbose: show what happens, and the progress, on standard error.

    Returns:
        The run's `directory`, `metrics` by name, `table` (a pandas DataFrame) and `summary` (text). With
        `refit=train+val` the metrics are those of its cross-validation.

    Raises:
        ConfigError, DataError, CheckpointError: the user's to mend; nothing was trained.
        NonFiniteError: the loss or a gradient is NaN or infinite.
        Interrupted: stopped by a signal, state saved; `resume=auto` goes on.
    """
    task, arguments = _task_and_arguments(task, overrides)
    settings, config = load_series_config("train", task, arguments)
    if settings.seeds is not None and config.refit is None:
        raise ConfigError("`seeds` is of `psy-agents train`; give `seed` here, once for each call.")
    # Imported late: torch takes seconds, and a wrong key should be reported at once.
    from psy_agents_noaug.report.write import write_report

    if config.refit is not None:
        from psy_agents_noaug.run.series.refit import run_refit

        with _logging(verbose), _thread_count_restored():
            result = run_refit(settings, config, overrides=arguments, write_report=write_report)
        assert result is not None
        return result
    from psy_agents_noaug.run.train import train as train_config

    with _logging(verbose), _thread_count_restored():
        return train_config(config, write_report=write_report)


def cross_validate(
    overrides: Overrides = (),
    *,
    folds: int | str | Path = 5,
    seeds: Sequence[int] | None = None,
    task: str | None = None,
    verbose: bool = True,
) -> "RunResult":
    """Train and evaluate on each of several folds, or go on with it, and pool.

    Args:
        overrides: settings, as in `train`; `run_name` names the directory, `workers` trains several
            at the same time.
        folds: their number, or a file of them.
        seeds: each fold is trained with each; None: with `seed`.
        task: as in `train`.
        verbose: show what happens on standard error.

    Returns:
        As `train`, pooled over the folds, with the split `cv`.

    Raises:
        ConfigError, DataError, CheckpointError: the user's to mend.
        Interrupted: stopped by a signal; the same call goes on.
    """
    task, arguments = _task_and_arguments(task, overrides)
    own = {"folds": _plain(folds), "seeds": _plain(seeds)}
    arguments += to_overrides({key: value for key, value in own.items() if value is not None})
    settings, config = load_series_config("cv", task, arguments)
    from psy_agents_noaug.report.write import write_report
    from psy_agents_noaug.run.series.work import run_series

    with _logging(verbose), _thread_count_restored():
        result = run_series("cv", settings, config, overrides=arguments, write_report=write_report)
    assert result is not None
    return result


def adapt(posts: "str | Path", overrides: Overrides = (), *, verbose: bool = True) -> "Adaptation":
    """Continue masked-language-model training of an encoder on unlabelled posts.

    Args:
        posts: the file; a table with the columns post_id and text.
        overrides: settings of `configs/adapt.yaml`, as in `train`. `data` is the corpus whose posts of
            val and test are left out.
        verbose: show what happens on standard error.

    Returns:
        The folder `model` of the encoder, for `model.pretrained_model`, and what `train` returns.

    Raises:
        ConfigError, DataError, CheckpointError: the user's to mend; nothing was trained.
        Interrupted: stopped by a signal, state saved; `resume=auto` goes on.
    """
    task, arguments = _arguments(overrides)
    if task is not None:
        raise ConfigError("An adapted encoder serves every task; leave `task` out.")
    config = load_adapt_config([*arguments, *to_overrides({"data.posts": str(posts)})])
    from psy_agents_noaug.run.adapt import adapt as adapt_config

    with _logging(verbose), _thread_count_restored():
        return adapt_config(config)


def evaluate(
    checkpoint: "Trained | Sequence[Trained]",
    overrides: Overrides = (),
    *,
    split: str = "test",
    verbose: bool = True,
) -> "RunResult":
    """Evaluate a trained model on a split. Every evaluation is recorded beside the run.

    Args:
        checkpoint: a checkpoint, a run's directory, or what `train` returned; a list is an ensemble.
        overrides: settings that replace those of the training, as in `train`.
        split: train, val or test; all: another corpus as a whole, which need not be divided.
        verbose: show what happens on standard error.

    Returns:
        As `train`.

    Raises:
        ConfigError, DataError, CheckpointError: the user's to mend.
    """
    from psy_agents_noaug.report.write import write_report
    from psy_agents_noaug.run.evaluate import checkpoint_task
    from psy_agents_noaug.run.evaluate import evaluate as evaluate_config

    given = _checkpoints(checkpoint)
    chosen, arguments = _arguments(overrides)
    if any(word.lstrip("+").startswith(("checkpoint=", "split=")) for word in arguments):
        raise ConfigError("`checkpoint` and `split` are arguments of `evaluate`, not settings.")
    arguments += to_overrides({"checkpoint": given, "split": split})
    task = chosen or checkpoint_task(given)
    evaluation, explicit = load_evaluate_config(task, arguments)
    with _logging(verbose), _thread_count_restored():
        return evaluate_config(
            evaluation, task_name=task, explicit=explicit, write_report=write_report
        )


def load(
    checkpoint: "Trained | Sequence[Trained]",
    overrides: Overrides = (),
    *,
    criteria: Sequence[str] | None = None,
    criteria_file: str | Path | None = None,
    threshold: float | Mapping[str, float] | None = None,
    prevalence: float | Mapping[str, float] | None = None,
    with_text: bool = False,
    rows: Literal["post", "sentence"] = "post",
    verbose: bool = True,
) -> "Predictor":
    """Load a trained model, to predict texts with it: `load(run).predict(["I have not slept."])`.

    Args:
        checkpoint: a checkpoint, a run's directory, or what `train` returned; a list is an ensemble.
        overrides: settings of `training`, `model` and `task` that `psy-agents predict` has, such as
            `{"training.device": "cpu"}`.
        criteria: ids of those that are predicted; None: all.
        criteria_file: a table of further criteria, where the model can judge them.
        threshold: the probability from which a criterion counts as met, for all or by id; None: those
            that were fitted on val.
        prevalence: how often a criterion is met among the texts, for all or by id: adds the
            probabilities there.
        with_text: return the texts too.
        rows: a row for each post, or for each sentence, of a model that was trained on sentences.
        verbose: show what happens on standard error.

    Raises:
        ConfigError, CheckpointError, DataError: the user's to mend.
    """
    from psy_agents_noaug.config.schema import ScoringConfig
    from psy_agents_noaug.run.predictor import Predictor
    from psy_agents_noaug.run.scoring import Scorer

    chosen = _checkpoints(checkpoint)
    options = {
        "criteria": [criteria] if isinstance(criteria, str) else _plain(criteria),
        "criteria_file": None if criteria_file is None else str(criteria_file),
        "threshold": _plain(threshold),
        "prevalence": _plain(prevalence),
        "with_text": with_text,
        "rows": rows,
    }
    config = validate(ScoringConfig, options)
    task, arguments = _arguments(overrides)
    keys = [word.lstrip("+").partition("=")[0] for word in arguments] + ["task"] * bool(task)
    if others := [
        key for key in keys if key.partition(".")[0] not in OVERRIDABLE or "." not in key
    ]:
        raise ConfigError(
            f"`overrides` of `load` are settings of {', '.join(OVERRIDABLE)}; `{'`, `'.join(others)}` "
            "must be left out, or given as an argument."
        )
    given = to_overrides({"checkpoint": chosen, "data.posts": "-"})
    replaced = load_predict_config([*given, *arguments]).overrides
    with _logging(verbose):
        return Predictor(Scorer(chosen, config, overrides=replaced))


def export(
    checkpoint: "str | Path | RunResult",
    format: str,
    settings: Overrides = (),
    *,
    verbose: bool = True,
) -> "ExportResult":
    """Write a trained model in another format, with a model card.

    Args:
        checkpoint: a checkpoint, a run's directory, or what `train` returned.
        format: huggingface, onnx or bundle.
        settings: further ones of `configs/export.yaml`, such as `{"output": "folder"}`.
        verbose: show what happens on standard error.

    Returns:
        Its `folder`, `summary` (text) and, after `push`, the address of the `repository`.

    Raises:
        ConfigError, CheckpointError, StorageError: the user's to mend; nothing was written.
    """
    from psy_agents_noaug.exports.export import export as export_checkpoint
    from psy_agents_noaug.run.evaluate import RunResult

    path = checkpoint.directory if isinstance(checkpoint, RunResult) else Path(checkpoint)
    task, arguments = _arguments(settings)
    arguments += to_overrides({"checkpoint": str(path), "format": format})
    config = load_export_config(arguments)
    with _logging(verbose), _thread_count_restored():
        return export_checkpoint(config, task=task)


def check_data(
    overrides: Overrides = (), *, task: str | None = None, verbose: bool = True
) -> "DataCheck":
    """Check a corpus as a training would, and write a page on it.

    Args:
        overrides: settings of a training, as in `train`, and of `configs/data_check.yaml`, such as
            `{"time": False}`.
        task: as in `train`.
        verbose: show what happens on standard error.

    Returns:
        The `page`, its `summary` (text) and the `facts` behind both.

    Raises:
        ConfigError: a setting is wrong.
        DataError: all faults of the data, and where the page is that shows what could be read.
    """
    task, arguments = _task_and_arguments(task, overrides)
    settings, config = load_data_check_config(task, arguments)
    from psy_agents_noaug.report.data_check import check_and_write

    with _logging(verbose), _thread_count_restored():
        return check_and_write(config, settings, arguments)


def _checkpoints(given: "Trained | Sequence[Trained]") -> str | list[str]:
    """Return the path of a checkpoint or a run, or those of an ensemble."""
    from psy_agents_noaug.run.evaluate import RunResult

    if isinstance(given, str | Path | RunResult):
        return str(given.directory if isinstance(given, RunResult) else given)
    return [str(_checkpoints(one)) for one in given]


def _task_and_arguments(task: str | None, overrides: Overrides) -> tuple[str, list[str]]:
    """Return the task, criteria by default, and the overrides in Hydra's syntax."""
    chosen, arguments = _arguments(overrides)
    if task is not None and chosen not in (None, task):
        raise ConfigError(
            f"`task` must be given once, but is {task} and, in the settings, {chosen}."
        )
    return chosen or task or "criteria", arguments


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
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
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
