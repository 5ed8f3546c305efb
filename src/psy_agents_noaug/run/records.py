"""Records of a run: the tracker's run, the manifest, the history."""

import csv
import io
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.splits import write_splits
from psy_agents_noaug.errors import ConfigError, DataError, Interrupted, StoppedError
from psy_agents_noaug.run.adapted import adaptations
from psy_agents_noaug.run.context import RunContext
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.tracking.base import NullTracker, Tracker, without_private_parts
from psy_agents_noaug.tracking.manifest import write_manifest
from psy_agents_noaug.tracking.mlflow import MlflowTracker
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.utils.files import write_json, write_text
from psy_agents_noaug.utils.words import WORD_SEGMENTATION

logger = logging.getLogger(__name__)

# Writes the report of a run into its directory. Reports are above runs, so whoever starts one gives it.
ReportWriter = Callable[[Path], object]


def no_report(directory: Path) -> None:
    """Write nothing, as for the trials of a search."""


def open_tracker(
    config: TrainConfig,
    hardware: Hardware,
    directory: RunDirectory,
    *,
    run_name: str | None = None,
    parent_run_id: str | None = None,
    is_required: bool = True,
) -> Tracker:
    """Open the tracker that the config asks for; in all but the main process, a `NullTracker`.

    Args:
        config: the run's configuration.
        hardware: its processes.
        directory: the run's directory. A new run gets its name; if its manifest names an MLflow run,
            that run is continued.
        run_name: start a new run of this name instead.
        parent_run_id: parent of a new run.
        is_required: without MLflow, nothing is to be started. A trial in the middle of a search goes on.

    Raises:
        ConfigError: MLflow cannot be used; the message says why.
    """
    if config.tracking.name == "none" or not hardware.distributed.is_main:
        return NullTracker()
    store = config.tracking.uri
    where = "" if store is None else f" tracking.uri={without_private_parts(store)}"
    remedy = f"`psy-agents tracking sync {directory.path}{where}` delivers the rest."
    return connected_tracker(
        config,
        run_name=run_name or _shown_name(config, directory),
        run_id=None if run_name else directory.read_manifest().get("mlflow_run_id"),
        remedy=remedy,
        parent_run_id=parent_run_id,
        is_required=is_required,
    )


def connected_tracker(
    config: TrainConfig,
    *,
    run_name: str,
    run_id: str | None,
    remedy: str,
    parent_run_id: str | None = None,
    is_required: bool = True,
) -> Tracker:
    """Start or continue a run in MLflow.

    Args:
        config: where it is tracked.
        run_name: of a new run.
        run_id: the run to go on with.
        remedy: what brings MLflow up to date, to end a warning.
        parent_run_id: as for `open_tracker`.
        is_required: as for `open_tracker`.

    Raises:
        ConfigError: MLflow cannot be used; the message says why.
    """
    try:
        return MlflowTracker(
            uri=config.tracking.uri,
            experiment=experiment_of(config),
            run_name=run_name,
            output_dir=Path(config.output_dir),
            remedy=remedy,
            run_id=run_id,
            parent_run_id=parent_run_id,
            system_metrics=config.tracking.system_metrics,
            patience_seconds=config.tracking.patience_seconds,
            is_required=is_required,
        )
    except ConfigError as error:
        if is_required:
            raise
        logger.warning("This run is not recorded in MLflow: %s %s", error, remedy)
        return NullTracker(parent_run_id)


def _shown_name(config: TrainConfig, directory: RunDirectory) -> str:
    """Return the name of a run, with its folder if it is one of several."""
    name = config.run_name or ""
    return name if name.endswith(f"/{directory.path.name}") else directory.path.name


def experiment_of(config: TrainConfig) -> str:
    """Return the name of the MLflow experiment of a run."""
    return config.tracking.experiment or f"psy_agents_noaug/{config.task.name}"


@contextmanager
def tracking_status(tracker: Tracker) -> Iterator[None]:
    """Close the tracker's run as FINISHED, KILLED (interrupted or stopped) or FAILED (an error)."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt, StoppedError):
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")


@contextmanager
def manifest_status(directory: RunDirectory) -> Iterator[None]:
    """Record in the manifest that the run failed, was interrupted, or was stopped by its caller."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        directory.record_status("interrupted")
        raise
    except StoppedError:
        directory.record_status("stopped")
        raise
    except BaseException as error:
        directory.record_status("failed", error=type(error).__name__)
        raise


def write_start_records(context: RunContext, about: Mapping[str, object]) -> None:
    """Write splits, alignment and the first manifest, and send them and the config to the tracker.

    Args:
        context: the run.
        about: further entries of the manifest.
    """
    config, data, tracker = context.config, context.data, context.tracker
    directory = context.directory
    write_splits(directory.splits, data.splits)
    write_json(directory.alignment, data.report())
    record_manifest(context, status="running", weights=None, extra=about)
    send_start(tracker, directory, config, data.fingerprints())


