"""Lets a run go on in its own folder to another length, and says what that changes.

`steps=` is the one key of what is learned that may differ: any length beyond what is done. Whatever is given as a share of
the run (a warm-up of 10%, a rate's fall to its end) is from then on a share of the new one, so the learning rate goes up
again where the run becomes longer: a rate that has come to its end would teach nothing more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seer.core import durations
from seer.core.config import flat
from seer.core.errors import RequestError, StorageError
from seer.engine.manifest import read_manifest
from seer.engine.retention import steps_in
from seer.run.config import RunConfig
from seer.run.schedule import Durations, schedule


def check_length(folder: Path, before: Any, steps: Any, lengths: Durations) -> None:
    """Raises RequestError where a run in this folder has done as much as it is asked for now. before, steps: words for the
    length, as it was and is; lengths: made of the new one."""
    earlier = Durations(before, lengths.batch, lengths.images)
    if (earlier.total, earlier.clock) == (lengths.total, lengths.clock):
        return  # the same length in other words
    done, seconds = trained(folder)
    if lengths.clock is not None and lengths.clock <= seconds:
        raise RequestError(
            f"output={folder}: steps={steps} is no longer than the {seconds:.0f} s that this run has trained (steps: {before} -> "
            f"{steps}); give a longer time, another output=, or steps={before}"
        )
    if lengths.clock is None and lengths.total <= done:
        raise RequestError(
            f"output={folder}: steps={steps} is no longer than the {done} steps that this run has done (steps: {before} -> "
            f"{steps}); give more, another output=, or steps={before}"
        )


def trained(folder: Path) -> tuple[int, float]:
    """Returns the steps of the newest checkpoint of a run, and the seconds of training that it notes; (0, 0.0) without one."""
    checkpoints = folder / "checkpoints"
    steps = steps_in(checkpoints)
    for step in reversed(steps):
        try:
            return step, float(read_manifest(checkpoints / f"step-{step:08d}").get("seconds", 0.0))
        except StorageError:
            continue  # whoever loads it tells; an older one is next
    return 0, 0.0


def restated(config: RunConfig, before: Any, lengths: Durations, first: int, rate: float | None) -> list[str]:
    """Returns what people are told of a run that goes on to another length. before: the earlier word for it; first: the step
    to go on from; rate: the learning rate of it by the new length."""
    earlier = Durations(before, lengths.batch, lengths.images)
    told = [f"steps={before} before, steps={config.steps} from step {first} on{_rates(config, earlier, first, rate)}"]
    moved = []
    for key, value in shares(config):
        if earlier.clock is None and lengths.clock is None:
            old, new = earlier.steps(value, key), lengths.steps(value, key)
            moved += [f"{key}={value}: {old} -> {new} steps"] if old != new else []
        else:
            moved.append(f"{key}={value}")
    if moved:
        told.append(f"shares of the run are of the new length: {', '.join(moved)}")
    return told


def _rates(config: RunConfig, earlier: Durations, first: int, rate: float | None) -> str:
    """Returns the learning rate of a step by the new length, and by the earlier where it was one of steps. A schedule that is
    halved on a plateau has its halvings in the checkpoint, whatever the length."""
    now = "" if rate is None else f"; the learning rate goes on at {rate:.3g}"
    if earlier.clock is not None or rate is None or "halved_at" in config.schedule:
        return now
    old = schedule(config.schedule, config.plateau, earlier)[0](first)
    return now if old is None or old == rate else f"{now}, where the schedule of {earlier.total} steps had {old:.3g}"


def shares(config: RunConfig) -> list[tuple[str, str]]:
    """Returns the keys of a run that are given as shares of it, with their words."""
    values: Mapping[str, Any] = flat({k: v for k, v in config.plain().items() if k in ("schedule", "every", "task")})
    found = [(key, str(value)) for key, value in values.items()]
    found += [
        (f"groups {rule['pattern']} frozen_steps", str(rule["frozen_steps"]))
        for rule in config.groups or ()
        if "frozen_steps" in rule
    ]
    rates = ("schedule.peak", "schedule.start", "schedule.final")
    return [(key, value) for key, value in found if key not in rates and durations.share_of(value) is not None]
