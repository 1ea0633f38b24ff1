"""Decides from the losses that are logged when they have stopped falling: halvings for `constant_halving`.

The run is cut into windows of `patience` steps; at the end of each, the mean of the losses logged in it is held against
the lowest mean so far. Less than `threshold` (a share of it) below: the rate is halved from there on. SEER's article
says "divide by two when the loss stops decreasing" and no more; the rule is ours.

Surprising here: nothing but a list and four numbers is remembered, and all of them are in the checkpoint. So a run that
was stopped inside a window goes on inside it, and halves where it would have. Logged losses are means over all ranks,
so every rank decides alike without a word. Another `every.log` gives other means and maybe other halvings.
"""

import math
from collections.abc import Mapping
from typing import Any

from seer.core.errors import RequestError
from seer.core.log import log

__all__ = ["Plateau"]


class Plateau:
    """Watches the loss. patience: steps of a window. threshold: the share by which a mean has to be lower.
    after: where windows begin (the end of the warm-up). halved_at: the steps that the schedule reads; `observe`
    appends to this very list.

    Raises RequestError for a patience below 1 or a threshold outside 0..1.
    """

    def __init__(self, patience: int, threshold: float, halved_at: list[int], after: int = 0):
        if patience < 1 or not 0 <= threshold < 1:
            raise RequestError(
                f"plateau.patience={patience} steps, plateau.threshold={threshold}: at least 1, and a share from 0 to 1"
            )
        self.patience, self.threshold, self.halved_at, self.after = patience, threshold, halved_at, after
        self._best, self._sum, self._count, self._end = math.inf, 0.0, 0, after + patience

    def observe(self, done: int, loss: float) -> None:
        """Takes a loss logged when `done` steps were finished; those of the warm-up are passed over."""
        if done <= self.after:
            return
        self._sum, self._count = self._sum + loss, self._count + 1
        if done < self._end:
            return
        mean = self._sum / self._count
        if mean > self._best * (1 - self.threshold):
            self.halved_at.append(done)
            log.info(
                f"step {done}: the loss has stopped falling ({mean:.4f}, before {self._best:.4f}), "
                f"learning rate halved (halving {len(self.halved_at)})"
            )
        self._best = min(self._best, mean)
        self._sum, self._count, self._end = 0.0, 0, done + self.patience

    def state_dict(self) -> dict[str, Any]:
        numbers = {"best": self._best, "sum": self._sum, "count": self._count, "end": self._end}
        return {"halved_at": list(self.halved_at), **numbers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.halved_at[:] = state["halved_at"]  # the same list: the schedule holds it
        self._best, self._sum, self._count, self._end = (state[k] for k in ("best", "sum", "count", "end"))
