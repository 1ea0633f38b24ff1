"""Who is given up: a rank that falls silent, but not one that has left in order."""

import datetime
import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from seer.core.errors import Interrupted, LostPeer
from seer.parallel.heartbeat import Heartbeat

SILENT_S = 0.1


@pytest.fixture
def pair() -> Iterator[tuple[Heartbeat, Heartbeat]]:
    """Two ranks that have beaten once, without their threads."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=datetime.timedelta(seconds=5))
    ranks = Heartbeat(0, 2, store, 60), Heartbeat(1, 2, store, 60)
    for watch in ranks:
        watch._beat(0)
    yield ranks


def lost(watch: Heartbeat) -> bool:
    """Whether the other one, silent from now on, is given up."""
    watch._poll_peers(SILENT_S)
    time.sleep(2 * SILENT_S)
    watch._poll_peers(SILENT_S)
    return watch._told is not None


@pytest.mark.parametrize("error", [None, Interrupted("stopped", 3)])
def test_a_rank_that_left_in_order_is_not_given_up_by_one_that_still_writes(pair, error):
    first, second = pair
    second.__exit__(error and type(error), error, None)
    assert not lost(first)


@pytest.mark.parametrize("error", [SystemExit(), None])
def test_a_rank_that_falls_silent_is_given_up(pair, error):
    first, second = pair
    if error:
        second.__exit__(type(error), error, None)
    assert lost(first) and isinstance(first._told, LostPeer) and "rank 1" in str(first._told)


@pytest.mark.parametrize("reports", [True, False])
def test_a_process_that_is_ended_in_a_call_says_why_where_it_is_the_one_that_reports(
    pair, monkeypatch, caplog, reports
):
    ends: list[int] = []
    monkeypatch.setattr("seer.parallel.heartbeat.GRACE_S", 0)
    monkeypatch.setattr("seer.parallel.heartbeat.os._exit", ends.append)
    monkeypatch.setattr("seer.core.log.log.propagate", True)
    pair[0]._end(LostPeer("rank 1 is gone", 75, reports=reports))
    assert ends == [75] and ("rank 1 is gone" in caplog.text) == reports
