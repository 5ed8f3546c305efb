"""Record runs in MLflow: in a SQLite file by default, else in any MLflow store or server."""

import hashlib
import json
import logging
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.tracking.base import Status, without_private_parts
from psy_agents_noaug.utils.extras import require

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_SECONDS = 10
# Only these database drivers accept `connect_timeout`.
_DRIVERS_WITH_TIMEOUT = ("psycopg", "psycopg2", "pymysql", "mysqldb")
# Characters kept free in a key for the prefix "resumed." and the number of a chunk.
_KEY_MARGIN = 16


class MlflowTracker:
    """Records one run. MLflow's global "active run" is not used, so several trackers can be open.

    MLflow is imported when the first tracker is opened.

    Params are flattened to dotted keys (`training.learning_rate`). Values are written as JSON, but
    strings without quotes. A value that is too long for MLflow continues under `key.1`, `key.2`, ...
    In a key, characters that MLflow refuses are replaced by `_`, and a hash of the key is added.

    An MLflow param cannot be changed. If a resumed run has another value, that value becomes the
    tag `resumed.<key>`.

    If the store fails during a training, a warning is logged and training continues. Metrics,
    params and tags that were not delivered are sent again with the next call.

    Args:
        uri: MLflow tracking URI; None for `sqlite:///<output_dir>/mlflow.db`.
        experiment: name of the experiment, created if new. If `uri` is a database, artifacts are
            stored in `<output_dir>/mlartifacts`; a server stores them itself.
        run_name: name of a new run.
        output_dir: folder for the default store and artifacts.
        run_id: run to reopen. If the store does not have it, a new run starts, with a warning.
        parent_run_id: parent of a new run (the study of a trial).
        system_metrics: sample CPU, memory, disk, network and (with `nvidia-ml-py`) GPU use every
            10 s in a background thread, which ends with `finish`.

    Raises:
        ConfigError: MLflow is not installed, the store cannot be reached, or the experiment has
            been deleted.
    """

    def __init__(
        self,
        *,
        uri: str | None,
        experiment: str,
        run_name: str,
        output_dir: Path,
        run_id: str | None = None,
        parent_run_id: str | None = None,
        system_metrics: bool = True,
    ) -> None:
        import_mlflow()
        import sqlalchemy
        from mlflow.exceptions import MlflowException
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
        self._pending: dict[str, list[Any]] = {kind: [] for kind in self._max_batch}
        self._finished = False

        output_dir = output_dir.resolve()
        if uri is None:
            uri = f"sqlite:///{(output_dir / 'mlflow.db').as_posix()}"
        try:
            with _brief_http_retries():
                self._client = _connect(uri)
                run = None if run_id is None else _existing_run(self._client, run_id)
                reopened = run is not None
                if run is None:
                    artifacts = (output_dir / "mlartifacts").as_uri() if _is_database(uri) else None
                    run = self._client.create_run(
                        _experiment_id(self._client, experiment, artifacts=artifacts),
                        run_name=run_name,
                        tags={} if parent_run_id is None else {"mlflow.parentRunId": parent_run_id},
                    )
                else:
                    self._client.update_run(run.info.run_id, status="RUNNING")
        except (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError, ImportError) as error:
            raise ConfigError(
                "`tracking.uri` must be an MLflow store that can be reached, but is "
                f"{without_private_parts(uri)} instead ({without_private_parts(_first_line(error))}). "
                "Start the server, set another `tracking.uri=...`, leave it unset for a local "
                "file, or train without tracking: `tracking=none`."
            ) from error
        self._run_id: str = run.info.run_id
        self._params: dict[str, str] = dict(run.data.params)
        self._tags: set[str] = set(run.data.tags)
        self._monitor = (
            _start_monitor(uri, self._run_id, resume=reopened) if system_metrics else None
        )

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings as the class describes. A resumed run may repeat or change them."""
        from mlflow.entities import Param

        changed: dict[str, str] = {}
        for name, text in _flattened(params):
            value = without_private_parts(text)
            key = self._valid_key(name)
            chunks = _chunked(key, value, limit=self._max_value["params"])
            if key not in self._params:
                self._params.update(chunks)
                self._pending["params"] += [Param(*chunk) for chunk in chunks.items()]
            # A tag from an earlier resume is updated even if the first value is back.
            elif (
                f"resumed.{key}" in self._tags or {k: self._params.get(k) for k in chunks} != chunks
            ):
                changed[f"resumed.{key}"] = value
        self.set_tags(changed)

    def log_metrics(self, metrics: Mapping[str, float | int | None], *, step: int) -> None:
        """Record metrics after `step` optimizer steps; None means undefined and is skipped."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending["metrics"] += [
            Metric(self._valid_key(key), float(value), now, step)
            for key, value in metrics.items()
            if value is not None
        ]
        self._send_pending()

    def log_artifact(self, path: Path) -> None:
        """Copy a file, or a folder with everything in it, to the run's artifacts.

        Raises:
            FileNotFoundError: `path` does not exist.
        """
        if not path.exists():
            raise FileNotFoundError(f"`path` must be a file or folder, but {path} is not there.")
        self._deliver(partial(self._client.log_artifact, self._run_id, str(path)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run. Long values are split into chunks, as those of params are."""
        from mlflow.entities import RunTag

        for name, value in tags.items():
            chunks = _chunked(
                self._valid_key(name), without_private_parts(value), limit=self._max_value["tags"]
            )
            self._tags.update(chunks)
            self._pending["tags"] += [RunTag(*chunk) for chunk in chunks.items()]
        self._send_pending()

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

        self._deliver(close)

    def finish(self, status: Status) -> None:
        """Stop sampling, send what is pending, and close the run. A second call does nothing."""
        if self._finished:
            return
        self._finished = True
        if self._monitor is not None:
            self._monitor.finish()
        self._send_pending()
        self._deliver(partial(self._client.set_terminated, self._run_id, status=status))

    def _send_pending(self) -> None:
        for kind, queue in self._pending.items():
            while queue:
                batch = queue[: self._max_batch[kind]]
                send = partial(self._client.log_batch, self._run_id, synchronous=True)
                if not self._deliver(partial(send, **{kind: batch})):
                    return
                del queue[: len(batch)]

    def _deliver(self, send: Callable[[], object]) -> bool:
        """Call `send`. If the store fails, log a warning and return False.

        Raises:
            MlflowException: the store works, but refuses the request.
        """
        from mlflow.exceptions import MlflowException

        try:
            send()
        except (MlflowException, OSError) as error:
            if isinstance(error, MlflowException) and error.get_http_status_code() < 500:
                raise
            logger.warning(
                "MLflow could not record this; the run directory has all results (%s).",
                without_private_parts(_first_line(error)),
            )
            return False
        return True

    def _valid_key(self, key: str) -> str:
        valid = re.sub(r"[^/\w.\- ]", "_", key)
        # MLflow also refuses keys that are not normal paths, such as "a//b" or "../a".
        if posixpath.normpath(valid) != valid or valid == "." or valid.startswith(("/", "..")):
            valid = "_" + valid.replace("/", "_")
        if valid == key and len(key) <= self._max_key:
            return key
        # The hash distinguishes two keys that differ only in such characters.
        return f"{valid[: self._max_key - 9]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def import_mlflow() -> None:
    """Import MLflow without usage statistics, output on stdout and messages below WARNING.

    Raises:
        ConfigError: MLflow is not installed.
    """
    for module in ("mlflow", "sqlalchemy"):  # the small mlflow-skinny comes without the second
        require(
            module, extra="mlflow", purpose="`tracking=mlflow` (`tracking=none` trains without it)"
        )
    # Usage statistics go to a third party, and the import starts them.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Else MLflow prints a URL to stdout when a run on a server ends.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # noqa: F401

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        # At INFO, MLflow logs every migration of a new SQLite file.
        logging.getLogger("mlflow").setLevel(logging.WARNING)


@contextmanager
def _brief_http_retries() -> Iterator[None]:
    """Let HTTP requests fail within seconds; by default MLflow retries for minutes.

    Environment variables that the user has set are kept.
    """
    brief = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_CONNECT_TIMEOUT_SECONDS),
    }
    ours = {name: value for name, value in brief.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _is_database(uri: str) -> bool:
    from mlflow.store.db.db_types import DATABASE_ENGINES

    return uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES


def _connect(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    if _is_database(uri):
        _check_database(uri)
    return MlflowClient(uri)


def _check_database(uri: str) -> None:
    """Connect once. MLflow itself retries for 100 s and logs every exception."""
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    if url.get_backend_name() == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    timed = url.get_driver_name() in _DRIVERS_WITH_TIMEOUT
    engine = sqlalchemy.create_engine(
        url,
        poolclass=sqlalchemy.NullPool,
        connect_args={"connect_timeout": _CONNECT_TIMEOUT_SECONDS} if timed else {},
    )
    engine.connect().close()


def _existing_run(client: "MlflowClient", run_id: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        logger.warning("MLflow has no run %s to resume; a new run starts.", run_id)
        return None
    if run.info.lifecycle_stage != "active":
        logger.warning("MLflow's run %s was deleted; a new run starts.", run_id)
        return None
    return run


def _experiment_id(client: "MlflowClient", name: str, *, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process has just created it
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"`tracking.experiment` must not be a deleted experiment, but {name!r} is one. "
            f"Choose another name, or: mlflow experiments restore -x {found.experiment_id}"
        )
    return str(found.experiment_id)


def _start_monitor(uri: str, run_id: str, *, resume: bool) -> Any:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=resume, tracking_uri=uri)
    monitor.start()
    return monitor


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
