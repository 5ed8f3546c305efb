"""Bring MLflow up to date with the directory of a run, which holds everything that MLflow gets."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from psy_agents_noaug.config.loading import as_of_today, validate_train_config
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import (
    ConfigError,
    DataError,
    PsyAgentsError,
    RunInUseError,
    faults_message,
)
from psy_agents_noaug.run.directory import RunDirectory, readable_lines
from psy_agents_noaug.run.records import (
    experiment_of,
    read_history,
    send_history,
    send_report,
    send_start,
    tracking_status,
)
from psy_agents_noaug.tracking.base import Status
from psy_agents_noaug.tracking.mlflow import MlflowTracker
from psy_agents_noaug.utils.files import read_json, write_json, write_text

_PATIENCE_SECONDS = 120.0
_UNITS = {"params": "params", "tags": "tags", "metrics": "metric values", "files": "files"}


def sync_all(paths: Sequence[Path], *, uri: str | None = None) -> str:
    """Bring MLflow up to date with several runs, as `sync` does with one. Return what was missing.

    Raises:
        ConfigError: with the faults of all runs; the others are up to date.
    """
    told, faults = [], []
    for path in paths:
        try:
            told.append(sync(path, uri=uri))
        except PsyAgentsError as error:
            faults.append(str(error))
    if len(faults) == 1 and not told:
        raise ConfigError(faults[0])
    if faults:
        raise ConfigError(
            "\n".join([*told, faults_message("MLflow is not up to date with:", faults)])
        )
    return "\n".join(told)


def sync(path: Path, *, uri: str | None = None) -> str:
    """Add to MLflow what it lacks of a training and its evaluations. Return what that was.

    A run that MLflow does not have, or has deleted, is made anew, and its new id is recorded. A second
    call changes nothing.

    Args:
        path: the run's directory.
        uri: the store; None for the one that each was tracked in.

    Raises:
        ConfigError: `path` is no run that is over, or the store does not take everything.
        DataError: a record of the run is damaged or absent; nothing of that training or evaluation is
            sent.
    """
    directory = RunDirectory(path)
    config = _config_of(directory)
    if config.tracking.name == "none" and uri is None:
        raise ConfigError(
            f"{path} was trained with `tracking=none`: give `tracking.uri=...` to record it in MLflow."
        )
    with _not_in_use(directory):
        lines, run_id = _sync_training(directory, config, uri=uri)
        for folder in (directory.path, *sorted(directory.path.glob("evaluations/*/"))):
            lines += _sync_evaluations(RunDirectory(folder), directory, config, run_id, uri=uri)
    return "\n".join(lines)


def _config_of(directory: RunDirectory) -> TrainConfig:
    if not (directory.config.is_file() and directory.manifest.is_file()):
        raise ConfigError(
            "`psy-agents tracking sync` must be given directories of runs, but config.yaml or "
            f"manifest.json is missing in {directory.path}."
        )
    with _reading(directory.config):
        recorded = yaml.safe_load(directory.config.read_text(encoding="utf-8"))
        return validate_train_config(as_of_today(recorded))


def _manifest_of(directory: RunDirectory) -> dict[str, Any]:
    with _reading(directory.manifest):
        manifest: dict[str, Any] = read_json(directory.manifest)
        # What is used later must be there before anything is sent.
        for name in ("data", "steps") if manifest["status"] == "finished" else ("data",):
            manifest[name]
        return manifest


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged record leads to where it is read into a DataError."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise _unfit(path, f"is damaged ({type(error).__name__})") from error
    except DataError as error:
        raise _unfit(path, "is damaged") from error


def _check_present(*paths: Path) -> None:
    for path in paths:
        if not path.is_file():
            raise _unfit(path, "is not there")


def _unfit(path: Path, fault: str) -> DataError:
    return DataError(
        f"{path} {fault}, so it cannot be delivered. Put a copy of it in its place, or have it written "
        "anew: by the training's command with `resume=auto` (all but config.yaml), or by another "
        "evaluation."
    )


@contextmanager
def _not_in_use(directory: RunDirectory) -> Iterator[None]:
    lock = FileLock(directory.path / ".lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise RunInUseError(
            f"Another process is training in {directory.path}; it delivers what is missing when it ends."
        ) from None


def _open(
    directory: RunDirectory, config: TrainConfig, name: str, run_id: str | None, **changes: Any
) -> MlflowTracker:
    return MlflowTracker(
        **{
            "uri": config.tracking.uri,
            "experiment": experiment_of(config),
            "run_name": name,
            # <output_dir>/<task>/<run>
            "output_dir": directory.path.resolve().parents[1],
            "remedy": "the same command again goes on.",
            "run_id": run_id,
            "system_metrics": False,
            "patience_seconds": max(config.tracking.patience_seconds, _PATIENCE_SECONDS),
            "adds_only": True,
            **changes,
        }
    )


def _sync_training(
    directory: RunDirectory, config: TrainConfig, *, uri: str | None
) -> tuple[list[str], str]:
    """Return what was delivered, and the id of the training's run."""
    manifest = _manifest_of(directory)
    is_finished = manifest["status"] == "finished"
    with _reading(directory.history):
        history = read_history(directory.history)
    _check_present(directory.splits, directory.alignment)
    if is_finished:
        _check_present(directory.metrics, directory.predictions_of("val"), directory.history)
    figures = _figures(directory, "val")
    tracker = _open(
        directory,
        config,
        directory.path.name,
        manifest.get("mlflow_run_id"),
        uri=uri or config.tracking.uri,
        parent_run_id=manifest.get("mlflow_parent_run_id"),
    )
    if tracker.run_id != manifest.get("mlflow_run_id"):
        write_json(directory.manifest, {**manifest, "mlflow_run_id": tracker.run_id})
    with tracking_status(tracker):
        data = manifest["data"]
        fingerprints = {key: data[key] for key in data.keys() - {"name", "splits_origin"}}
        send_start(tracker, directory, config, dict(sorted(fingerprints.items())))
        send_history(tracker, history)
        if is_finished:
            send_report(tracker, directory, "val", figures, step=manifest["steps"])
            for path in (directory.manifest, directory.history):
                tracker.log_artifact(path)
        _finish(tracker, "FINISHED" if is_finished else "KILLED")
    return [_told(directory.path, tracker)], tracker.run_id


