"""The helper that starts ranks: it returns what each has found, and of several failures tells the one that came first."""

import os
import signal

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks

pytestmark = pytest.mark.slow


def add(world, number):
    total = torch.tensor(float(number * (world.rank + 1)))
    dist.all_reduce(total, group=world.group)
    return {"rank": world.rank, "total": total, "threads": torch.get_num_threads()}


def one_fails(world, how):
    if world.rank == 1:
        if how == "raises":
            raise ValueError("the cable is loose")
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()  # rank 0 hears of a lost connection


def alone(world):
    return world.rank, world.size, world.group


def test_every_rank_is_called_and_what_it_returns_comes_back_in_their_order():
    found = run_ranks(add, 2, 5)
    assert found == [{"rank": 0, "total": 15.0, "threads": 1}, {"rank": 1, "total": 15.0, "threads": 1}]
    assert run_ranks(alone, 1) == [(0, 1, None)]


def test_a_rank_that_raises_is_told_with_its_traceback_and_not_the_one_that_lost_it():
    with pytest.raises(AssertionError, match="rank 1 failed first") as caught:
        run_ranks(one_fails, 2, "raises")
    assert "ValueError: the cable is loose" in str(caught.value) and "in one_fails" in str(caught.value)


def test_a_rank_that_is_killed_fails_the_test():
    with pytest.raises(AssertionError, match="of 2 ranks"):
        run_ranks(one_fails, 2, "killed")
