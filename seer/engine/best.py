"""Keeps in mind at which step a figure was best, so that the checkpoint of that step can be kept.

Surprising: what has not been trained has no checkpoint and counts for nothing here; of equal values the earliest is the best;
and a figure that is no number never is. The value stands in every checkpoint, so a run that goes on knows what it has to beat.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seer.core.errors import RequestError
from seer.parallel.collectives import Group, first_ranks

LOWER = (
    "uniformity",
    "alignment",
    "error",
    "calibration",
)  # how names of figures end that are better when they are lower


@dataclass
class Best:
    """Holds the best value of a figure so far. word: its name, or the first part of it (knn of knn_top1). step: after how many
    steps it was measured."""

    word: str
    metric: str | None = None
    value: float | None = None
    step: int | None = None

    def observe(self, done: int, figures: Mapping[str, float], group: Group | None, complete: bool = True) -> bool:
        """Returns whether these figures, of a run that has done so many steps, are the best so far; the first rank's count.

        complete: all that the run measures is there. Raises RequestError where the figure is not among them then.
        """
        name = self.named(figures, complete)
        if name is None:
            return False
        value = first_ranks(float(figures[name]), group)
        worse = self.value is not None and (value >= self.value if name.endswith(LOWER) else value <= self.value)
        if not done or worse or math.isnan(value):
            return False
        self.metric, self.value, self.step = name, value, done
        return True

    def named(self, figures: Mapping[str, float], complete: bool) -> str | None:
        """Returns the name of the figure among these; None where it is not there this time."""
        for name in (self.word, f"{self.word}_top1", f"{self.word}/top1"):
            if name in figures:
                return name
        if complete:
            raise RequestError(
                f"every.keep_best={self.word}: the run measures no such figure; it measures {', '.join(sorted(figures)) or 'none'}"
            )
        return None

    def plain(self) -> dict[str, Any] | None:
        """Returns what checkpoints and results say; None where nothing was best yet."""
        return None if self.step is None else {"metric": self.metric, "value": self.value, "step": self.step}

    def forget(self) -> None:
        """Forgets the best step, as where its checkpoint is gone."""
        self.metric = self.value = self.step = None

    def go_on(self, told: Mapping[str, Any]) -> None:
        """Takes what a checkpoint says, where it is of the same figure."""
        if str(told.get("metric")) in (self.word, f"{self.word}_top1", f"{self.word}/top1"):
            self.metric, self.value, self.step = str(told["metric"]), float(told["value"]), int(told["step"])
