"""Requests to stop while the pool forks its processes; its journal and its kills are tested with `seer shard`."""

import signal

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
