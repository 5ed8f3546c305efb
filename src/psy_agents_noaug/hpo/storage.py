"""Where a study is kept: SQLite for one process, PostgreSQL for any number of workers anywhere."""

import functools
import hashlib
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.tracking.base import without_private_parts

T = TypeVar("T")

# A heartbeat this many intervals old is of a dead worker.
STALE_AFTER = 4
# A connection whose other end is gone without a word is given up after about a minute.
_POSTGRESQL = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "options": "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}
_LONGEST_PAUSE_SECONDS = 5.0
# What a study does to its storage; each is one transaction.
_OPERATIONS = (
    "create_new_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "_create_new_trial",
    "_set_trial_param",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_id_from_study_id_trial_number",
    "get_trial",
    "get_all_trials",
    "_get_best_trial_id",
    "record_heartbeat",
    "_get_trials",
    "_get_stale_trial_ids",
)

logger = logging.getLogger(__name__)


class StorageAwayError(ConfigError):
    """The storage stayed away for longer than patience lasts."""


class StudyStorage(RDBStorage):
    """Optuna's storage, which waits where the database went away.

    An operation that the database may have carried out before its answer was lost is repeated: a trial
    may be created twice so, and `workers` buries the one that nobody works on.
    """

    def __init__(self, url: str, *, heartbeat_seconds: int | None, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._is_patient = False
        # Whether others live cannot be told before they had time to say so.
        self.last_outage = time.monotonic()
        is_sqlite = url.startswith("sqlite")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(
                url,
                engine_kwargs={
                    # A connection that a restart has cut is replaced, not used.
                    "pool_pre_ping": True,
                    "connect_args": {"timeout": 60} if is_sqlite else _POSTGRESQL,
                },
                heartbeat_interval=heartbeat_seconds,
                grace_period=heartbeat_seconds and STALE_AFTER * heartbeat_seconds,
            )
        self._is_patient = True

    def patiently(self, call: Callable[[], T]) -> T:
        """Call until the database answers, for as long as patience lasts.

        Raises:
            StorageAwayError: patience is over.
        """
        began, pause, is_told = time.monotonic(), 0.1, False
        while True:
            try:
                return call()
            except (StorageInternalError, DBAPIError) as error:
                if not self._is_patient or _lost_connection(error) is None:
                    raise
                if time.monotonic() - began > self._patience_seconds:
                    raise StorageAwayError(
                        f"`hpo.storage` has been away for {self._patience_seconds:.0f} s: "
                        f"{_first_line(error)} Start the same command again when it is back; nothing "
                        "is lost."
                    ) from error
                if not is_told:
                    logger.warning("The storage went away (%s): waiting.", _first_line(error))
                is_told = True
                self.last_outage = time.monotonic()
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def has_been_back_for(self, seconds: float) -> bool:
        """Whether the storage has been there for so long since it was opened, or since an outage."""
        return time.monotonic() - self.last_outage > seconds


def _patient(name: str) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def call(self: StudyStorage, *arguments: Any, **named: Any) -> Any:
        return self.patiently(lambda: method(self, *arguments, **named))

    return call


for _name in _OPERATIONS:
    setattr(StudyStorage, _name, _patient(_name))


class StudyLock:
    """What one worker of a study does at a time, on whatever machine: an advisory lock in PostgreSQL.

    With SQLite there is one worker, and nothing to lock. Held, it may be lost with the connection.
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
        """Hold the lock; as patiently as `storage`, if one is given."""
        if self._engine is None:
            yield
            return
        connection = storage.patiently(self._take) if storage else self._take()
        self._connection = connection
        try:
            yield
        finally:
            self._connection = None
            try:
                connection.close()
            except SQLAlchemyError as error:
                logger.debug("The lock's connection was gone: %s", _first_line(error))

    def is_still_held(self) -> bool:
        """Whether the connection that holds the lock is alive."""
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
            # Given back with the connection, also when the process is killed.
            lock = sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)")
            connection.execute(lock, {"key": self._key})
        except BaseException:
            connection.close()
            raise
        return connection


class Heartbeat:
    """Signs of life of a trial's worker, sent from a thread of its own, also after an outage."""

    def __init__(self, storage: StudyStorage, trial_id: int) -> None:
        self._storage = storage
        self._trial_id = trial_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        interval = self._storage.get_heartbeat_interval()
        assert interval is not None
        while not self._stop.wait(interval):
            try:
                # Not patiently: the end of the trial would wait for the end of the outage twice.
                RDBStorage.record_heartbeat(self._storage, self._trial_id)
            except (StorageInternalError, SQLAlchemyError) as error:
                self._storage.last_outage = time.monotonic()
                logger.debug("A heartbeat was lost: %s", _first_line(error))


def heartbeat_of(storage: StudyStorage, trial_id: int) -> AbstractContextManager[None]:
    """Return the heartbeat of a trial, or nothing where no other worker listens."""
    return (
        nullcontext() if storage.get_heartbeat_interval() is None else Heartbeat(storage, trial_id)
    )


def storage_url(storage: str | None, folder: Path) -> str:
    """Return SQLAlchemy's URL of `hpo.storage`; None is a SQLite file in `folder`.

    Raises:
        ConfigError: neither SQLite nor PostgreSQL, or its driver is not installed.
    """
    if storage is None:
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
                "A PostgreSQL driver must be installed for `hpo.storage`: pip install 'psycopg[binary]'"
            ) from error
    return url.render_as_string(hide_password=False)


def open_storage(url: str, *, heartbeat_seconds: int, patience_seconds: float) -> StudyStorage:
    """Connect, and make the tables if there are none.

    Raises:
        ConfigError: the storage cannot be reached.
    """
    is_sqlite = url.startswith("sqlite")
    try:
        # Two workers that start together would make the tables twice.
        with StudyLock(url, "tables").held():
            return StudyStorage(
                url,
                heartbeat_seconds=None if is_sqlite else heartbeat_seconds,
                patience_seconds=patience_seconds,
            )
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        raise ConfigError(
            f"`hpo.storage` {without_private_parts(url)} cannot be reached: {_first_line(error)} Start "
            "the server, or leave `hpo.storage` out for a SQLite file and one worker."
        ) from error


def _lost_connection(error: Exception) -> DBAPIError | None:
    """Return the failure of the connection, not of what was said over it, that led to `error`, if any.

    Not always its immediate cause: Optuna meets some with another query, which fails in its own way.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError) or (
            isinstance(cause, DBAPIError) and cause.connection_invalidated
        ):
            return cause
        cause = cause.__cause__ if cause.__suppress_context__ else cause.__context__
    return None


def _first_line(error: Exception) -> str:
    lines = str(_lost_connection(error) or error.__cause__ or error).strip().splitlines()
    return without_private_parts(lines[0]) if lines else type(error).__name__
