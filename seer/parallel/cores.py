"""Counts the cores that a rank may call its own.

A launcher may have bound each rank to cores of its own (SLURM with --cpus-per-task), or to a socket that some share, or to none
(torchrun): variables tell it differently everywhere, so ranks tell each other where they may run.
"""

import os
import socket
from collections.abc import Sequence

from seer.parallel.collectives import gather_text
from seer.parallel.world import World


def cores_per_rank(world: World) -> int:
    """Returns this rank's part of the cores it may run on, at least 1. One collective."""
    mask = sum(1 << core for core in os.sched_getaffinity(0))
    return part_of(world.rank, [word.split() for word in gather_text(f"{socket.gethostname()} {mask:x}", world.group)])


def part_of(rank: int, ranks: Sequence[Sequence[str]]) -> int:
    """Returns the number of cores that are a rank's part: those it may use, shared with all on the same host
    that may use one of them. ranks: host, and mask of the cores in hexadecimal, of each."""
    host, mask = ranks[rank][0], int(ranks[rank][1], 16)
    sharing = sum(1 for other, cores in ranks if other == host and int(cores, 16) & mask)
    return max(1, mask.bit_count() // sharing)