def send_start(
    tracker: Tracker, directory: RunDirectory, config: TrainConfig, fingerprints: Mapping[str, str]
) -> None:
    """Send what a training knows before its first update."""
    tracker.log_params(config.model_dump())
    tracker.set_tags({f"data.{name}": value for name, value in fingerprints.items()})
    for path in (directory.config, directory.splits, directory.alignment):
        if path.is_file():  # an adaptation has its configuration alone
            tracker.log_artifact(path)


def send_history(tracker: Tracker, history: Iterable[Mapping[str, Any]]) -> None:
    """Send the evaluations of a training; the tracker leaves out those that it has."""
    for row in history:
        tracker.log_metrics(
            {key: value for key, value in row.items() if key not in ("step", "epoch")},
            step=int(row["step"]),
        )


def send_report(
    tracker: Tracker,
    directory: RunDirectory,
    split: str,
    metrics: Mapping[str, Any],
    *,
    step: int,
) -> None:
    """Send the figures and the predictions of a split.

    Args:
        tracker: where to.
        directory: where they are stored.
        split: train, val, test or all.
        metrics: the figures, with the split in their names.
        step: at which the tracker shows them.
    """
    figures = {key: value for key, value in metrics.items() if not isinstance(value, str)}
    tracker.log_metrics(figures, step=step, replaces=True)
    for path in (directory.metrics, directory.predictions_of(split)):
        if path.is_file():  # adaptations, and trainings on one division, pool no predictions
            tracker.log_artifact(path)


def make_report(context: RunContext, write_report: ReportWriter) -> None:
    """Write the report of a run or an evaluation, if it is wanted, and send it to the tracker.

    Args:
        context: the run; only its main process has a report.
        write_report: called with the run's directory.
    """
    if context.is_main and context.config.report:
        make_report_in(context.directory, context.tracker, write_report)


def make_report_in(directory: RunDirectory, tracker: Tracker, write_report: ReportWriter) -> None:
    """Write a report and send it to the tracker; warn if it cannot be made.

    Args:
        directory: of what the report is about.
        tracker: where it is sent.
        write_report: called with the path of `directory`.
    """
    path = directory.path
    try:
        write_report(path)
        send_made_report(tracker, directory)
    except Exception as error:  # noqa: BLE001 - a report never ends a training, whatever its fault
        logger.warning(
            "The report of %s was not made (%s: %s). All else is whole; `psy-agents report %s` makes "
            "it again.",
            path,
            type(error).__name__,
            error,
            path,
        )


def send_made_report(tracker: Tracker, directory: RunDirectory) -> None:
    """Send the report and its figures, where they were made."""
    for path in (directory.report, directory.figures_folder):
        if path.exists():
            tracker.log_artifact(path)


def record_manifest(
    context: RunContext, *, status: str, weights: str | None, extra: Mapping[str, object]
) -> None:
    """Write the run's manifest; a resumed run keeps its `created_at`.

    Args:
        context: the run.
        status: running or finished; others come from `manifest_status`.
        weights: SHA-256 of the best weights, None while there are none.
        extra: further top-level entries.
    """
    data = context.data
    record_training(
        context.config,
        context.hardware,
        context.directory,
        context.tracker,
        data={**data.fingerprints(), "splits_origin": data.splits.origin},
        status=status,
        weights=weights,
        extra={
            "criteria": {c.criterion_id: c.name for c in (*data.criteria, *data.held_out)},
            "held_out_criteria": [criterion.criterion_id for criterion in data.held_out],
            "word_segmentation": WORD_SEGMENTATION,
            **extra,
        },
    )


def record_training(
    config: TrainConfig,
    hardware: Hardware,
    directory: RunDirectory,
    tracker: Tracker,
    *,
    data: Mapping[str, object],
    status: str,
    weights: str | None,
    extra: Mapping[str, object],
) -> None:
    """Write the manifest of any training, see `record_manifest`.

    Args:
        config: of the run.
        hardware: it trains on.
        directory: of the run.
        tracker: of the run.
        data: what the training reads, besides the name of the corpus.
        status: see `record_manifest`, as `weights` and `extra`.
    """
    parent = tracker.parent_run_id
    now = datetime.now(UTC).isoformat(timespec="seconds")
    adapted = adaptations(config.model)
    write_manifest(
        directory.manifest,
        task=config.task.name,
        run_name=directory.path.name,
        created_at=directory.read_manifest().get("created_at", now),
        data={"name": config.data.name, **data},
        weights_sha256=weights,
        command=sys.argv,
        extra={
            "status": status,
            "updated_at": now,
            "mlflow_run_id": tracker.run_id,
            **({"mlflow_parent_run_id": parent} if parent else {}),
            "monitor": config.training.monitor,
            "pretrained_model": config.model.pretrained_model,
            **({"adaptations": adapted} if adapted else {}),
            "torch_threads": torch.get_num_threads(),
            "mixed_precision": hardware.precision.mode,
            **extra,
        },
    )


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Write history.csv, one row per evaluation."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in history for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the rows of history.csv, with None for what is undefined; no rows if there is no file.

    Raises:
        DataError: the file is damaged.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                {key: None if value == "" else float(value) for key, value in row.items()}
                | {"step": int(row["step"])}
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise DataError(
            f"{path} is damaged: it must hold a step and numbers in each row ({error})."
        ) from error
