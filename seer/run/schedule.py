"""Turns durations and learning rates as people write them into steps, numbers, and a schedule.

Surprising: everything is converted before the run folder is made, so that a wrong word leaves nothing behind.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from seer.core import durations
from seer.core.build import find
from seer.core.errors import RequestError
from seer.engine.clock import FAR, Clock
from seer.optim.plateau import Plateau
from seer.optim.schedules import Schedule, scaled_peak
from seer.run.config import PlateauConfig


class Durations:
    """Holds the length of a run, and turns other durations into steps by it. clock: its seconds where it is a time; `total`
    is then further than any run goes. Raises RequestError for a run of no step."""

    def __init__(self, steps: Any, batch: int, images: int):
        self.batch, self.images = batch, images
        self.clock = durations.seconds(steps)
        self.total = FAR if self.clock is not None else durations.steps(steps, batch=batch, images=images)
        if self.total < 1 or self.clock == 0:
            raise RequestError(f"steps={steps} is no step at all; a run has at least one")

    def steps(self, duration: Any, key: str) -> int:
        """Returns optimizer steps for 20, "50k", "600kimg", "15ep" or "3%". Raises RequestError, with the key,
        for anything else, and for a share of a run that is a time."""
        found = self.interval(duration, key)
        if isinstance(found, Fraction):
            raise RequestError(
                f"{key}={duration}: a share of a run whose length is a time is no number of steps; give steps (500), images "
                "(600kimg) or epochs (3ep)"
            )
        return found

    def interval(self, duration: Any, key: str) -> int | Fraction:
        """Returns optimizer steps, or of a run whose length is a time the share of it that "3%" is. Raises RequestError,
        with the key, for anything else."""
        if self.clock is not None and (share := durations.share_of(duration)) is not None:
            return share
        try:
            return durations.steps(duration, batch=self.batch, images=self.images, total=self.total)
        except ValueError as error:
            raise RequestError(f"{key}: {error}") from error


@dataclass(frozen=True)
class ByClock:
    """Is the schedule of a run whose length is a time: at each step that of a run of `Clock.total` steps. warmup: steps, or a
    share. takes_total: whether the target wants the number of steps."""

    target: Callable[..., float | None]
    numbers: Mapping[str, Any]
    warmup: int | Fraction
    takes_total: bool
    clock: Clock

    def __call__(self, step: int) -> float | None:
        least = int(self.numbers.get("cycles", 1))  # steps that must follow the warm-up
        total, warmup = self.clock.total(step), self.warmup
        if isinstance(warmup, Fraction):
            warmup = max(0, min(math.ceil(warmup * total), total - least))
        total = max(total, warmup + least)
        return self.target(step, warmup=warmup, **self.numbers, **({"total": total} if self.takes_total else {}))


def schedule(
    node: Mapping[str, Any], plateau: PlateauConfig, lengths: Durations, clock: Clock | None = None
) -> tuple[Schedule, Plateau | None]:
    """Returns the learning rate's schedule with its words turned into numbers; called once so that wrong ones fail now.

    With it, for a schedule that takes `halved_at`, the watcher that appends to that list. clock: of a run whose length is a
    time; the schedule follows it.
    """
    numbers = {k: v for k, v in node.items() if k != "_target_"}
    target = find("schedule", node["_target_"])
    numbers.pop("total", None)  # stood in configs of earlier versions
    takes_total = "total" in inspect.signature(target).parameters
    numbers["peak"] = rate(node["peak"], lengths.batch, None)
    for name in ("start", "final"):
        if name in numbers:
            numbers[name] = rate(node[name], lengths.batch, numbers["peak"])
    if "lowered_at" in node:
        numbers["lowered_at"] = [lengths.steps(one, "schedule.lowered_at") for one in node["lowered_at"]]
    warmup = node.get("warmup", 0)
    if lengths.clock is not None and "halved_at" not in node:
        numbers.pop("warmup", None)
        since = lengths.interval(warmup, "schedule.warmup")
        if isinstance(since, Fraction) and since >= 1:
            raise RequestError(f"schedule.warmup={warmup}: it must end inside the run")
        by_clock = ByClock(target, numbers, since, takes_total, clock or Clock(lengths.clock))
        by_clock(0)
        return by_clock, None
    if takes_total:
        numbers["total"] = lengths.total
    numbers["warmup"] = lengths.steps(warmup, "schedule.warmup")
    if str(warmup).strip().endswith("%") and float(str(warmup).strip()[:-1]) < 100:
        numbers["warmup"] = min(numbers["warmup"], lengths.total - 1)  # shares are rounded up: all of a run of one step
    watcher = None
    if "halved_at" in node:
        numbers["halved_at"] = [lengths.steps(one, "schedule.halved_at") for one in node["halved_at"]]
        patience = lengths.steps(plateau.patience, "plateau.patience")
        watcher = Plateau(patience, plateau.threshold, numbers["halved_at"], after=numbers["warmup"])
    made = functools.partial(target, **numbers)
    made(0)
    return made, watcher


def rate(value: Any, batch: int, peak: float | None) -> float:
    """Returns a learning rate: 0.6, "0.3@256" (in proportion to the batch), "0.1%" (of the peak). Raises
    RequestError for anything else."""
    text = str(value)
    try:
        if "@" in text:
            base, _, reference = text.partition("@")
            return scaled_peak(float(base), batch, int(reference))
        if text.endswith("%") and peak is not None:
            return float(text[:-1]) / 100 * peak
        return float(text)
    except ValueError:
        raise RequestError(
            f"learning rate {text!r}: a number, 0.3@256 (for a batch of 256, in proportion), or 0.1% (of the peak)"
        ) from None
