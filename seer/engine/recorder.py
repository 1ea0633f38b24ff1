"""A flight recorder: looks at the logged numbers and says once, in words and with a remedy, when training goes wrong.

Nearly every rule looks at the last `PATIENCE` logged steps, because one odd step is no news; limits were set between runs that
learnt and runs that did not (LOG.md). Surprising: a share of used prototypes means little when codes are uniform (the
first choice is then noise), and Sinkhorn's residual near 1 is usual at 3 rounds, so their limits are loose.

Sources: SwAV's advice for a loss stuck at ln K, and what its users met (facts: arXiv 2006.09882 and its repository).
"""

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from seer.core.log import log

__all__ = ["FlightRecorder"]

PATIENCE = 10  # logged steps that have to agree
UNIFORM = 0.95  # of ln K: entropy of a code. Runs that learnt: up to 0.81, and that early; collapsed ones: 0.96 to 1
PINNED = 0.005  # of ln K: distance of the loss from it
UNUSED = 0.1  # of K: prototypes that are anybody's first choice
UNBALANCED = 2.5  # relative excess of a prototype after Sinkhorn's last round; runs that learnt: up to 1.2
POINT = 0.2  # spread of embeddings, 1 = all around the sphere, 0 = one point
SPIKE = 30.0  # times the median gradient norm of the steps before
FALLEN = 0.01  # of kNN accuracy below where it began; of 1,000 pictures asked, one standard error and a half
UNIT = 1.01  # largest score; cosines end at 1

Rows = list[Mapping[str, float]]


@dataclass(frozen=True)
class Alarm:
    """needs: the metric it reads. found: the last rows, ln K and K -> is it so? words: may name the latest values.
    rows: how many it waits for."""

    name: str
    needs: str
    found: Callable[[Rows, float, int], bool]
    words: str
    rows: int = PATIENCE


ALARMS = (
    Alarm(
        "uniform codes",
        "codes/entropy",
        lambda rows, chance, _: all(r["codes/entropy"] >= UNIFORM * chance for r in rows),
        "collapsing: codes are uniform (entropy {codes/entropy:.3f}, ln K {chance:.3f}); lower task.epsilon (a tenth of "
        "task.temperature learns in small runs), freeze prototypes longer, or use fewer",
    ),
    Alarm(
        "loss at ln K",
        "loss",
        lambda rows, chance, _: all(abs(r["loss"] - chance) <= PINNED * chance for r in rows),
        "stuck: the loss rests at ln K = {chance:.3f}, as of a model that predicts nothing; lower task.epsilon, soften the "
        "colours of augment, set task.hard_until, or lower schedule.peak",
    ),
    Alarm(
        "unused prototypes",
        "codes/used_prototypes",
        lambda rows, _, prototypes: all(r["codes/used_prototypes"] < UNUSED * prototypes for r in rows),
        "{codes/used_prototypes:.0f} of {prototypes} prototypes are anybody's first choice; use fewer task.prototypes, a "
        "larger batch, or task.queue",
    ),
    Alarm(
        "unbalanced prototypes",
        "codes/residual",
        lambda rows, *_: statistics.median(r["codes/residual"] for r in rows) > UNBALANCED,
        "Sinkhorn ends far from balance (a prototype has {codes/residual:.1f} times its share too much); raise "
        "task.iterations or task.epsilon",
    ),
    Alarm(
        "embeddings in a point",
        "embeddings/spread",
        lambda rows, *_: all(r["embeddings/spread"] < POINT for r in rows),
        "collapsed: all embeddings point the same way (spread {embeddings/spread:.4f} of 1); set task.last_batch_norm, lower "
        "schedule.peak, and see whether the pictures differ at all",
    ),
    Alarm(
        "scores above 1",
        "scores/largest",
        lambda rows, *_: rows[-1]["scores/largest"] > UNIT,
        "a score is {scores/largest:.3f}, but cosines end at 1: prototypes or embeddings have lost unit length, and "
        "Sinkhorn will overflow; task.after_step has to normalise prototypes",
        rows=1,  # a few steps later every number is nan
    ),
    Alarm(
        "kNN below its start",
        "knn_top1",
        lambda rows, *_: rows[-1]["knn_top1"] < rows[-1]["knn_start"] - FALLEN,
        "kNN fell to {knn_top1:.3f} from {knn_start:.3f} at the start: training makes the backbone worse; lower "
        "schedule.peak, let it rest at first (groups=[{{pattern: '^backbone', frozen_steps: …}}]), or start prototypes "
        "by task.kmeans",
        rows=1,
    ),
    Alarm(
        "gradient spike",
        "grad_norm",
        lambda rows, *_: rows[-1]["grad_norm"] > SPIKE * statistics.median(r["grad_norm"] for r in rows[:-1]),
        "the gradient norm is {grad_norm:.3g}, more than 30 times the median of the steps before; lower schedule.peak or "
        "optim.weight_decay, lengthen schedule.warmup, or set precision.clip",
    ),
)


class FlightRecorder:
    """A metric sink. chance: ln K. prototypes: K. knn_start: kNN accuracy where the run began, when it goes on; else the first
    that comes. `told` names the alarms raised so far, each at most once a run."""

    def __init__(self, chance: float, prototypes: int, knn_start: float | None = None):
        self.told: list[str] = []
        self._knn_start = knn_start
        self._chance, self._prototypes = chance, prototypes
        self._rows: dict[str, deque[Mapping[str, float]]] = {a.needs: deque(maxlen=PATIENCE) for a in ALARMS}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if "knn_top1" in values:
            self._knn_start = values["knn_top1"] if self._knn_start is None else self._knn_start
            values = {**values, "knn_start": self._knn_start}
        for name in self._rows.keys() & values.keys():
            self._rows[name].append(values)
        for alarm in ALARMS:
            rows = list(self._rows[alarm.needs])
            if alarm.name in self.told or len(rows) < alarm.rows or rows[-1] is not values:
                continue
            if alarm.found(rows, self._chance, self._prototypes):
                self.told.append(alarm.name)
                known = {**values, "chance": self._chance, "prototypes": self._prototypes}
                log.warning(f"step {step}: {alarm.words.format_map(known)}")

    def close(self) -> None:
        """Nothing is held open."""
