"""Turns durations and learning rates as people write them into steps, numbers, and a schedule.

Surprising: everything is converted before the run folder is made, so that a wrong word leaves nothing behind.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from seer.core import durations
from seer.core.build import find
from seer.core.errors import RequestError
from seer.optim.plateau import Plateau
from seer.optim.schedules import Schedule, scaled_peak
from seer.run.config import PlateauConfig


class Durations:
    """Holds the length of a run in steps, and turns other durations into steps by it. Raises RequestError for a
    run of no step."""

    def __init__(self, steps: Any, batch: int, images: int):
        self.batch, self.images = batch, images
        self.total = durations.steps(steps, batch=batch, images=images)
        if self.total < 1:
            raise RequestError(f"steps={steps} is no step at all; a run has at least one")

    def steps(self, duration: Any, key: str) -> int:
        """Returns optimizer steps for 20, "50k", "600kimg", "15ep" or "3%". Raises RequestError, with the key,
        for anything else."""
        try:
            return durations.steps(duration, batch=self.batch, images=self.images, total=self.total)
        except ValueError as error:
            raise RequestError(f"{key}: {error}") from error


def schedule(node: Mapping[str, Any], plateau: PlateauConfig, lengths: Durations) -> tuple[Schedule, Plateau | None]:
    """Returns the learning rate's schedule with its words turned into numbers; called once so that wrong ones fail now.

    With it, for a schedule that takes `halved_at`, the watcher that appends to that list.
    """
    numbers = {k: v for k, v in node.items() if k != "_target_"}
    target = find("schedule", node["_target_"])
    numbers.pop("total", None)  # stood in configs of earlier versions
    if "total" in inspect.signature(target).parameters:
        numbers["total"] = lengths.total
    numbers["peak"] = rate(node["peak"], lengths.batch, None)
    for name in ("start", "final"):
        if name in numbers:
            numbers[name] = rate(node[name], lengths.batch, numbers["peak"])
    warmup = node.get("warmup", 0)
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
