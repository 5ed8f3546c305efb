import sqlite3

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError

from psy_agents_noaug.errors import ConfigError
from psy_agents_noaug.hpo.storage import StudyStorage, open_storage, storage_url


@pytest.fixture
def storage(tmp_path):
    storage = open_storage(
        f"sqlite:///{tmp_path / 'study.db'}", heartbeat_seconds=1, patience_seconds=0.5
    )
    yield storage
    storage.engine.dispose()


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
        storage.patiently(call)
    assert len(calls) == 1


def test_an_outage_is_waited_out(storage: StudyStorage, caplog):
    answers = [gone(), gone(), 7]

    def call():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert storage.patiently(call) == 7
    assert caplog.text.count("The storage went away") == 1
    assert not storage.has_been_back_for(60.0)


def test_an_outage_between_two_statements_is_waited_out(storage: StudyStorage, caplog):
    # Optuna reads all trials once more after an error, over the connection that is gone.
    study = optuna.create_study(storage=storage)
    study.ask()
    cuts = [sqlite3.OperationalError("server closed")]

    @sqlalchemy.event.listens_for(storage.engine, "do_execute")
    def cut(_cursor, statement, *_):
        if cuts and "FROM trials" in statement:
            raise cuts.pop()

    @sqlalchemy.event.listens_for(storage.engine, "handle_error")
    def lose_the_connection(context):
        context.is_disconnect = True

    assert len(study.get_trials()) == 1
    assert not cuts
    assert "The storage went away ((sqlite3.OperationalError) server closed)" in caplog.text


def test_a_storage_just_opened_has_not_been_there_for_long(storage: StudyStorage):
    assert storage.has_been_back_for(0.0)
    assert not storage.has_been_back_for(60.0)


def test_patience_ends(storage: StudyStorage):
    def call():
        raise gone()

    with pytest.raises(ConfigError, match="has been away for"):
        storage.patiently(call)


def test_another_fault_is_not_waited_out(storage: StudyStorage):
    def call():
        raise StorageInternalError("too long")

    with pytest.raises(StorageInternalError):
        storage.patiently(call)


def test_what_a_study_calls_is_patient():
    own = {name for name in vars(StudyStorage) if not name.startswith("__")}
    assert {"get_trial", "set_trial_state_values", "_create_new_trial", "_get_trials"} <= own


def test_a_storage_is_sqlite_or_postgresql(tmp_path):
    assert storage_url(None, tmp_path) == f"sqlite:///{tmp_path}/study.db"
    assert storage_url("postgresql://me@host/db", tmp_path) == "postgresql+psycopg://me@host/db"
    for wrong in ("mysql://host/db", "somewhere"):
        with pytest.raises(ConfigError, match=r"`hpo\.storage` must be postgresql://"):
            storage_url(wrong, tmp_path)


def test_an_unreachable_storage_is_told_without_its_password(tmp_path):
    url = storage_url("postgresql://me:secret@127.0.0.1:1/db", tmp_path)
    with pytest.raises(ConfigError, match="cannot be reached") as caught:
        open_storage(url, heartbeat_seconds=1, patience_seconds=60.0)
    assert "secret" not in str(caught.value)
