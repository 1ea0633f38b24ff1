"""A flight recorder: looks at the logged numbers and says once, in words and with a remedy, when training goes wrong.

Nearly every rule looks at the last `PATIENCE` logged steps, because one odd step is no news. The rules of a method come
with its task (`Task.alarms`); those here hold for all.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence

from seer.core.log import log
from seer.core.records import PATIENCE, Alarm
from seer.engine.metrics import done_after

__all__ = ["ALARMS", "FlightRecorder"]

SPIKE = 30.0  # times the median gradient norm of the steps before
ERRORS = 3.0  # standard errors that kNN accuracy must fall below where it began: chance does that to 1 look in 700


def fallen(start: float, now: float, images: int) -> bool:
    """Returns whether an accuracy on so many images is lower than chance explains: the z test of two binomial shares, pooled.

    The same images are asked each time, which makes the true error smaller: the test errs towards silence.
    """
    pooled = (start + now) / 2
    return start - now > ERRORS * math.sqrt(2 * pooled * (1 - pooled) / images)


ALARMS = (
    Alarm(
        "kNN below its start",
        "knn_top1",
        lambda rows: fallen(rows[-1]["knn_start"], rows[-1]["knn_top1"], int(rows[-1]["knn_images"])),
        "kNN fell to {knn_top1:.3f} from {knn_start:.3f} at the start, more than chance explains on {knn_images} images: "
        "training makes the backbone worse; lower schedule.peak, let it rest at first "
        "(groups=[{{pattern: '^backbone', frozen_steps: …}}]), or give the head a better start (task.kmeans of SwAV)",
        rows=1,
    ),
    Alarm(
        "gradient spike",
        "grad_norm",
        lambda rows: rows[-1]["grad_norm"] > SPIKE * statistics.median(r["grad_norm"] for r in rows[:-1]),
        "the gradient norm is {grad_norm:.3g}, more than 30 times the median of the steps before; lower schedule.peak or "
        "optim.weight_decay, lengthen schedule.warmup, or set precision.clip",
    ),
)


class FlightRecorder:
    """Warns of what goes wrong, as a metric sink. alarms: the task's own. knn_start: kNN accuracy where the run
    began, when it goes on; else the first that comes. knn_images: how many it is measured on; 0 = not known, so a fall of
    it is not judged. `raised` names the alarms raised so far, each at most
    once a run."""

    def __init__(self, alarms: Sequence[Alarm] = (), knn_start: float | None = None, knn_images: int = 0):
        self.raised: list[str] = []
        self._alarms = (*alarms, *ALARMS)
        self._knn_start, self._knn_images = knn_start, knn_images
        self._rows: dict[str, deque[Mapping[str, float]]] = {a.needs: deque(maxlen=PATIENCE) for a in self._alarms}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Looks at the values of a step, and warns of each alarm that they raise."""
        if "knn_top1" in values:
            self._knn_start = values["knn_top1"] if self._knn_start is None else self._knn_start
            values = {**values, "knn_start": self._knn_start, "knn_images": self._knn_images}
        judged = {need for need in self._rows if need != "knn_top1" or self._knn_images}
        for name in judged & values.keys():
            self._rows[name].append(values)
        for alarm in self._alarms:
            rows = list(self._rows[alarm.needs])
            if alarm.name in self.raised or len(rows) < alarm.rows or rows[-1] is not values:
                continue
            if alarm.found(rows):
                self.raised.append(alarm.name)
                log.warning(f"step {done_after(step, values)}: {alarm.words.format_map(values)}")

    def close(self) -> None:
        """Does nothing: nothing is held open."""
