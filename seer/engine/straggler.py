"""Finds the rank that keeps the others waiting: one slow disk, hot GPU or busy host slows all, and nothing says whose.

All ranks take the same time for a step, since they wait for each other; so what counts is the time a rank does not wait:
the window less what it spent in collectives. On a GPU the host runs ahead of the device, so there it is mostly reading that
shows, and the clocks of the devices are not looked at.
"""

import statistics
import time

import torch

from seer.core.log import log
from seer.parallel.collectives import all_gather_stack, gather_text, waited
from seer.parallel.world import World

TIMES, WINDOWS = 1.5, 3


class Stragglers:
    """Warns when one rank is busy TIMES as long as the median of the others, WINDOWS times on end; once for each rank."""

    def __init__(self, world: World, host: str):
        self._world = world
        self._hosts = gather_text(host, world.group)
        self._told: set[int] = set()
        self._row = (-1, 0)  # the rank that was slowest, and in how many windows on end
        self.start()

    def start(self) -> None:
        """Begins a window: what came before (an evaluation, a checkpoint) does not count."""
        self._since, self._waited = time.monotonic(), waited.seconds

    def end_window(self, reading_s: float) -> None:
        """Ends the window and judges it. reading_s: how long the loop waited for images in it. One gather of [2]."""
        busy = time.monotonic() - self._since - (waited.seconds - self._waited)
        mine = torch.tensor([busy, reading_s], dtype=torch.float64)
        # not over world.side, on which a checkpoint may be talking: two threads, whose words ranks would put in other orders
        rows = all_gather_stack(mine, self._world.group).tolist()  # [R][2], on the host
        self.judge([(row[0], row[1]) for row in rows])
        self.start()

    def judge(self, rows: list[tuple[float, float]]) -> None:
        """Warns if one rank is the slowest for long enough. rows: seconds busy, and of these reading, of each rank."""
        slowest = max(range(len(rows)), key=lambda rank: rows[rank][0])
        busy, reading = rows[slowest]
        middle = statistics.median(other for rank, (other, _) in enumerate(rows) if rank != slowest)
        if busy <= TIMES * middle:
            self._row = (-1, 0)
            return
        self._row = (slowest, self._row[1] + 1 if self._row[0] == slowest else 1)
        if self._row[1] < WINDOWS or slowest in self._told:
            return
        self._told.add(slowest)
        what = "reading images" if reading > busy / 2 else "computing"
        log.warning(
            f"rank {slowest} on {self._hosts[slowest]} keeps the others waiting: busy {busy:.2f} s of each window, mostly {what}, "
            f"where the median of the others is busy {middle:.2f} s; look at that host's disk, load and temperature"
        )
