"""Holds all that watches a step: timer, heartbeat, NaN guard, stragglers, skipped images, and the numbers that
are logged.

Surprising: numbers stay on the device until `log`, which waits for it. What is not training (an evaluation, a save) runs
inside `phase`, so that no figure of a step counts its time, and nothing broken is judged or saved.
"""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch

from seer.core.protocols import StopTraining
from seer.core.records import Skipped, StepOutput
from seer.engine.metrics import Metrics
from seer.engine.nan_guard import NaNGuard
from seer.engine.precision import Precision
from seer.engine.spent import Spent
from seer.engine.step_timer import StepTimer
from seer.engine.straggler import Stragglers
from seer.optim.plateau import Plateau
from seer.parallel.collectives import all_reduce_mean
from seer.parallel.world import World

# (step, what it skipped) -> how many images this rank has skipped so far, and how many by reason on all ranks, as last heard
Skips = Callable[[int, Sequence[Skipped]], tuple[int, Mapping[str, int]]]


class Progress(Protocol):
    """Shows people how far a run is: `engine.progress`."""

    def moved(self, done: int) -> None: ...

    def at(self, phase: str) -> None: ...


@dataclass
class Monitor:
    """Watches the steps of a run. batch: images of a step over all ranks. images: in the data, for epochs.
    plateau: told each logged loss. progress: moved by each step. spent: where phases are counted."""

    world: World
    metrics: Metrics
    guard: NaNGuard
    skips: Skips
    optimizer: torch.optim.Optimizer
    precision: Precision
    plateau: Plateau | None
    batch: int
    images: int
    progress: Progress | None = None
    spent: Spent = field(default_factory=Spent)
    timer: StepTimer = field(init=False)
    stragglers: Stragglers | None = field(init=False)
    _output: StepOutput = field(init=False)
    _numbers: dict[str, torch.Tensor] = field(init=False)
    _skipped: tuple[int, Mapping[str, int]] = field(init=False)
    _steps: int = 0  # since the last log

    def __post_init__(self) -> None:
        self.timer = StepTimer(self.world.device, self.batch)
        self.stragglers = Stragglers(self.world, socket.gethostname()) if self.world.size > 1 else None

    def begin(self, step: int) -> None:
        """Notes that the batch of a step has come."""
        self.timer.waited()
        self.world.set_phase(step, "training")

    def end(self, step: int, output: StepOutput, norm: torch.Tensor, skipped: Sequence[Skipped]) -> None:
        """Notes that a step is issued. norm: of its gradients, [] float32. Raises NumericsError for the step before it."""
        numbers = {"grad_norm": norm, **self.precision.numbers()}
        seen = {"loss": output.loss.detach(), **numbers}
        self.guard.watch(step, self.precision.broken, seen, output.evidence, self.precision.history)
        self._output, self._numbers, self._skipped = output, numbers, self.skips(step, skipped)
        self._steps += 1
        self.timer.stepped()

    def ready(self, done: int) -> None:
        """Notes that the next batch is waited for."""
        self.world.set_phase(done, "reading images")
        if self.progress:
            self.progress.moved(done)
        self.timer.mark()

    def log(self, step: int) -> bool:
        """Writes a row of numbers, means over all ranks. True when a sink has seen enough. Raises NumericsError."""
        done, (skipped, reasons), world = step + 1, self._skipped, self.world
        mine: dict[str, torch.Tensor | float] = {
            "loss": self._output.loss,
            **self._output.metrics,
            "skipped": skipped * world.size,
        }
        shared = _over_ranks(mine, world)
        self.guard.check_now()  # which waits for the device
        cost, steps, self._steps = self.timer.read(), self._steps, 0
        row: dict[str, torch.Tensor | float] = {"epoch": done * self.batch / self.images, "images": done * self.batch}
        row |= {f"skipped/{reason}": count for reason, count in reasons.items() if count}
        row |= {**shared, **_rates(self.optimizer), **_of_optimizer(self.optimizer), **self._numbers, **cost}
        self.metrics.add(step, row)
        if self.stragglers:
            self.stragglers.end_window(cost["data_wait"] * cost["step_ms"] * steps / 1e3)
        enough = self.flush()
        if self.plateau is not None and not enough:
            self.plateau.observe(done, self.metrics.last["loss"])
        return enough

    def flush(self) -> bool:
        """Writes what is waiting. True when a sink has seen enough. Raises NumericsError for the last step."""
        self.guard.check_now()
        try:
            self.metrics.flush()
        except StopTraining:
            return True
        return False

    @contextmanager
    def phase(self, step: int, name: str) -> Iterator[None]:
        """Names to the other ranks what is not training, as a context, and leaves it out of the figures of steps."""
        self.world.set_phase(step, name)
        self.guard.check_now()
        self.timer.mark()
        if self.progress:
            self.progress.at(name)
        with self.spent.on(name):
            yield
        if self.progress:
            self.progress.at("")
        self.timer.skip()
        if self.stragglers:
            self.stragglers.start()


def _over_ranks(values: Mapping[str, torch.Tensor | float], world: World) -> dict[str, torch.Tensor]:
    """Returns each value's mean over all ranks, [] float32: every rank's loss is the mean over its own images alone."""
    rows = [torch.as_tensor(v, dtype=torch.float32, device=world.device).detach() for v in values.values()]
    return dict(zip(values, all_reduce_mean(torch.stack(rows), world.group).unbind(), strict=True))


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Returns the rates of the group that learns fastest; groups may be frozen or scaled."""
    group = max(optimizer.param_groups, key=lambda g: g["lr"])
    return {"lr": group["lr"], "weight_decay": group["weight_decay"]}


def _of_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns what an optimizer tells of its last step, if it has a `metrics`."""
    metrics = getattr(optimizer, "metrics", None)
    return metrics() if metrics is not None else {}
