"""Records of a run: the tracker's run, the manifest, the history."""

import csv
import io
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.splits import write_splits
from psy_agents_noaug.errors import ConfigError, DataError, Interrupted, StoppedError
from psy_agents_noaug.run.context import RunContext
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.tracking.base import NullTracker, Tracker, without_private_parts
from psy_agents_noaug.tracking.manifest import write_manifest
from psy_agents_noaug.tracking.mlflow import MlflowTracker
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.utils.files import write_json, write_text
from psy_agents_noaug.utils.words import WORD_SEGMENTATION

logger = logging.getLogger(__name__)


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
    try:
        return MlflowTracker(
            uri=config.tracking.uri,
            experiment=experiment_of(config),
            run_name=run_name or directory.path.name,
            output_dir=Path(config.output_dir),
            remedy=remedy,
            run_id=None if run_name else directory.read_manifest().get("mlflow_run_id"),
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


def write_start_records(context: RunContext) -> None:
    """Write splits, alignment and the first manifest, and send them and the config to the tracker."""
    config, data, tracker = context.config, context.data, context.tracker
    directory = context.directory
    write_splits(directory.splits, data.splits)
    write_json(directory.alignment, data.report())
    record_manifest(context, status="running", weights=None, extra={})
    send_start(tracker, directory, config, data.fingerprints())


def send_start(
    tracker: Tracker, directory: RunDirectory, config: TrainConfig, fingerprints: Mapping[str, str]
) -> None:
    """Send what a training knows before its first update."""
    tracker.log_params(config.model_dump())
    tracker.set_tags({f"data.{name}": value for name, value in fingerprints.items()})
    for path in (directory.config, directory.splits, directory.alignment):
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
        split: train, val or test.
        metrics: the figures, with the split in their names.
        step: at which the tracker shows them.
    """
    figures = {key: value for key, value in metrics.items() if not isinstance(value, str)}
    tracker.log_metrics(figures, step=step, replaces=True)
    for path in (directory.metrics, directory.predictions_of(split)):
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
    config, directory, data = context.config, context.directory, context.data
    parent = context.tracker.parent_run_id
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_manifest(
        directory.manifest,
        task=config.task.name,
        run_name=directory.path.name,
        created_at=directory.read_manifest().get("created_at", now),
        data={"name": config.data.name, **data.fingerprints(), "splits_origin": data.splits.origin},
        weights_sha256=weights,
        command=sys.argv,
        extra={
            "status": status,
            "updated_at": now,
            "mlflow_run_id": context.tracker.run_id,
            **({"mlflow_parent_run_id": parent} if parent else {}),
            "pretrained_model": config.model.pretrained_model,
            "held_out_criteria": [criterion.criterion_id for criterion in data.held_out],
            "word_segmentation": WORD_SEGMENTATION,
            "torch_threads": torch.get_num_threads(),
            "mixed_precision": context.hardware.precision.mode,
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
