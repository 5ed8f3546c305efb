"""Bring MLflow up to date with the directory of a run, which holds everything that MLflow gets."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from psy_agents_noaug.config.adaptation import AdaptConfig
from psy_agents_noaug.config.loading import as_of_today, validate_train_config
from psy_agents_noaug.config.schema import TrainConfig
from psy_agents_noaug.errors import (
    ConfigError,
    DataError,
    PsyAgentsError,
    RunInUseError,
    faults_message,
)
from psy_agents_noaug.run.directory import RunDirectory, output_dir_of
from psy_agents_noaug.run.records import (
    experiment_of,
    read_history,
    send_history,
    send_made_report,
    send_report,
    send_start,
    tracking_status,
)
from psy_agents_noaug.run.refits import REFIT
from psy_agents_noaug.tracking.base import Status, without_private_parts
from psy_agents_noaug.tracking.mlflow import MlflowTracker
from psy_agents_noaug.training.checkpoint import using
from psy_agents_noaug.utils.files import read_json, write_json

_PATIENCE_SECONDS = 120.0
_REMEDY = (
    "Put a copy of it in its place, or have it written anew: by the training with resume=auto (all but "
    "config.yaml), or by another evaluation."
)
_UNITS = {"params": "params", "tags": "tags", "metrics": "metric values", "files": "files"}


def sync_all(paths: Sequence[Path], *, uri: str | None = None) -> str:
    """Bring MLflow up to date with several runs, as `sync` does with one. Return what was missing.

    Raises:
        ConfigError: with the faults of all runs; the others are up to date.
    """
    told, faults = [], []
    for path in paths:
        try:
            if uri is None:
                _refuse_named_server(path)
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
        DataError: a record of the run is damaged or absent; nothing of it is sent.
    """
    directory = RunDirectory(path)
    config = _config_of(directory)
    if config.tracking.name == "none" and uri is None:
        raise ConfigError(
            f"{path} was trained with `tracking=none`: give `tracking.uri=...` to record it in MLflow."
        )
    with _not_in_use(directory):
        lines, run_id = _sync_training(directory, config, uri=uri)
        for folder in (directory.path, *sorted(directory.other_evaluations.glob("*/"))):
            lines += _sync_evaluations(RunDirectory(folder), directory, config, run_id, uri=uri)
    return "\n".join(lines)


def _refuse_named_server(path: Path) -> None:
    """Refuse to send a run to a server because its files say so: they may be a stranger's.

    Raises:
        ConfigError: with the command that says where to send it.
    """
    directory = RunDirectory(path)
    stores = [_config_of(directory).tracking.uri]
    stores += [record.get("tracking_uri") for record in directory.read_evaluations()]
    for store in stores:
        if store is not None and not str(store).startswith(("sqlite:", "file:")):
            shown = without_private_parts(str(store))
            raise ConfigError(
                f"{path} was tracked in {shown}. Files of a run do not decide where data goes, so "
                f"say it: psy-agents tracking sync {path} tracking.uri={shown}"
            )


def _config_of(directory: RunDirectory) -> TrainConfig:
    if not (directory.config.is_file() and directory.manifest.is_file()):
        raise ConfigError(
            "`psy-agents tracking sync` must be given directories of runs, but config.yaml or "
            f"manifest.json is missing in {directory.path}."
        )
    with _records_needed():
        recorded = directory.read_config()
        try:
            return validate_train_config(as_of_today(recorded))
        except ConfigError as error:
            raise ConfigError(f"{directory.config} is not valid: {error}") from error


@contextmanager
def _records_needed() -> Iterator[None]:
    """Add what to do to the error of a record that is damaged or absent.

    Raises:
        DataError: in place of any error of a record.
    """
    try:
        yield
    except (ConfigError, DataError) as error:
        told = str(error)
        raise DataError(told if told.endswith(_REMEDY) else f"{told}\n{_REMEDY}") from error


def _check_present(*paths: Path) -> None:
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is not there.")


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
            "output_dir": output_dir_of(directory.path, config.task.name),
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
    with _records_needed():
        manifest = read_json(directory.manifest)
        with using(directory.manifest, refusal=DataError, remedy=_REMEDY):
            is_finished = manifest["status"] == "finished"
            has_figures = is_finished and REFIT not in manifest
            steps = int(manifest["steps"]) if is_finished else 0
            data = manifest["data"]
            fingerprints = {key: data[key] for key in data.keys() - {"name", "splits_origin"}}
        history = read_history(directory.history)
        # An adaptation has posts alone: no splits, no labels, and nothing is predicted.
        has_labels = not isinstance(config, AdaptConfig)
        if has_labels:
            _check_present(directory.splits, directory.alignment)
        if is_finished:
            _check_present(directory.history)
        if has_figures:
            _check_present(directory.metrics)
            if has_labels:
                _check_present(directory.predictions_of("val"))
        figures = directory.figures("val") if has_figures else {}
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
        send_start(tracker, directory, config, dict(sorted(fingerprints.items())))
        send_history(tracker, history)
        if has_figures:
            send_report(tracker, directory, "val", figures, step=steps)
        if is_finished:
            for path in (directory.manifest, directory.history):
                tracker.log_artifact(path)
            send_made_report(tracker, directory)
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
    records = [record for record in folder.read_evaluations() if record.get("mlflow_run_id")]
    with using(folder.evaluations, refusal=DataError, remedy=_REMEDY):
        last = {record["split"]: record for record in records}
    told = []
    for split, record in last.items():
        with using(folder.evaluations, refusal=DataError, remedy=_REMEDY):
            weights = {"checkpoint_weights_sha256": record["weights_sha256"]}
            tags = {"mlflow.parentRunId": parent_run_id, **weights, **record["data"]}
            store, step = record["tracking_uri"], record["step"]
        figures = folder.figures(split)
        name = f"{folder.path.name}-{split}"
        tracker = _open(
            run,
            config,
            name,
            record["mlflow_run_id"],
            uri=uri or store,
            parent_run_id=parent_run_id,
        )
        if tracker.run_id != record["mlflow_run_id"]:
            folder.replace_mlflow_run(record["mlflow_run_id"], tracker.run_id)
        with tracking_status(tracker):
            tracker.set_tags(tags)
            if figures:
                send_report(tracker, folder, split, figures, step=step)
                send_made_report(tracker, folder)
            _finish(tracker, "FINISHED" if figures else "KILLED")
        told.append(_told(folder.path, tracker, split))
    return told


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