def _sync_evaluations(
    folder: RunDirectory,
    run: RunDirectory,
    config: TrainConfig,
    parent_run_id: str,
    *,
    uri: str | None,
) -> list[str]:
    """Deliver the last tracked evaluation of each split, whose figures are those in metrics.json."""
    if not folder.evaluations.is_file():
        return []
    records = list(readable_lines(folder.evaluations))
    last = {record["split"]: record for record in records if record.get("mlflow_run_id")}
    told = []
    for split, record in last.items():
        figures = _figures(folder, split)
        if figures:
            _check_present(folder.predictions_of(split))
        name = f"{folder.path.name}-{split}"
        tracker = _open(
            run,
            config,
            name,
            record["mlflow_run_id"],
            uri=uri or record["tracking_uri"],
            parent_run_id=parent_run_id,
        )
        if tracker.run_id != record["mlflow_run_id"]:
            record["mlflow_run_id"] = tracker.run_id
            write_text(folder.evaluations, "".join(json.dumps(line) + "\n" for line in records))
        with tracking_status(tracker):
            weights = {"checkpoint_weights_sha256": record["weights_sha256"]}
            parent = {"mlflow.parentRunId": parent_run_id}
            tracker.set_tags({**parent, **weights, **record["data"]})
            if figures:
                send_report(tracker, folder, split, figures, step=record["step"])
            _finish(tracker, "FINISHED" if figures else "KILLED")
        told.append(_told(folder.path, tracker, split))
    return told


def _figures(directory: RunDirectory, split: str) -> dict[str, Any]:
    if not directory.metrics.is_file():
        return {}
    with _reading(directory.metrics):
        metrics = read_json(directory.metrics)
        return {key: value for key, value in metrics.items() if key.startswith(f"{split}/")}


def _finish(tracker: MlflowTracker, status: Status) -> None:
    tracker.finish(status)
    if tracker.failure is not None:
        raise ConfigError(
            f"MLflow does not take everything ({tracker.failure}). Nothing is lost: mend the store, and "
            "give the same command again."
        )


def _told(path: Path, tracker: MlflowTracker, split: str | None = None) -> str:
    sent: Counter[str] = tracker.sent
    parts = [f"{sent[kind]} {unit}" for kind, unit in _UNITS.items() if sent[kind]]
    parts += ["its status"] if sent["status"] else []
    delivered = f"delivered {', '.join(parts)}" if parts else "nothing was missing"
    what = f"{path}, evaluation of {split}" if split else str(path)
    return f"{what}: MLflow run {tracker.run_id}: {delivered}"
