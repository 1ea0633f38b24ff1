"""Ranks that were started with other words, or whose weights differ in one bit, are found and named: three gloo processes."""

import itertools

import pytest
import torch

from seer.parallel.consistency import _sum_of_bits, replicated, same_request, same_weights
from seer.parallel.world import World
from tests.messages import says
from tests.ranks import run_ranks

RANKS = 3
pytestmark = pytest.mark.slow


def outcome(function, *arguments) -> str:
    try:
        function(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "the same"


def speak(world: World) -> list[str]:
    rank, group = world.rank, world.group
    facts = {"batch": "64", "the code": "abc"}
    weights = {
        "first": torch.randn(5, generator=torch.Generator().manual_seed(0)),
        "half": torch.ones(3, 2, dtype=torch.bfloat16).t(),
        "count": torch.tensor(7),
    }
    said = [outcome(same_request, facts, group), outcome(same_weights, 3, weights, group)]
    said.append(outcome(same_request, {**facts, "the code": "abd"} if rank == 2 else facts, group))
    said.append(outcome(same_request, {**facts, "more": "1"} if rank == 0 else facts, group))
    if rank == 1:
        word = weights["first"].view(torch.int32)
        word[4] ^= 1  # the last bit of one float
    said.append(outcome(same_weights, 9, weights, group))
    return said


@pytest.fixture(scope="module")
def said() -> list[list[str]]:
    return run_ranks(speak, RANKS)


def test_what_is_the_same_passes(said):
    assert all(lines[:2] == ["the same"] * 2 for lines in said)


def test_every_rank_hears_which_rank_was_started_otherwise_and_in_what(said):
    for lines in said:
        assert says(lines[2], "RequestError", "rank 2", "the code abd", "rank 0", "abc")
        assert says(lines[3], "RequestError", "rank 1", "more None", "rank 0", 1)


def test_one_bit_of_one_weight_on_one_rank_is_found_and_named_on_all(said):
    for lines in said:
        assert says(lines[4], "NumericsError", "weights", "step 9", "rank 1", "1 of 3", "first")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_any_bit_changes_the_sum(dtype):
    tensor = torch.ones(7).to(dtype)
    before = _sum_of_bits(tensor)
    words = tensor.view(torch.uint8)
    for at, bit in itertools.product(range(len(words)), range(1 if dtype is torch.bool else 8)):
        words[at] ^= 1 << bit
        assert _sum_of_bits(tensor) != before, (at, bit)
        words[at] ^= 1 << bit


def test_statistics_and_shards_are_not_compared():
    class Sharded(torch.Tensor):
        full_tensor = None

    state = {"w": torch.ones(1), "bn.running_var": torch.ones(1), "s": torch.ones(1).as_subclass(Sharded)}
    assert set(replicated(state)) == {"w"}
