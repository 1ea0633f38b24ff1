"""Counts the time that a run trains, and says how much of it is over where its length is a time (`steps=8h`).

Counted is what lies between the first step and the last: steps, the wait for images, evaluations and saves in between; not
the start of the program. It stands in every checkpoint, so that a run of several starts counts them together, and every
checkpoint's next step is what it would have been without the stop.

The length in steps of such a run is not known until it is over. Its schedule follows the share of the time that is gone: at
each step the run is taken to have as many steps as the speed so far gives (`total`), so warm-ups in steps and in shares both
keep their meaning, and the last step gets the last rate, however the speed has changed.

Surprising: it is read once a step, when the step is done; what a save, a schedule and an interval are told until the next
step's end is that one number. Ranks take the first rank's.
"""

import math
import time
from collections.abc import Callable
from fractions import Fraction

from seer.parallel.collectives import Group, first_ranks

FAR = 10**9  # steps: further than any run goes


class Clock:
    """Counts the seconds of a run. limit: its length in seconds, None for a run of so many steps, which costs no collective.
    now: of a clock that never goes back."""

    def __init__(self, limit: float | None = None, now: Callable[[], float] = time.monotonic):
        self.limit, self.seconds, self._now = limit, 0.0, now
        self._before, self._mark = 0.0, now()

    def start(self, seconds: float | None = None) -> None:
        """Begins to count. seconds: what a checkpoint says that the run has trained already."""
        if seconds is not None:
            self.seconds = seconds
        self._before, self._mark = self.seconds, self._now()

    def read(self, group: Group | None) -> None:
        """Notes that a step is done. One broadcast where there is a limit."""
        now = self._now()
        self._before, self.seconds, self._mark = self.seconds, self.seconds + now - self._mark, now
        if self.limit is not None:
            self.seconds = first_ranks(self.seconds, group)

    @property
    def over(self) -> bool:
        """Returns whether the time is over; never without a limit."""
        return self.limit is not None and self.seconds >= self.limit

    @property
    def share(self) -> float:
        """Returns the share of the limit that is over, from 0 to 1; 0 without one."""
        return min(1.0, self.seconds / self.limit) if self.limit else 0.0

    def passed(self, interval: Fraction) -> bool:
        """Returns whether a multiple of this share of the limit was passed in the last step."""
        if not self.limit or interval <= 0:
            return False
        width = float(interval) * self.limit
        return int(self.seconds / width) > int(self._before / width)

    def total(self, step: int) -> int:
        """Returns the steps of the whole run, were it as quick as in the first `step` steps."""
        return max(step + 1, math.ceil(step / self.share)) if step and self.share else FAR
