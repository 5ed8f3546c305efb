"""Records of a run: the tracker's run, the manifest, the history."""

import csv
import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.data.splits import write_splits
from psy_agents_noaug.errors import Interrupted, StoppedError
from psy_agents_noaug.run.context import RunContext
from psy_agents_noaug.run.directory import RunDirectory
from psy_agents_noaug.tracking.base import NullTracker, Tracker
from psy_agents_noaug.tracking.manifest import write_manifest
from psy_agents_noaug.tracking.mlflow import MlflowTracker
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.utils.files import write_json, write_text
from psy_agents_noaug.utils.words import WORD_SEGMENTATION


def open_tracker(
    config: TrainConfig,
    hardware: Hardware,
    directory: RunDirectory,
    *,
    run_name: str | None = None,
    parent_run_id: str | None = None,
) -> Tracker:
    """Open the tracker that the config asks for; in all but the main process, a `NullTracker`.

    Args:
        config: the run's configuration.
        hardware: its processes.
        directory: the run's directory. A new run gets its name; if its manifest names an MLflow run,
            that run is continued.
        run_name: start a new run of this name instead.
        parent_run_id: parent of a new run.

    Raises:
        ConfigError: MLflow cannot be used; the message says why.
    """
    if config.tracking.name == "none" or not hardware.distributed.is_main:
        return NullTracker()
    return MlflowTracker(
        uri=config.tracking.uri,
        experiment=config.tracking.experiment or f"psy_agents_noaug/{config.task.name}",
        run_name=run_name or directory.path.name,
        output_dir=Path(config.output_dir),
        run_id=None if run_name else directory.read_manifest().get("mlflow_run_id"),
        parent_run_id=parent_run_id,
        system_metrics=config.tracking.system_metrics,
    )


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
    tracker.log_params(config.model_dump())
    tracker.set_tags({f"data.{name}": value for name, value in data.fingerprints().items()})
    for path in (directory.config, directory.splits, directory.alignment):
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
            "pretrained_model": config.model.pretrained_model,
            "word_segmentation": WORD_SEGMENTATION,
            "torch_threads": torch.get_num_threads(),
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
