"""Signals are noted where they may be, and everything is put back afterwards."""

import signal
import threading

import pytest

from convpeft.training import stopping
from convpeft.training.stopping import Interrupted, Terminated, stop_requests

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def handlers() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_is_noted_and_does_nothing_else(number):
    with stop_requests() as request:
        assert request.number is None
        signal.raise_signal(number)
        assert request.number == number


def test_handlers_are_put_back():
    before = handlers()
    with stop_requests():
        assert all(one != other for one, other in zip(before, handlers(), strict=True))
    assert handlers() == before


def test_handlers_are_put_back_after_an_error():
    before = handlers()
    with pytest.raises(ZeroDivisionError), stop_requests():
        raise ZeroDivisionError
    assert handlers() == before


def test_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as request:
            signal.raise_signal(signal.SIGINT)
            assert request.number is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_take_no_signals():
    before, seen = handlers(), []

    def work() -> None:
        with stop_requests():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_who_does_not_listen_takes_no_signals():
    before = handlers()
    with stop_requests(listen=False):
        assert handlers() == before


def test_second_interrupt_stops_at_once(monkeypatch):
    monkeypatch.setattr(stopping, "_AGAIN", -1.0)
    with pytest.raises(KeyboardInterrupt), stop_requests() as request:
        signal.raise_signal(signal.SIGINT)
        assert request.number == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


def test_signal_that_comes_twice_in_a_moment_is_one():
    with stop_requests() as request:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert request.number == signal.SIGINT


def test_errors_are_those_that_python_knows():
    """So that what catches Ctrl-C or an exit still does."""
    interrupted, terminated = Interrupted(signal.SIGINT, "here"), Terminated(signal.SIGTERM, "here")
    assert isinstance(interrupted, KeyboardInterrupt)
    assert isinstance(terminated, SystemExit)
    assert (interrupted.status, terminated.status, terminated.code) == (130, 143, 143)
    assert [str(interrupted), str(terminated)] == ["stopped by SIGINT here", "stopped by SIGTERM here"]
