"""A request to stop waits while there is something to save, and ends a run at once while there is not."""

import signal

import pytest

from seer.engine import stop as module
from seer.engine.stop import SIGNALS, StopRequest


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
    monkeypatch.setattr(module, "TWICE_S", 0.0)
    signal.raise_signal(signal.SIGTERM)
    assert len(heard) == 1


def test_one_that_comes_again_after_training_ends_what_is_left(monkeypatch):
    monkeypatch.setattr(module, "TWICE_S", 0.0)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        with stop.held():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)


def test_without_a_request_the_handlers_are_put_back(handlers):
    with StopRequest():
        assert signal.getsignal(signal.SIGUSR1) != handlers[signal.SIGUSR1]
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers
