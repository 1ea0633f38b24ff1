"""Decides what comes after a step: log, evaluate, save or stop, in one place, agreed between the ranks once."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction

from seer.core.errors import Interrupted
from seer.core.protocols import Task
from seer.engine.best import Best
from seer.engine.checkpoint_policy import Checkpoints
from seer.engine.clock import Clock
from seer.engine.monitor import Monitor
from seer.engine.probes import Probes
from seer.engine.stop_request import StopRequest
from seer.engine.weight_average import WeightAverage
from seer.parallel.collectives import max_over_ranks
from seer.parallel.consistency import replicated, same_weights

SAVE, GIVE_UP, STOP = 1, 2, 3  # what a rank may ask for at the end of a step; the highest counts


@dataclass(frozen=True)
class Every:
    """Holds the intervals of a run, in steps, or as shares of one whose length is a time; 0 = only where it must be
    (evaluation and checkpoint: at the end; compare, of the weights that ranks hold in common: before a checkpoint). minutes: a
    checkpoint also so long after the last one, on any rank's clock; 0 = not."""

    log: int | Fraction
    evaluate: int | Fraction
    checkpoint: int | Fraction
    compare: int | Fraction = 0
    minutes: float = 0.0


@dataclass
class Control:
    """Decides what follows a step. save(step) begins to save the state of a run; checkpoints tells how that went. clock: of the
    run; once its time is over, total_steps are those that are done. average: of the weights, which is what is evaluated. best: of
    a figure, whose checkpoint is saved at once."""

    task: Task
    every: Every
    monitor: Monitor
    save: Callable[[int], None]
    checkpoints: Checkpoints
    probes: Probes
    stop: StopRequest
    first_step: int
    total_steps: int
    clock: Clock = field(default_factory=Clock)
    average: WeightAverage | None = None
    best: Best | None = None
    _saved_at: float = field(default_factory=time.monotonic)
    _enough: bool = False  # a sink has seen enough

    @contextmanager
    def running(self) -> Iterator[None]:
        """Makes a request to stop wait for the end of a step, inside this context; at its end the last save is
        waited for."""
        with self.stop.held(), closing(self.checkpoints):
            yield

    def __post_init__(self) -> None:
        if self.clock.over:
            self.total_steps = self.first_step

    def steps(self) -> Iterator[int]:
        """Yields the steps that are left, until the last is done or the time is over."""
        self.clock.start()
        step = self.first_step
        while step < self.total_steps:
            yield step
            step += 1

    def before(self) -> None:
        """Evaluates what has not been trained yet."""
        if self.first_step == 0 and self.probes:
            self._probe(0, free=True)
            self._enough = self.monitor.flush()  # people wait for it

    def after(self, step: int) -> None:
        """Does what is due after a step. Raises Interrupted, StorageError and NumericsError."""
        done, enough = step + 1, self._enough
        self.clock.read(self.monitor.world.group)
        if self.clock.over:
            self.total_steps = done
        end = done == self.total_steps
        if self._due(done, self.every.log):
            enough = self.monitor.log(step) or enough
        better = False
        if self.probes and self._due(done, self.every.evaluate):
            better = self._probe(done, free=end)
            enough = self.monitor.flush() or enough
        asked = max_over_ranks(self._wish(enough), self.monitor.world.group)  # what any rank asks for
        if asked == GIVE_UP and not end:
            self.checkpoints.wait()
        if self._comes(done, self.every.compare):
            self._compare(done)
        if asked or better or self._due(done, self.every.checkpoint):
            with self.monitor.phase(done, "saving"):
                self._compare(done)
                if not end and asked != STOP:  # those try once more, whatever came before
                    self.checkpoints.settle()
                self.save(done)
            self._saved_at = time.monotonic()
        if end or asked == STOP:
            self.checkpoints.wait()
        if asked == STOP and not end:
            end_at = self.total_steps if self.clock.limit is None else f"about {self.clock.total(done)}"
            raise Interrupted(
                f"stopped on {self.stop.asked or 'request'} after step {done} of {end_at}, saved; run again to go on",
                done,
            )
        self.monitor.ready(done)

    def _probe(self, done: int, free: bool) -> bool:
        """Evaluates, and returns whether what was measured is the best so far. free: whatever it costs."""
        step = max(0, done - 1)
        averaged = nullcontext() if self.average is None else self.average.standing_in()
        with self.monitor.phase(step, "evaluating"), averaged:
            found = self.probes.run(self.task, self.checkpoints.statistics, free)
        if not found:
            return False
        row = {**found, "probe_share": self.probes.taken, "images": done * self.monitor.batch}
        self.monitor.metrics.add(step, row)
        return self.best is not None and self.best.observe(done, found, self.monitor.world.group, self.probes.complete)

    def _due(self, done: int, interval: int | Fraction) -> bool:
        return done == self.total_steps or self._comes(done, interval)

    def _comes(self, done: int, interval: int | Fraction) -> bool:
        if isinstance(interval, Fraction):
            return self.clock.passed(interval)
        return interval > 0 and done % interval == 0

    def _wish(self, enough: bool) -> int:
        late = self.every.minutes and time.monotonic() - self._saved_at > 60 * self.every.minutes
        lost = self.checkpoints.poll()
        return STOP if enough or self.stop.asked else GIVE_UP if lost else SAVE if late else 0

    def _compare(self, done: int) -> None:
        same_weights(done, replicated(self.task.state_dict()), self.monitor.world.group)
