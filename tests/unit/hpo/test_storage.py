import inspect
import sqlite3
import sys
import threading
import warnings
from unittest.mock import create_autospec

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.hpo.storage import StudyStorage, open_storage, storage_url


@pytest.fixture
def storage(tmp_path):
    storage = open_storage(
        f"sqlite:///{tmp_path / 'study.db'}", heartbeat_seconds=1, patience_seconds=0.5
    )
    yield storage
    storage.close()


@pytest.fixture
def storage_with_heartbeats(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        rdb = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}", heartbeat_interval=1)
    yield StudyStorage(rdb, patience_seconds=0.5)
    rdb.engine.dispose()


def gone() -> Exception:
    error = StorageInternalError("during the commit")
    error.__cause__ = sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed"))
    return error


def test_an_error_that_stands_for_itself_is_not_taken_for_an_outage(storage: StudyStorage):
    calls = []

    def call():
        calls.append(1)
        try:
            raise gone()
        except StorageInternalError:
            raise StorageInternalError("no such study") from None

    with pytest.raises(StorageInternalError, match="no such study"):
        storage.retry_while_away(call)
    assert len(calls) == 1


def test_an_outage_is_waited_out(storage: StudyStorage, caplog):
    answers = [gone(), gone(), 7]

    def call():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert storage.retry_while_away(call) == 7
    assert caplog.text.count("The storage went away") == 1
    assert not storage.has_been_reachable_for(60.0)


def test_an_outage_between_two_statements_is_waited_out(storage: StudyStorage, caplog):
    # Optuna reads all trials once more after an error, over the connection that is gone.
    study = optuna.create_study(storage=storage)
    study.ask()
    cuts = [sqlite3.OperationalError("server closed")]

    @sqlalchemy.event.listens_for(storage.rdb.engine, "do_execute")
    def cut(_cursor, statement, *_):
        if cuts and "FROM trials" in statement:
            raise cuts.pop()

    @sqlalchemy.event.listens_for(storage.rdb.engine, "handle_error")
    def lose_the_connection(context):
        context.is_disconnect = True

    assert len(study.get_trials()) == 1
    assert not cuts
    assert "The storage went away ((sqlite3.OperationalError) server closed)" in caplog.text


def test_a_storage_just_opened_has_not_been_reachable_for_long(storage: StudyStorage):
    assert storage.has_been_reachable_for(0.0)
    assert not storage.has_been_reachable_for(60.0)


def test_patience_ends(storage: StudyStorage):
    def call():
        raise gone()

    with pytest.raises(ConfigError, match="has been away for"):
        storage.retry_while_away(call)


def test_another_fault_is_not_waited_out(storage: StudyStorage):
    def call():
        raise StorageInternalError("too long")

    with pytest.raises(StorageInternalError):
        storage.retry_while_away(call)


@pytest.mark.parametrize(
    "name", [*sorted(BaseStorage.__abstractmethods__), "get_trial_id_from_study_id_trial_number"]
)
def test_every_operation_of_a_storage_is_retried_with_its_arguments(
    storage: StudyStorage, monkeypatch, name
):
    inner = create_autospec(BaseStorage, instance=True)
    operation = getattr(inner, name)
    operation.side_effect = [gone(), "the answer"]
    monkeypatch.setattr(storage, "_inner", inner)
    arguments = {key: f"the {key}" for key in inspect.signature(operation).parameters}
    getattr(storage, name)(**arguments)
    assert operation.call_count == 2
    bound = inspect.signature(operation).bind(*operation.call_args.args)
    assert bound.arguments == arguments


def test_finished_trials_are_read_from_the_database_once(storage: StudyStorage):
    # Optuna's cache, which `optuna.storages.get_storage` adds.
    study = optuna.create_study(storage=storage)
    for _ in range(3):
        study.tell(study.ask(), 1.0)
    assert len(study.get_trials()) == 3
    statements = []

    @sqlalchemy.event.listens_for(storage.rdb.engine, "do_execute")
    def record(_cursor, statement, *_):
        statements.append(statement)

    assert [trial.value for trial in study.get_trials()] == [1.0] * 3
    assert not [statement for statement in statements if "trial_values" in statement]


def test_a_trial_whose_heartbeats_stopped_is_failed(storage_with_heartbeats, monkeypatch):
    storage = storage_with_heartbeats
    study = optuna.create_study(storage=storage, study_name="study")
    study_id = storage.get_study_id_from_name("study")
    for _ in range(2):
        trial = study.ask()
        storage.record_heartbeat(
            storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        )
    with storage.rdb.engine.begin() as connection:
        old = "UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00' WHERE trial_id = 1"
        connection.execute(sqlalchemy.text(old))
    # The storage has just been opened: live workers may not have sent heartbeats yet.
    storage.fail_stale_trials("study")
    assert study.trials[0].state == TrialState.RUNNING
    monkeypatch.setattr(storage, "has_been_reachable_for", lambda _: True)
    storage.fail_stale_trials("study")
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.RUNNING]


def test_heartbeats_go_on_after_one_was_lost(storage_with_heartbeats, monkeypatch):
    storage, recorded, answers = storage_with_heartbeats, threading.Event(), [gone()]

    def record_heartbeat(trial_id):
        if answers:
            raise answers.pop()
        assert trial_id == 7
        recorded.set()

    monkeypatch.setattr(storage.rdb, "record_heartbeat", record_heartbeat)
    monkeypatch.setattr(storage, "heartbeat_seconds", 0.01)
    monkeypatch.setattr(storage, "_last_outage", float("-inf"))
    with storage.heartbeats(7):
        assert recorded.wait(10.0)
    assert not storage.has_been_reachable_for(60.0)


def test_a_storage_is_sqlite_or_postgresql(tmp_path):
    assert storage_url(None, tmp_path) == f"sqlite:///{tmp_path}/study.db"
    assert storage_url("postgresql://me@host/db", tmp_path) == "postgresql+psycopg://me@host/db"
    for wrong in ("mysql://host/db", "somewhere"):
        with pytest.raises(ConfigError, match=r"`hpo\.storage` must be postgresql://"):
            storage_url(wrong, tmp_path)
    with pytest.raises(ConfigError, match=r"`output_dir` must be without question marks"):
        storage_url(None, tmp_path / "what?")


def test_a_database_without_its_driver_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'psy-agents-noaug\[postgres\]'"):
        storage_url("postgresql://host/db", tmp_path)


def test_an_unreachable_storage_is_told_without_its_password(tmp_path):
    url = storage_url("postgresql://me:secret@127.0.0.1:1/db", tmp_path)
    with pytest.raises(ConfigError, match="cannot be reached") as caught:
        open_storage(url, heartbeat_seconds=1, patience_seconds=60.0)
    assert "secret" not in str(caught.value)
