"""Calls that are made in the background."""

import threading

import pytest

from psy_agents_noaug.tracking import delivery
from psy_agents_noaug.tracking.delivery import Delivery, first_line


def test_a_wait_that_is_interrupted_is_not_the_stores_fault(monkeypatch, caplog):
    calls, release = Delivery(store="here", remedy="..."), threading.Event()

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(calls._is_done, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calls.close(lambda: release.wait(10), seconds=5)
    release.set()
    assert "(the wait for it was interrupted)" in caplog.text
    assert calls.failure is not None
    assert "here" not in delivery._away


@pytest.mark.parametrize(
    "message",
    [
        "attempt to write a readonly database",
        "(sqlite3.OperationalError) attempt to write a readonly database\n[SQL: UPDATE runs ...]",
        "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block "
        "if this flush is occurring prematurely)\n"
        "(sqlite3.OperationalError) attempt to write a readonly database\n[SQL: INSERT ...]",
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_database(message):
    assert first_line(RuntimeError(message)) == "attempt to write a readonly database"


def test_an_error_without_words_is_told_by_its_type():
    assert first_line(RuntimeError()) == "RuntimeError"
    assert first_line(RuntimeError("(raised as a result of a test)")) == (
        "(raised as a result of a test)"
    )
