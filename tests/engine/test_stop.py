"""A request to stop waits while there is something to save, and ends a run at once while there is not."""

import logging
import signal
import time

import pytest

from seer.core import signals
from seer.core.log import log
from seer.engine.stop_request import SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_while_training_it_waits_and_else_it_ends_the_run_by_its_name(number):
    name = signal.Signals(number).name
    with StopRequest() as stop, stop.held():
        signal.raise_signal(number)
        assert stop.asked == name
    with pytest.raises(KeyboardInterrupt, match=name), StopRequest():
        signal.raise_signal(number)


def test_one_that_comes_twice_is_one_also_when_the_run_has_ended(monkeypatch, handlers):
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append("who was there before"))
    with pytest.raises(KeyboardInterrupt), StopRequest():
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert heard == []
    monkeypatch.setattr(signals, "TWICE_S", 0.0)
    signal.raise_signal(signal.SIGTERM)
    assert len(heard) == 1


def test_one_that_comes_again_after_training_ends_what_is_left(monkeypatch):
    monkeypatch.setattr(signals, "TWICE_S", 0.0)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        with stop.held():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)


def test_without_a_request_the_handlers_are_put_back(handlers):
    with StopRequest():
        assert signal.getsignal(signal.SIGUSR1) != handlers[signal.SIGUSR1]
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop, stop.held():
        signal.raise_signal(signal.SIGHUP)
        assert stop.asked is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_only_a_person_has_time_for_a_bundle():
    hurried = {}
    for number in SIGNALS:
        with StopRequest() as stop, stop.held():
            signal.raise_signal(number)
        hurried[number] = stop.hurried
    assert [number for number in SIGNALS if not hurried[number]] == [signal.SIGINT]


def test_a_person_is_told_at_once_in_one_line_when_once_more_ends(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, logger="seer")
    with StopRequest() as stop, stop.held():
        signal.raise_signal(signal.SIGINT)
        end = time.monotonic() + 60
        while not caplog.messages and time.monotonic() < end:
            time.sleep(0.01)
    (told,) = set(caplog.messages)  # pytest hears a logger twice that did not propagate when the test began
    assert "\n" not in told and "once more, 2 s" in told
