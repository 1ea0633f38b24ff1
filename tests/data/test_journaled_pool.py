"""Requests to stop while the pool forks its processes; its journal and its kills are tested with `seer shard`."""

import multiprocessing
import os
import pickle
import signal
import time

import pytest

from seer.core.signals import SIGNALS
from seer.data.shards import journaled_pool


def test_a_request_that_comes_while_processes_are_forked_is_heard_when_they_are():
    """What a handler raises in a hook around a fork is printed there and lost."""
    heard: list[str] = []
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append("request"))
    try:
        with journaled_pool._heard_afterwards():
            signal.raise_signal(signal.SIGUSR1)
            heard.append("forked")
        assert heard == ["forked", "request"]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_a_process_that_is_asked_to_stop_while_it_waits_for_work_ends_without_a_traceback(capfd):
    """As when all processes of a job hear a request, and the one that hands out the work is slow."""
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()

    def asked(*_: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    def waits() -> None:
        journaled_pool._begin(os.getppid(), asked)
        ready.set()
        while True:
            time.sleep(0.01)

    process = fork.Process(target=waits)
    process.start()
    assert ready.wait(60)
    process.terminate()
    process.join(60)
    assert process.exitcode == 1 and capfd.readouterr().err == ""


def test_what_ends_a_process_at_work_comes_back_as_the_request_by_its_name():
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        raise pickle.loads(pickle.dumps(journaled_pool._Asked("SIGTERM")))
