"""Record runs in MLflow: in a SQLite file by default, else in any MLflow store or server."""

import hashlib
import json
import math
import os
import posixpath
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.tracking.base import Status, without_private_parts
from psy_agents_noaug.tracking.delivery import Delivery, first_line
from psy_agents_noaug.tracking.store import (
    brief_http_requests,
    connect,
    existing_run,
    experiment_id,
    import_mlflow,
    is_database,
)

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

# How long the start of a run waits. A database on a slow disk takes long to make its tables.
_SERVER_PATIENCE_SECONDS = 15.0
_DATABASE_PATIENCE_SECONDS = 60.0
# How long a run waits for the store that a signal or an error has ended.
_STOPPED_PATIENCE_SECONDS = 5.0
# Characters kept free in a key for the prefix "resumed." and the number of a chunk.
_KEY_MARGIN = 16


class MlflowTracker:
    """Records one run. MLflow's global "active run" is not used, so several trackers can be open.

    MLflow is imported when the first tracker is opened. All calls to the store are made in the
    background (`Delivery`): a store that hangs, fails or refuses something is warned of once, and only
    `finish` waits for it, for a bounded time.

    Params are flattened to dotted keys (`training.learning_rate`). Values are written as JSON, but
    strings without quotes. A value that is too long for MLflow continues under `key.1`, `key.2`, ...
    In a key, characters that MLflow refuses are replaced by `_`, and a hash of the key is added.

    An MLflow param cannot be changed. If a resumed run has another value, that value becomes the
    tag `resumed.<key>`. A metric that the store has for a step is not sent again.

    Args:
        uri: MLflow tracking URI; None for `sqlite:///<output_dir>/mlflow.db`.
        experiment: name of the experiment, created if new. If `uri` is a database, artifacts are
            stored in `<output_dir>/mlartifacts`; a server stores them itself.
        run_name: name of a new run.
        output_dir: folder for the default store and artifacts.
        remedy: what brings a store up to date that has missed something, to end a warning.
        run_id: run to reopen. If the store does not have it, a new run starts, with a warning.
        parent_run_id: parent of a new run (the study of a trial).
        system_metrics: sample CPU, memory, disk, network and (with `nvidia-ml-py`) GPU use every
            10 s in a background thread, which ends with `finish`.
        patience_seconds: how long `finish` waits for the store.
        is_required: wait for a store that has let this process wait in vain before.
        adds_only: the run is over: leave its status and what the store has of it as they are, and add
            what is missing.

    Raises:
        ConfigError: MLflow is not installed, the store cannot be reached or does not answer, or the
            experiment has been deleted.
    """

    def __init__(
        self,
        *,
        uri: str | None,
        experiment: str,
        run_name: str,
        output_dir: Path,
        remedy: str = "",
        run_id: str | None = None,
        parent_run_id: str | None = None,
        system_metrics: bool = True,
        patience_seconds: float = 30.0,
        is_required: bool = True,
        adds_only: bool = False,
    ) -> None:
        import_mlflow()
        from mlflow.utils import validation

        self._max_key = validation.MAX_ENTITY_KEY_LENGTH - _KEY_MARGIN
        self._max_value = {
            "params": validation.MAX_PARAM_VAL_LENGTH,
            "tags": validation.MAX_TAG_VAL_LENGTH,
        }
        self._max_batch = {
            "params": validation.MAX_PARAMS_TAGS_PER_BATCH,
            "tags": validation.MAX_PARAMS_TAGS_PER_BATCH,
            "metrics": validation.MAX_METRICS_PER_BATCH,
        }
        self.parent_run_id = parent_run_id
        self.sent: Counter[str] = Counter()
        self._patience_seconds = patience_seconds
        self._adds_only = adds_only
        self._monitor: Any = None
        self._finished = False
        self._last_time = 0
        # Of each metric: the last value at each step.
        self._points: dict[str, dict[int, float]] = {}
        self._stored_sizes: dict[str | None, dict[str, int]] = {}

        output_dir = output_dir.resolve()
        if uri is None:
            uri = f"sqlite:///{(output_dir / 'mlflow.db').as_posix()}"
        self._http = ExitStack()
        self._http.enter_context(brief_http_requests())
        self._delivery = Delivery(store=uri, remedy=remedy)

        def start() -> "Run | None":
            client = connect(uri)
            run = None if run_id is None else existing_run(client, run_id)
            self._is_reopened = run is not None
            if run is None:
                artifacts = (output_dir / "mlartifacts").as_uri() if is_database(uri) else None
                number = experiment_id(client, experiment, artifacts=artifacts)
                if self._delivery.is_abandoned:
                    return None
                run = client.create_run(
                    number,
                    run_name=run_name,
                    tags={} if parent_run_id is None else {"mlflow.parentRunId": parent_run_id},
                )
            elif not adds_only and not self._delivery.is_abandoned:
                client.update_run(run.info.run_id, status="RUNNING")
            self._client = client
            if system_metrics and not self._delivery.is_abandoned:
                self._monitor = _start_monitor(uri, run.info.run_id, resume=self._is_reopened)
            if self._delivery.is_abandoned and not self._is_reopened:
                client.delete_run(run.info.run_id)
            return run

        limit = _DATABASE_PATIENCE_SECONDS if is_database(uri) else _SERVER_PATIENCE_SECONDS
        try:
            run = self._delivery.answer(start, seconds=limit, is_required=is_required)
        except ConfigError:
            self._http.close()
            raise
        except Exception as error:
            self._http.close()
            raise ConfigError(
                "`tracking.uri` must be an MLflow store that can be reached, but is "
                f"{without_private_parts(uri)} instead ({first_line(error)}). "
                "Start the server, set another `tracking.uri=...`, leave it unset for a local "
                "file, or train without tracking: `tracking=none`."
            ) from error
        assert run is not None
        self._run_id: str = run.info.run_id
        self._status: str = run.info.status
        self._params: dict[str, str] = dict(run.data.params)
        self._tags: dict[str, str] = dict(run.data.tags)
        self._stored_metrics = set(run.data.metrics)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._run_id

    @property
    def failure(self) -> str | None:
        """Why the store does not have everything after `finish`; None if it has."""
        return self._delivery.failure

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings as the class describes. A resumed run may repeat or change them."""
        from mlflow.entities import Param

        new: dict[str, str] = {}
        changed: dict[str, str] = {}
        for name, text in _flattened(params):
            value = without_private_parts(text)
            key = self._valid_key(name)
            chunks = _chunked(key, value, limit=self._max_value["params"])
            if key not in self._params:
                new.update(chunks)
            # A tag from an earlier resume is updated even if the first value is back.
            elif (
                f"resumed.{key}" in self._tags or {k: self._params.get(k) for k in chunks} != chunks
            ):
                changed[f"resumed.{key}"] = value
        self._params.update(new)
        self._send("params", [Param(*chunk) for chunk in new.items()])
        self.set_tags(changed)

    def log_metrics(
        self,
        metrics: Mapping[str, float | int | None],
        *,
        step: int,
        replaces: bool = False,
    ) -> None:
        """Record metrics after `step` optimizer steps; None means undefined and is skipped.

        Args:
            metrics: values by name.
            step: number of updates.
            replaces: a value that differs from the recorded one of this step is added, and is shown.
        """
        from mlflow.entities import Metric

        # Of two values at one step, MLflow shows the later one.
        self._last_time = max(int(time.time() * 1000), self._last_time + 1)
        points = [
            Metric(self._valid_key(key), float(value), self._last_time, step)
            for key, value in metrics.items()
            if value is not None
        ]
        self._delivery.call(partial(self._send_metrics, points, replaces=replaces))

    def log_artifact(self, path: Path) -> None:
        """Copy a file, or a folder with everything in it, to the run's artifacts.

        Raises:
            FileNotFoundError: `path` does not exist.
        """
        if not path.exists():
            raise FileNotFoundError(f"`path` must be a file or folder, but {path} is not there.")
        if not path.is_dir():
            self._delivery.call(partial(self._send_file, path, folder=None))
            return
        # Not by MLflow's call for folders, whose thread pools delay the end of the process.
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            folder = file.parent.relative_to(path.parent).as_posix()
            self._delivery.call(partial(self._send_file, file, folder=folder))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run. Long values are split into chunks, as those of params are."""
        from mlflow.entities import RunTag

        chunks: dict[str, str] = {}
        for name, value in tags.items():
            limit = self._max_value["tags"]
            chunks |= _chunked(self._valid_key(name), without_private_parts(value), limit=limit)
        new = {key: value for key, value in chunks.items() if self._tags.get(key) != value}
        self._tags.update(new)
        self._send("tags", [RunTag(*chunk) for chunk in new.items()])

    def close_children(self) -> None:
        """Set child runs that are still RUNNING to KILLED. Their processes must have ended."""

        def close() -> None:
            own = self._client.get_run(self._run_id)
            running = self._client.search_runs(
                [own.info.experiment_id],
                filter_string=f"tags.`mlflow.parentRunId` = '{self._run_id}' "
                "and attributes.status = 'RUNNING'",
            )
            for run in running:
                self._client.set_terminated(run.info.run_id, status="KILLED")

        self._delivery.call(close)

    def finish(self, status: Status) -> None:
        """Stop sampling, close the run, and wait until the store has everything. Once only.

        A run that has been stopped or has failed waits for a few seconds only.
        """
        if self._finished:
            return
        self._finished = True
        if self._monitor is not None:
            self._delivery.call(self._monitor.finish)
        seconds = self._patience_seconds
        if status != "FINISHED":
            seconds = min(seconds, _STOPPED_PATIENCE_SECONDS)
        try:
            self._delivery.close(partial(self._close, status), seconds=seconds)
        finally:
            self._http.close()

    def _close(self, status: Status) -> None:
        is_over = self._is_reopened and self._status != "RUNNING"
        # Of a run that was stopped, only the store knows whether by an error.
        if self._adds_only and is_over and (status == "KILLED" or status == self._status):
            return
        self._client.set_terminated(self._run_id, status=status)
        self._status = status
        self.sent["status"] += 1

    def _send(self, kind: Literal["params", "tags"], entries: Sequence[Any]) -> None:
        """Send params or tags in the background."""
        size = self._max_batch[kind]
        for start in range(0, len(entries), size):
            batch = entries[start : start + size]
            self._delivery.call(partial(self._send_batch, kind, batch))

    def _send_batch(self, kind: str, batch: Sequence[Any]) -> None:
        self._client.log_batch(self._run_id, synchronous=True, **{kind: batch})
        self.sent[kind] += len(batch)

    def _send_metrics(self, metrics: Sequence["Metric"], *, replaces: bool) -> None:
        new = [metric for metric in metrics if self._is_new(metric, replaces=replaces)]
        size = self._max_batch["metrics"]
        for start in range(0, len(new), size):
            batch = new[start : start + size]
            self._send_batch("metrics", batch)
            for metric in batch:
                self._points[metric.key][metric.step] = metric.value

    def _is_new(self, metric: "Metric", *, replaces: bool) -> bool:
        if metric.key not in self._points:
            stored = (
                self._client.get_metric_history(self._run_id, metric.key)
                if metric.key in self._stored_metrics
                else []
            )
            stored = sorted(stored, key=lambda point: point.timestamp)
            self._points[metric.key] = {point.step: point.value for point in stored}
        known = self._points[metric.key].get(metric.step)
        return known is None or (
            replaces and not math.isclose(known, metric.value, rel_tol=1e-12, abs_tol=0.0)
        )

    def _send_file(self, file: Path, *, folder: str | None) -> None:
        if self._adds_only and self._is_reopened and self._status != "RUNNING":
            if folder not in self._stored_sizes:
                self._stored_sizes[folder] = {
                    posixpath.basename(stored.path): stored.file_size
                    for stored in self._client.list_artifacts(self._run_id, folder)
                }
            if self._stored_sizes[folder].get(file.name) == file.stat().st_size:
                return
        self._client.log_artifact(self._run_id, str(file), folder)
        self.sent["files"] += 1

    def _valid_key(self, key: str) -> str:
        valid = re.sub(r"[^/\w.\- ]", "_", key)
        # MLflow also refuses keys that are not normal paths, such as "a//b" or "../a".
        if posixpath.normpath(valid) != valid or valid == "." or valid.startswith(("/", "..")):
            valid = "_" + valid.replace("/", "_")
        if valid == key and len(key) <= self._max_key:
            return key
        # The hash distinguishes two keys that differ only in such characters.
        return f"{valid[: self._max_key - 9]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def _start_monitor(uri: str, run_id: str, *, resume: bool) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=resume, tracking_uri=uri)
    monitor.start()
    return monitor


def _flattened(params: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, prefix=f"{prefix}{key}.")
        else:
            bare = isinstance(value, str | os.PathLike)
            text = str(value) if bare else json.dumps(value, default=str, ensure_ascii=False)
            yield f"{prefix}{key}", text


def _chunked(key: str, value: str, *, limit: int) -> dict[str, str]:
    """Split `value` into entries of at most `limit` characters: key, key.1, key.2, ..."""
    starts = range(0, max(len(value), 1), limit)
    return {
        key if number == 0 else f"{key}.{number}": value[start : start + limit]
        for number, start in enumerate(starts)
    }
