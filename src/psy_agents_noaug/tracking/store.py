"""Connections to an MLflow store: a SQLite file, another database, or a server."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.utils.extras import require

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_SECONDS = 10
_REQUEST_TIMEOUT_SECONDS = 30
# Only these database drivers accept `connect_timeout`.
_DRIVERS_WITH_TIMEOUT = ("psycopg", "psycopg2", "pymysql", "mysqldb")


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
        # Errors of a store are reported by us, once, and not with a traceback for every call.
        for name in ("mlflow.store.db.utils", "mlflow.system_metrics"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def brief_http_requests() -> Iterator[None]:
    """Let HTTP requests fail within seconds; by default MLflow retries for minutes, and warns each time.

    Environment variables that the user has set are kept.
    """
    brief = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_REQUEST_TIMEOUT_SECONDS),
    }
    ours = {name: value for name, value in brief.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def is_database(uri: str) -> bool:
    """Return whether a URI is a database's, which MLflow opens itself."""
    from mlflow.store.db.db_types import DATABASE_ENGINES

    return uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES


def connect(uri: str) -> "MlflowClient":
    """Return a client of the store. A database is connected to at once."""
    from mlflow import MlflowClient

    if is_database(uri):
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


def existing_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """Return a run that can be continued; None, with a warning, if it is lost or deleted."""
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


def experiment_id(client: "MlflowClient", name: str, *, artifacts: str | None) -> str:
    """Return the id of an experiment, which is created if it is new.

    Args:
        client: of the store.
        name: of the experiment.
        artifacts: URI of its artifacts; None leaves the place to the store.

    Raises:
        ConfigError: the experiment has been deleted.
    """
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
