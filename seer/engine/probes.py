"""Runs the evaluations of a run while it trains (its probes), within a stated share of its time.

Surprising:
- How long each takes is known once it has run. Before training and at the end all run, whatever they cost, since a curve without
  its ends tells nothing; in between, one that would take more than the share waits for the next time, which is told once. What
  they took before training is on the same account.
- The first rank's clock decides for all ranks, so that none waits for another. Nothing of training depends on it.
- The account stands in every checkpoint: a share is one of the whole run, of all its starts.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from seer.core.log import log
from seer.core.protocols import Evaluator, Modules, Task
from seer.parallel.batchnorm import averaged
from seer.parallel.collectives import first_ranks
from seer.parallel.world import World


@dataclass
class Probes:
    """Holds evaluators by name. share: of the run's time that they may take, None = any. now: of a clock that never goes back.
    seconds: that they took so far. earlier: seconds of the run before this start."""

    evaluators: Mapping[str, Evaluator]
    world: World
    share: float | None = None
    now: Callable[[], float] = time.monotonic
    seconds: float = 0.0
    earlier: float = 0.0
    complete: bool = True  # whether all ran when any ran last
    _cost: dict[str, float] = field(default_factory=dict)  # seconds of each when it ran last
    _waits: set[str] = field(default_factory=set)  # those of which it was told

    def __post_init__(self) -> None:
        self._start = self.now()

    def __bool__(self) -> bool:
        return bool(self.evaluators)

    @property
    def elapsed(self) -> float:
        """Returns the seconds of the run, of all its starts."""
        return self.earlier + self.now() - self._start

    @property
    def taken(self) -> float:
        """Returns the share of the run's time that probes have taken, from 0 to 1."""
        return min(1.0, self.seconds / self.elapsed) if self.elapsed > 0 else 0.0

    def plain(self) -> dict[str, float]:
        """Returns the account, as checkpoints hold it."""
        return {"seconds": self.seconds, "of": self.elapsed}

    def go_on(self, told: Mapping[str, Any]) -> None:
        """Takes the account of a checkpoint."""
        self.seconds, self.earlier = float(told.get("seconds", 0.0)), float(told.get("of", 0.0))
        self._start = self.now()

    def due(self, free: bool) -> list[str]:
        """Returns the probes that may run now, on all ranks the same. free: all of them. One broadcast where there is a share."""
        names = list(self.evaluators)
        if free or self.share is None:
            return names
        may, taken = [], self.seconds
        for name in names:
            cost = self._cost.get(name, 0.0)
            found = (taken + cost) / max(self.elapsed + taken - self.seconds + cost, 1e-9)
            may.append(found <= self.share)
            if may[-1]:
                taken += cost
            elif name not in self._waits:
                self._waits.add(name)
                log.info(
                    f"the probe {name} took {cost:.2g} s and waits: with it probes would have taken {found:.0%} of the run so far, "
                    f"more than probe.share={self.share:.0%}; it is tried again each time that probes are due"
                )
        bits = int(first_ranks(float(sum(1 << i for i, one in enumerate(may) if one)), self.world.group))
        return [name for i, name in enumerate(names) if bits >> i & 1]

    def run(self, task: Task, groups: int, free: bool = False) -> dict[str, float]:
        """Returns the figures of all that is due; {} where nothing is. groups: of batch statistics. Others as `due`."""
        chosen = self.due(free)
        if not chosen:
            return {}
        self.complete = len(chosen) == len(self.evaluators)
        with self.counted():
            return evaluate(task, [_Timed(self.evaluators[name], name, self) for name in chosen], self.world, groups)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts the time inside this context as that of probes."""
        start = self.now()
        try:
            yield
        finally:
            self.seconds += self.now() - start


@dataclass(frozen=True)
class _Timed:
    """Runs an evaluator and notes what it cost."""

    evaluator: Evaluator
    name: str
    probes: Probes

    def run(self, task: Modules) -> dict[str, float]:
        start = self.probes.now()
        found = self.evaluator.run(task)
        self.probes._cost[self.name] = self.probes.now() - start
        return found


def evaluate(task: Task, evaluators: Sequence[Evaluator], world: World, groups: int) -> dict[str, float]:
    """Runs every evaluator on the plain networks, in evaluation mode with the mean of all groups' statistics; back to
    training with their own afterwards. groups: how many groups of ranks have batch statistics of their own."""
    task.model.eval()
    try:
        # images of any size and number come here: nothing is compiled for them
        stance = torch.compiler.set_stance("force_eager")
        with torch.no_grad(), stance, averaged(nn.ModuleDict(task.modules()), world.group, groups):
            return {name: value for one in evaluators for name, value in one.run(task).items()}
    finally:
        task.model.train()
