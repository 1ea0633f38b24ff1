"""A rank's own cores: divided among those that share them, and among nobody else."""

import os

import pytest
import torch

from seer.parallel.cores import cores_per_rank, part_of
from seer.parallel.world import World


def mask(*cores: int) -> str:
    return f"{sum(1 << core for core in cores):x}"


ALL = mask(*range(64))
LAUNCHED = {
    "eight tasks of SLURM, each bound to eight cores": ([("a", mask(*range(8 * r, 8 * r + 8))) for r in range(8)], 8),
    "the same on two nodes": ([(n, mask(*range(8 * r, 8 * r + 8))) for n in "ab" for r in range(8)], 8),
    "eight of torchrun on 64 cores": ([("a", ALL)] * 8, 8),
    "the same on two machines": ([("a", ALL)] * 8 + [("b", ALL)] * 8, 8),
    "four to a socket": ([("a", mask(*range(32)))] * 4 + [("a", mask(*range(32, 64)))] * 4, 8),
    "more ranks than cores": ([("a", mask(0, 1))] * 3, 1),
    "one process": ([("a", mask(3, 5, 70))], 3),
}


@pytest.mark.parametrize("how", LAUNCHED)
def test_cores_are_shared_by_the_ranks_that_may_run_on_them(how):
    ranks, each = LAUNCHED[how]
    assert {part_of(rank, ranks) for rank in range(len(ranks))} == {each}


def test_one_process_has_all_that_it_may_run_on():
    assert cores_per_rank(World(0, 1, 0, torch.device("cpu"))) == len(os.sched_getaffinity(0))
