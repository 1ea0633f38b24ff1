"""Shows people, on standard error, how a run goes: a moving bar on a terminal, else a line now and then.

Steps are counted by how many are done, here and in every line: 0 is what was measured before any training. With a bar the
lines go to the run's train.log all the same, which does not depend on who watched.
"""

import math
import os
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from tqdm import tqdm

from seer.core import log as logs
from seer.core import readable
from seer.core.log import log
from seer.engine.clock import Clock
from seer.engine.metrics import done_after

HIDDEN = ("images", "epoch")  # of a row that is an evaluation: it says when, not how good
FORMAT = "{l_bar}{bar}| step {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"


COLUMNS, ROWS = 100, 24  # of a terminal that does not tell its size, as some containers' and schedulers' do not


class ProgressBar:
    """Shows what is done, images/s, data wait, loss and the time left, as a metric sink.

    chance_loss: what a model that predicts nothing scores, told beside the loss where it is known (ln K for SwAV). quiet_s:
    least time between two lines of losses. clock: of a run whose length is a time; its steps are then as many as its speed
    gives.
    """

    def __init__(
        self,
        total_steps: int,
        first_step: int,
        chance_loss: float | None = None,
        quiet_s: float = 20,
        clock: Clock | None = None,
    ):
        self._total, self._quiet, self._clock = total_steps, quiet_s, clock
        self._chance = "" if chance_loss is None else f" (chance {chance_loss:.2f})"
        self._start, self._first, self._said = time.monotonic(), first_step, -math.inf
        self._bar: Any = None
        if sys.stderr.isatty():
            # moved by step, drawn at most ten times a second; a terminal that is gone must not end the run
            columns, rows = os.get_terminal_size(sys.stderr.fileno())
            told = bool(columns and rows)  # of a terminal without rows tqdm would show nothing at all
            self._bar = tqdm(
                total=None if clock else total_steps,
                initial=first_step,
                file=sys.stderr,
                ncols=None if told else columns or COLUMNS,
                nrows=None if told else ROWS,
                dynamic_ncols=told,
                bar_format=FORMAT,
            )
            logs.beside(self._aside)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Shows a row of numbers."""
        done = done_after(step, values)
        if self._clock is not None:
            self._total = self._clock.total(max(done, 1))
            if self._bar is not None:
                self._bar.total = self._total
        if "loss" not in values:
            log.info(self._line(done, "  ".join(f"{k} {v:.4f}" for k, v in values.items() if k not in HIDDEN)))
            return
        epoch = f"epoch {values['epoch']:.1f}  " if "epoch" in values else ""
        words = (
            f"loss {values['loss']:.3f}{self._chance}  {readable.rate(values['images_per_s'])}  "
            f"data wait {values['data_wait']:.0%}"
        )
        if self._bar is not None:
            self._draw(lambda: self._bar.set_description_str(f"{epoch}{words}", refresh=False))
            self.moved(done)
        if time.monotonic() - self._said >= self._quiet or done == self._total:
            left = (time.monotonic() - self._start) / max(done - self._first, 1) * (self._total - done)
            if self._clock is not None and self._clock.limit is not None:
                left = max(0.0, self._clock.limit - self._clock.seconds)
            line = self._line(done, f"{epoch}{words}  {readable.duration(left)} left")
            (log.info if self._bar is None else logs.only_in_file)(line)
            self._said = time.monotonic()

    def moved(self, done: int) -> None:
        """Moves the bar to so many steps."""
        if self._bar is not None and done > self._bar.n:
            self._draw(lambda: self._bar.update(done - self._bar.n))

    def at(self, phase: str) -> None:
        """Shows beside the bar what is done instead of training; "" for training."""
        if self._bar is not None:
            self._draw(lambda: self._bar.set_postfix_str(phase))

    def close(self) -> None:
        """Leaves the last state of the bar on the screen."""
        if self._bar is not None:
            logs.beside(None)
            self._draw(self._bar.close)
            self._bar = None

    def _line(self, done: int, words: str) -> str:
        return f"step {done}/{self._total}  {words}"

    def _aside(self) -> AbstractContextManager[object]:
        """Returns a context in which a line may be written: the bar is wiped before and drawn again after it."""
        return _Aside(self)

    def _draw(self, change: Any) -> None:
        """Changes the bar; where its terminal is gone there is none any more."""
        try:
            change()
        except OSError:
            logs.beside(None)
            self._bar.disable = True  # else its end would try once more
            self._bar = None


class _Aside:
    def __init__(self, progress: ProgressBar):
        self._progress = progress

    def __enter__(self) -> None:
        bar = self._progress._bar
        if bar is not None:
            self._progress._draw(bar.clear)

    def __exit__(self, *_: object) -> None:
        bar = self._progress._bar
        if bar is not None:
            self._progress._draw(bar.refresh)
