"""The collectives against arithmetic on the list of all ranks' tensors: three gloo processes, met through a file."""

import pytest
import torch
import torch.distributed as dist

from seer.parallel.collectives import all_gather_stack, all_reduce_mean, all_reduce_sum, any_rank, broadcast
from seer.parallel.world import World
from tests.ranks import run_ranks

RANKS = 3
PAIR = (0, 2)  # a group that is not the world, and whose ranks are not the world's


def values(rank: int) -> torch.Tensor:
    return torch.randn(2, 3, generator=torch.Generator().manual_seed(rank))


def speak(here: World) -> dict:
    rank, world, pair = here.rank, here.group, dist.new_group(list(PAIR))
    x = values(rank).requires_grad_()
    stacked = all_gather_stack(x, world)
    weights = torch.arange(1.0, 1 + stacked.numel()).view_as(stacked) * (rank + 1)
    (stacked.square() * weights).sum().backward()
    summed = values(rank)
    said = {
        "sum": all_reduce_sum(summed, world),
        "sum_in_place": summed,
        "mean": all_reduce_mean(values(rank), world),
        "stacked": stacked.detach(),
        "gradient": x.grad,
        "broadcast": broadcast(values(rank), world, source=1),
        "any_none": any_rank(False, world),
        "any_last": any_rank(rank == RANKS - 1, world),
    }
    if rank in PAIR:
        said["pair_sum"] = all_reduce_sum(values(rank), pair)
        said["pair_stacked"] = all_gather_stack(values(rank).t(), pair)  # not contiguous
        said["pair_broadcast"] = broadcast(values(rank), pair, source=1)
    return said


@pytest.fixture(scope="module")
def said() -> list[dict]:
    return run_ranks(speak, RANKS)


@pytest.mark.slow
def test_sum_and_mean_hold_all_ranks_and_are_in_place(said):
    total = sum(values(rank) for rank in range(RANKS))
    for rank in range(RANKS):
        torch.testing.assert_close(said[rank]["sum"], total)
        torch.testing.assert_close(said[rank]["sum_in_place"], total)
        torch.testing.assert_close(said[rank]["mean"], total / RANKS)


@pytest.mark.slow
def test_stack_is_in_rank_order_and_its_gradient_sums_what_every_rank_asks_of_the_row(said):
    stacked = torch.stack([values(rank) for rank in range(RANKS)])
    weights = torch.arange(1.0, 1 + stacked.numel()).view_as(stacked) * (1 + 2 + 3)
    for rank in range(RANKS):
        torch.testing.assert_close(said[rank]["stacked"], stacked, rtol=0, atol=0)
        torch.testing.assert_close(said[rank]["gradient"], (2 * stacked * weights)[rank])


@pytest.mark.slow
def test_broadcast_source_and_sums_count_ranks_of_the_group(said):
    for rank in range(RANKS):
        torch.testing.assert_close(said[rank]["broadcast"], values(1), rtol=0, atol=0)
    for rank in PAIR:
        torch.testing.assert_close(said[rank]["pair_sum"], values(0) + values(2))
        torch.testing.assert_close(said[rank]["pair_broadcast"], values(2), rtol=0, atol=0)
        torch.testing.assert_close(
            said[rank]["pair_stacked"], torch.stack([values(0).t(), values(2).t()]), rtol=0, atol=0
        )


@pytest.mark.slow
def test_any_true_needs_one_rank(said):
    assert [row["any_none"] for row in said] == [False] * RANKS
    assert [row["any_last"] for row in said] == [True] * RANKS


def test_no_group_means_one_process_and_changes_nothing():
    x = values(0).requires_grad_()
    y = values(0)
    assert all_reduce_sum(y, None) is y and all_reduce_mean(y, None) is y and broadcast(y, None, source=5) is y
    torch.testing.assert_close(y, values(0), rtol=0, atol=0)
    assert any_rank(True, None) is True and any_rank(False, None) is False
    stacked = all_gather_stack(x, None)
    assert stacked.shape == (1, 2, 3)
    stacked.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * values(0))
