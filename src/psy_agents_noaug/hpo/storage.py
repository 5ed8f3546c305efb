"""Where a study is stored: SQLite for one process, PostgreSQL for workers on any number of machines."""

import hashlib
import logging
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.tracking.base import without_private_parts

P = ParamSpec("P")
T = TypeVar("T")

# A trial is stale if its last heartbeat is this many intervals old.
_STALE_AFTER = 4
# With these timeouts a broken connection is detected within about a minute.
_POSTGRESQL = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "options": "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}
_LONGEST_PAUSE_SECONDS = 5.0

logger = logging.getLogger(__name__)


class StorageAwayError(ConfigError):
    """The storage was unreachable for longer than `hpo.patience_seconds`."""


class StorageDamagedError(ConfigError):
    """The file of a SQLite storage is no database any more."""


class StudyStorage(BaseStorage):
    """Optuna's `RDBStorage`, with every operation retried while the database is unreachable.

    An operation is repeated if the connection breaks before its answer arrives, although the database
    may have carried it out. A trial can be created twice in this way; `workers` withdraws the one that
    no worker runs.

    Args:
        rdb: the database.
        patience_seconds: how long an operation is retried before it fails.
    """

    def __init__(self, rdb: RDBStorage, *, patience_seconds: float) -> None:
        self.rdb = rdb
        self.heartbeat_seconds = rdb.get_heartbeat_interval()
        # Optuna's cache of finished trials. Without it each read loads every trial of the study.
        self._inner = optuna.storages.get_storage(rdb)
        self._patience_seconds = patience_seconds
        # Other workers may have been unable to send heartbeats until now.
        self._last_outage = time.monotonic()

    def retry_while_away(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `call` returns; repeat it while the database is unreachable.

        Raises:
            StorageAwayError: the database was unreachable for `patience_seconds`.
            StorageDamagedError: the file of a SQLite database is damaged.
        """
        began, pause, is_logged = time.monotonic(), 0.1, False
        while True:
            try:
                return call(*args, **kwargs)
            except (StorageInternalError, DBAPIError) as error:
                if _is_damage(error):
                    raise _damaged(str(self.rdb.url), error) from error
                if _lost_connection(error) is None:
                    raise
                if time.monotonic() - began > self._patience_seconds:
                    raise StorageAwayError(
                        f"`hpo.storage` has been away for {self._patience_seconds:.0f} s: "
                        f"{_first_line(error)} Start the same command again when it is back; no "
                        "result is lost."
                    ) from error
                if not is_logged:
                    logger.warning("The storage went away (%s): waiting.", _first_line(error))
                is_logged = True
                self._last_outage = time.monotonic()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def has_been_reachable_for(self, seconds: float) -> bool:
        """Return whether the storage was opened, and last unreachable, more than `seconds` ago."""
        return time.monotonic() - self._last_outage > seconds

    def fail_stale_trials(self, study_name: str) -> None:
        """Fail the running trials of a study whose workers stopped sending heartbeats.

        Does nothing without heartbeats, or soon after an outage: the heartbeats of live workers were
        lost in it too.
        """
        interval = self.heartbeat_seconds
        if interval is None:
            return

        def fail() -> None:
            if not self.has_been_reachable_for(_STALE_AFTER * interval):
                return
            # Not the worker's study: Optuna looks for stale trials only in storages of its own.
            study = optuna.load_study(study_name=study_name, storage=self._inner)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                optuna.storages.fail_stale_trials(study)

        self.retry_while_away(fail)

    def record_heartbeat(self, trial_id: int) -> None:
        """Record that a worker runs the trial."""
        self.retry_while_away(self.rdb.record_heartbeat, trial_id)

    @contextmanager
    def heartbeats(self, trial_id: int) -> Iterator[None]:
        """Record a heartbeat of the trial at every interval, in a thread; nothing without heartbeats."""
        if self.heartbeat_seconds is None:
            yield
            return
        stop = threading.Event()
        thread = threading.Thread(
            target=self._send_heartbeats, args=(trial_id, stop), name="heartbeat", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _send_heartbeats(self, trial_id: int, stop: threading.Event) -> None:
        while not stop.wait(self.heartbeat_seconds):
            try:
                # Without retries, or the end of the trial would have to wait for them.
                self.rdb.record_heartbeat(trial_id)
            except (StorageInternalError, SQLAlchemyError) as error:
                self._last_outage = time.monotonic()
                logger.debug("A heartbeat was lost: %s", _first_line(error))

    # The methods of `BaseStorage`.

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        return self.retry_while_away(self._inner.create_new_study, directions, study_name)

    def delete_study(self, study_id: int) -> None:
        self.retry_while_away(self._inner.delete_study, study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self.retry_while_away(self._inner.set_study_user_attr, study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.retry_while_away(self._inner.set_study_system_attr, study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        return self.retry_while_away(self._inner.get_study_id_from_name, study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self.retry_while_away(self._inner.get_study_name_from_id, study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self.retry_while_away(self._inner.get_study_directions, study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self.retry_while_away(self._inner.get_study_user_attrs, study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self.retry_while_away(self._inner.get_study_system_attrs, study_id)

    def get_all_studies(self) -> list[Any]:
        return self.retry_while_away(self._inner.get_all_studies)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        return self.retry_while_away(self._inner.create_new_trial, study_id, template_trial)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        self.retry_while_away(
            self._inner.set_trial_param, trial_id, param_name, param_value_internal, distribution
        )

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self.retry_while_away(
            self._inner.get_trial_id_from_study_id_trial_number, study_id, trial_number
        )

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        return self.retry_while_away(self._inner.set_trial_state_values, trial_id, state, values)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        self.retry_while_away(
            self._inner.set_trial_intermediate_value, trial_id, step, intermediate_value
        )

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.retry_while_away(self._inner.set_trial_user_attr, trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.retry_while_away(self._inner.set_trial_system_attr, trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self.retry_while_away(self._inner.get_trial, trial_id)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        return self.retry_while_away(self._inner.get_all_trials, study_id, deepcopy, states)

    def remove_session(self) -> None:
        self._inner.remove_session()

    def close(self) -> None:
        """Close all connections to the database."""
        self._inner.remove_session()
        self.rdb.engine.dispose()


class StudyLock:
    """A lock that at most one worker of a study holds: an advisory lock of PostgreSQL.

    With SQLite there is only one worker, and the lock does nothing. The lock is lost if the connection
    breaks.

    Args:
        url: SQLAlchemy's URL of the database.
        study: the name of what is locked.
    """

    def __init__(self, url: str, study: str) -> None:
        self._key = int.from_bytes(hashlib.sha256(study.encode()).digest()[:8], "big", signed=True)
        self._engine = (
            None
            if url.startswith("sqlite")
            else sqlalchemy.create_engine(
                url,
                poolclass=NullPool,
                connect_args=_POSTGRESQL,
            )
        )
        self._connection: sqlalchemy.Connection | None = None

    @contextmanager
    def held(self, storage: StudyStorage | None = None) -> Iterator[None]:
        """Hold the lock; wait for an unreachable database as `storage` does, if it is given."""
        if self._engine is None:
            yield
            return
        connection = storage.retry_while_away(self._take) if storage else self._take()
        self._connection = connection
        try:
            yield
        finally:
            self._connection = None
            try:
                connection.close()
            except SQLAlchemyError as error:
                logger.debug("The lock's connection was lost: %s", _first_line(error))

    def is_still_held(self) -> bool:
        """Return whether the connection that holds the lock is still open."""
        if self._engine is None:
            return True
        assert self._connection is not None
        try:
            self._connection.execute(sqlalchemy.text("SELECT 1"))
        except SQLAlchemyError:
            return False
        return True

    def _take(self) -> sqlalchemy.Connection:
        assert self._engine is not None
        connection = self._engine.connect()
        try:
            # Released when the connection closes, also when the process is killed.
            lock = sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)")
            connection.execute(lock, {"key": self._key})
        except BaseException:
            connection.close()
            raise
        return connection


def storage_url(storage: str | None, folder: Path) -> str:
    """Return SQLAlchemy's URL of the database of `hpo.storage`.

    Args:
        storage: `hpo.storage`; None stands for a SQLite file in `folder`.
        folder: the results folder of the stage.

    Raises:
        ConfigError: it is neither SQLite nor PostgreSQL, or the driver is not installed.
    """
    if storage is None:
        if "?" in str(folder):
            raise ConfigError(
                "`output_dir` must be without question marks, which end a file's name in the URL of a "
                f"SQLite database, but the results would be in {folder}."
            )
        return f"sqlite:///{(folder / 'study.db').absolute().as_posix()}"
    try:
        url = sqlalchemy.make_url(storage)
    except (SQLAlchemyError, ValueError):
        url = None
    backend = url.get_backend_name() if url is not None else ""
    if url is None or backend not in ("sqlite", "postgresql"):
        raise ConfigError(
            "`hpo.storage` must be postgresql://[user@]host/database or sqlite:///FILE, but is "
            f"{without_private_parts(storage)} instead."
        )
    if backend == "postgresql":
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
        try:
            url.get_dialect().import_dbapi()
        except (ImportError, SQLAlchemyError) as error:
            raise ConfigError(
                "A PostgreSQL driver must be installed for `hpo.storage`: "
                "pip install 'psy-agents-noaug[postgres]'"
            ) from error
    return url.render_as_string(hide_password=False)


def open_storage(url: str, *, heartbeat_seconds: int, patience_seconds: float) -> StudyStorage:
    """Connect to the database, and create the tables if there are none.

    Args:
        url: SQLAlchemy's URL of the database.
        heartbeat_seconds: the interval of heartbeats; not used with SQLite.
        patience_seconds: how long an operation is retried while the database is unreachable.

    Raises:
        ConfigError: the database cannot be reached, or is damaged.
    """
    is_sqlite = url.startswith("sqlite")
    try:
        if is_sqlite:
            _check_file(url)
        # Two workers that start at the same time must not both create the tables.
        with StudyLock(url, "tables").held(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            rdb = RDBStorage(
                url,
                engine_kwargs={
                    # Replaces connections that a restart of the server has closed.
                    "pool_pre_ping": True,
                    "connect_args": {"timeout": 60} if is_sqlite else _POSTGRESQL,
                },
                heartbeat_interval=None if is_sqlite else heartbeat_seconds,
                grace_period=None if is_sqlite else _STALE_AFTER * heartbeat_seconds,
            )
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        if _is_damage(error):
            raise _damaged(url, error) from error
        raise ConfigError(
            f"`hpo.storage` {without_private_parts(url)} cannot be reached: {_first_line(error)} Start "
            "the server, or leave `hpo.storage` out for a SQLite file and one worker."
        ) from error
    return StudyStorage(rdb, patience_seconds=patience_seconds)


def _check_file(url: str) -> None:
    """Read all pages of a SQLite database; damage may otherwise show after hours.

    Raises:
        ConfigError, SQLAlchemyError: it is damaged, or cannot be opened.
    """
    engine = sqlalchemy.create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        found = connection.execute(sqlalchemy.text("PRAGMA quick_check(1)")).scalar()
    if found != "ok":
        raise _damaged(url, RuntimeError(str(found)))


def _is_damage(error: Exception) -> bool:
    codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return any(getattr(cause, "sqlite_errorcode", None) in codes for cause in _causes(error))


def _damaged(url: str, error: Exception) -> StorageDamagedError:
    fault = _first_line(error).rstrip(".")
    return StorageDamagedError(
        f"`hpo.storage` {without_private_parts(url)} is damaged: {fault}. Put a copy of the file in its "
        "place, or move it away and start the search again; the directories of its runs are kept."
    )


def _causes(error: Exception) -> Iterator[BaseException]:
    """Yield the whole chain: Optuna handles some errors by another query, which fails in its own way."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ if cause.__suppress_context__ else cause.__context__


def _lost_connection(error: Exception) -> DBAPIError | None:
    """Return the failure of the connection that led to `error`; None if a statement itself failed."""
    for cause in _causes(error):
        if isinstance(cause, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError) or (
            isinstance(cause, DBAPIError) and cause.connection_invalidated
        ):
            return cause
    return None


def _first_line(error: Exception) -> str:
    lines = str(_lost_connection(error) or error.__cause__ or error).strip().splitlines()
    return without_private_parts(lines[0]) if lines else type(error).__name__
