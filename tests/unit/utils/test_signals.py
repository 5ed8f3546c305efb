import signal
import threading

import pytest

from psy_agents_noaug.utils.signals import StopSignals

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def handlers() -> list:
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_noted_and_nothing_else(number):
    before = handlers()
    with StopSignals() as signals:
        assert signals.received == 0
        assert handlers() != before
        signal.raise_signal(number)
        assert signals.received == number
    assert handlers() == before


def test_ctrl_c_after_a_first_signal_acts_at_once_and_another_sigterm_does_not():
    # A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signals.received == signal.SIGTERM


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals.received == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back_without_a_signal_and_after_an_error():
    before = handlers()
    with StopSignals():
        pass
    assert handlers() == before
    with pytest.raises(RuntimeError), StopSignals():
        raise RuntimeError
    assert handlers() == before


def test_a_signal_while_handlers_are_put_back_leaves_none_of_ours(monkeypatch):
    before, put_back = handlers(), signal.signal
    with StopSignals() as signals:

        def interrupted(number, handler):
            monkeypatch.setattr(signal, "signal", put_back)
            put_back(number, handler)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(signal, "signal", interrupted)
    assert signals.received == signal.SIGINT
    assert handlers() == before


def test_a_handler_that_python_does_not_know_is_no_error(monkeypatch):
    before, handle = handlers(), signal.signal
    monkeypatch.setattr(signal, "signal", lambda number, handler: handle(number, handler) and None)
    with StopSignals():
        pass
    assert handlers() == [signal.SIG_DFL] * len(NUMBERS)
    for number, handler in zip(NUMBERS, before, strict=True):
        handle(number, handler)


def test_another_thread_gets_no_handlers_and_no_error():
    before, seen = handlers(), []

    def work():
        with StopSignals() as signals:
            seen.append((signals.received, handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, before)]
