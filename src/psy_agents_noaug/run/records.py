"""What a run writes down of itself: the tracker's run, the manifest, the history."""

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
from psy_agents_noaug.tracking.process import mlflow_process
from psy_agents_noaug.training.hardware import Hardware
from psy_agents_noaug.utils.files import write_json, write_text


def open_tracker(
    config: TrainConfig,
    hardware: Hardware,
    directory: RunDirectory,
    *,
    run_name: str | None = None,
    parent_run_id: str | None = None,
) -> Tracker:
    if config.tracking.name == "none" or not hardware.distributed.is_main:
        return NullTracker()
    return mlflow_process().open(
        uri=config.tracking.uri,
        experiment=config.tracking.experiment or f"psy_agents_noaug/{config.task.name}",
        run_name=run_name or directory.path.name,
        output_dir=Path(config.output_dir),
        run_id=None if run_name else directory.read_manifest().get("mlflow_run_id"),
        parent_run_id=parent_run_id,
        system_metrics=config.tracking.system_metrics,
    )


@contextmanager
def tracked(tracker: Tracker) -> Iterator[None]:
    """End the tracker's run with the status that is true."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt, StoppedError):
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")


def write_beginning(context: RunContext) -> None:
    """Record what a training begins with."""
    config, directory, data, tracker = (
        context.config,
        context.directory,
        context.data,
        context.tracker,
    )
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
    """Write the manifest; the time at which the run was created stays.

    Args:
        context: the run.
        status: running or finished.
        weights: hash of the best weights, None while there are none.
        extra: further entries.
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
            "torch_threads": torch.get_num_threads(),
            **extra,
        },
    )


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in history for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())
