"""Holds learning-rate and weight-decay schedules, pure functions of the step.

A schedule is `step -> float`, or `-> None` for "frozen: do not touch these parameters at this step". Everything but the
step is bound with functools.partial (`_partial_: true` in YAML). Nothing is remembered between calls, so resuming needs
no scheduler state.

Surprising here: steps count from 0, and the *last step*, total - 1, gets exactly `final`. After the warm-up the cosine
starts afresh at its peak (SwAV); VISSL evaluates it at absolute progress, which is about 1 % lower at the hand-over
with SEER's 6.5 % of warm-up. Steps beyond the end keep the last value, so that a run that is extended by a few steps
does not jump back.

Sources: SwAV arXiv 2006.09882 (warm-up and cosine), SEER arXiv 2103.01988 (cosine, or constant and halved on a plateau;
linear rule), arXiv 1706.02677 (linear rule), arXiv 1608.03983 (restarts).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = [
    "Schedule",
    "constant_halving",
    "cosine_restarts",
    "frozen_until",
    "scaled_peak",
    "step_decay",
    "warmup_cosine",
]

Schedule = Callable[[int], float | None]


def warmup_cosine(
    step: int, *, peak: float, total: int, warmup: int = 0, start: float = 0.0, final: float = 0.0
) -> float:
    """Returns a rate: linear from `start` at step 0 to `peak` at step `warmup`, then half a cosine to `final`
    at step total - 1.

    SEER: peak 9.6, warmup 8000, start 0.15, final 0.0096, total 122070. ValueError when the warm-up does not end inside
    the run.

    peak      highest rate: 0.3, or 0.3@256: in proportion to the batch
    warmup    the rate rises for so long; a duration
    start     rate at step 0
    final     rate at the end; a number, or a share of the peak like 0.1%
    """
    return cosine_restarts(step, peak=peak, total=total, cycles=1, warmup=warmup, start=start, final=final)


def cosine_restarts(
    step: int,
    *,
    peak: float,
    total: int,
    cycles: int = 1,
    decay: float = 1.0,
    wave: str = "half",
    warmup: int = 0,
    start: float = 0.0,
    final: float = 0.0,
) -> float:
    """Returns a rate by `cycles` cosine waves of equal length after a linear warm-up; one half wave is the
    article's "cosine wave".

    Wave c starts at peak * decay**c. A "half" wave falls to `final` at its last step and the next one restarts at the
    top; a "full" wave comes back up to its own top. Where the length does not divide, earlier waves are the longer ones
    by one step. ValueError when the waves do not fit in the run.

    peak      highest rate: 0.3, or 0.3@256: in proportion to the batch
    cycles    waves of the run
    decay     each wave begins at so much of the former's peak
    wave      half = down, then a jump back up; full = down and up again
    warmup    the rate rises for so long; a duration
    start     rate at step 0
    final     rate at the end; a number, or a share of the peak like 0.1%
    """
    _check_step(step)
    _check_warmup(warmup, start)
    if total < 1:
        raise ValueError(f"total is {total} steps; a run has at least 1")
    if warmup >= total:
        raise ValueError(f"warmup is {warmup} steps of total {total}; it must end inside the run: shorten it")
    if not 1 <= cycles <= total - warmup:
        raise ValueError(f"cycles is {cycles}; between 1 and the {total - warmup} steps after the warm-up fit")
    if wave not in ("half", "full"):
        raise ValueError(f"wave is {wave!r}; it is 'half' (down) or 'full' (down and up again)")
    if step < warmup:
        return _ramp(step, peak, warmup, start)
    index, length = min(step, total - 1) - warmup, total - warmup
    cycle = index * cycles // length
    first, after = -(-cycle * length // cycles), -(-(cycle + 1) * length // cycles)  # ceilings: steps of this wave
    top = peak * decay**cycle
    progress = (index - first) / max(after - 1 - first, 1)
    turns = progress if wave == "half" else 2.0 * progress
    return final + 0.5 * (top - final) * (1.0 + math.cos(math.pi * turns))


def constant_halving(
    step: int, *, peak: float, warmup: int = 0, halved_at: Sequence[int] = (), start: float = 0.0
) -> float:
    """Returns a rate: linear from `start` to `peak` over `warmup` steps, then constant; halved from each step
    in `halved_at` on.

    SEER's schedule for streams without an end: the loop appends to `halved_at` when the loss has stopped falling, the
    checkpoint keeps the list, and this function stays pure.

    peak      highest rate: 0.3, or 0.3@256: in proportion to the batch
    warmup    the rate rises for so long; a duration
    halved_at  when it is halved, where that is known beforehand; durations
    start     rate at step 0
    """
    _check_step(step)
    _check_warmup(warmup, start)
    value = _ramp(step, peak, warmup, start) if step < warmup else peak
    return value * 0.5 ** sum(halved <= step for halved in halved_at)


def step_decay(
    step: int,
    *,
    peak: float,
    warmup: int = 0,
    lowered_at: Sequence[int] = (),
    factor: float = 0.1,
    start: float = 0.0,
) -> float:
    """Returns a rate: linear from `start` to `peak` over `warmup` steps, then constant; times `factor` from each
    step in `lowered_at` on.

    peak      highest rate: 0.3, or 0.3@256: in proportion to the batch
    warmup    the rate rises for so long; a duration
    lowered_at  when it is lowered; durations
    factor    what it is multiplied by then
    start     rate at step 0
    """
    _check_step(step)
    _check_warmup(warmup, start)
    if not 0 < factor <= 1:
        raise ValueError(f"factor is {factor}; a rate is lowered by a factor above 0 and up to 1")
    value = _ramp(step, peak, warmup, start) if step < warmup else peak
    return value * factor ** sum(one <= step for one in lowered_at)


def frozen_until(step: int, *, until: int, then: Schedule) -> float | None:
    """Returns None (frozen) before step `until`, `then(step)` from there on. SwAV freezes its prototypes for
    313 steps."""
    _check_step(step)
    if until < 0:
        raise ValueError(f"until is {until} steps; use 0 to freeze nothing")
    return None if step < until else then(step)


def scaled_peak(base: float, batch: int, reference: int = 256) -> float:
    """Returns base * batch / reference, the linear rule: 0.3 and 8192 images give SEER's 9.6."""
    if batch < 1 or reference < 1:
        raise ValueError(f"batch is {batch} and reference {reference} images; both are at least 1")
    return base * batch / reference


def _ramp(step: int, peak: float, warmup: int, start: float) -> float:
    return start + (peak - start) * step / warmup


def _check_step(step: int) -> None:
    if step < 0:
        raise ValueError(f"step is {step}; steps count from 0")


def _check_warmup(warmup: int, start: float) -> None:
    if warmup < 0:
        raise ValueError(f"warmup is {warmup} steps; use 0 for none")
    if start < 0:
        raise ValueError(f"start is {start}; a rate is never below 0")
