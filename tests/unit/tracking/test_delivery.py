"""Calls that are made in the background."""

import threading

import pytest

from psy_agents_noaug.tracking import delivery
from psy_agents_noaug.tracking.delivery import Delivery


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
