"""A flight recorder: looks at the logged numbers and says once, in words and with a remedy, when training goes wrong.

Nearly every rule looks at the last `PATIENCE` logged steps, because one odd step is no news. The rules of a method come
with its task (`Task.alarms`); those here hold for all.
"""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence

from seer.core.log import log
from seer.core.records import PATIENCE, Alarm

__all__ = ["ALARMS", "FlightRecorder"]

SPIKE = 30.0  # times the median gradient norm of the steps before
FALLEN = 0.01  # of kNN accuracy below where it began; of 1,000 images asked, one standard error and a half

ALARMS = (
    Alarm(
        "kNN below its start",
        "knn_top1",
        lambda rows: rows[-1]["knn_top1"] < rows[-1]["knn_start"] - FALLEN,
        "kNN fell to {knn_top1:.3f} from {knn_start:.3f} at the start: training makes the backbone worse; lower "
        "schedule.peak, let it rest at first (groups=[{{pattern: '^backbone', frozen_steps: …}}]), or give the head a "
        "better start (task.kmeans of SwAV)",
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
    began, when it goes on; else the first that comes. `raised` names the alarms raised so far, each at most
    once a run."""

    def __init__(self, alarms: Sequence[Alarm] = (), knn_start: float | None = None):
        self.raised: list[str] = []
        self._alarms = (*alarms, *ALARMS)
        self._knn_start = knn_start
        self._rows: dict[str, deque[Mapping[str, float]]] = {a.needs: deque(maxlen=PATIENCE) for a in self._alarms}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Looks at the values of a step, and warns of each alarm that they raise."""
        if "knn_top1" in values:
            self._knn_start = values["knn_top1"] if self._knn_start is None else self._knn_start
            values = {**values, "knn_start": self._knn_start}
        for name in self._rows.keys() & values.keys():
            self._rows[name].append(values)
        for alarm in self._alarms:
            rows = list(self._rows[alarm.needs])
            if alarm.name in self.raised or len(rows) < alarm.rows or rows[-1] is not values:
                continue
            if alarm.found(rows):
                self.raised.append(alarm.name)
                log.warning(f"step {step}: {alarm.words.format_map(values)}")

    def close(self) -> None:
        """Does nothing: nothing is held open."""
