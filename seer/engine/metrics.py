"""Keeps numbers by step on the device until it is time to look, then writes them to every sink in one go."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from seer.core.lines import Lines
from seer.core.log import log
from seer.core.protocols import MetricSink
from seer.engine.clock import Clock


class Metrics:
    """Collects numbers: sinks receive one row for each step passed to `add`, when `flush` is called."""

    def __init__(self, sinks: Sequence[MetricSink]):
        self.sinks = list(sinks)
        self._rows: list[tuple[int, dict[str, Any]]] = []
        self.last: dict[str, float] = {}

    def add(self, step: int, values: Mapping[str, torch.Tensor | float]) -> None:
        self._rows.append((step, dict(values)))

    def flush(self) -> None:
        """Fetches all rows from the device in one transfer, then hands them to the sinks. A sink may raise
        StopTraining."""
        rows, self._rows = self._rows, []
        tensors = [v.detach().float().reshape(()) for _, row in rows for v in row.values() if torch.is_tensor(v)]
        numbers = iter(torch.stack(tensors).tolist() if tensors else [])
        for step, row in rows:
            values = {k: next(numbers) if torch.is_tensor(v) else float(v) for k, v in row.items()}
            self.last.update(values)
            for sink in self.sinks:
                sink.write(step, values)

    def close(self) -> None:
        self.flush()
        for sink in self.sinks:
            sink.close()


class JsonLines:
    """Writes `metrics.jsonl`, one object a line. A resumed run first drops what was written behind its checkpoint."""

    def __init__(self, path: Path, first_step: int = 0):
        kept = [row for row in read_rows(path) if row["step"] < first_step] if first_step and path.exists() else []
        temporary = path.with_suffix(".writing")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        temporary.replace(path)
        self._lines = Lines(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        finite = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        self._lines.append(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        self._lines.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


class TensorBoard:
    """Writes event files beside the run. A resumed run purges what lies behind its first step. Once storage has
    refused them, told, there are no more: `metrics.jsonl` has the same numbers."""

    def __init__(self, folder: Path, first_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter  # 1 s to import, for those who want it

        self._writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=first_step or None)
        self._folder = folder

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            try:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.error(f"{self._folder} cannot be written: {error.strerror or error}; no more numbers go there")
        self._writer = None


class ProgressBar:
    """Shows people, on standard error, how the run goes: done, images/s, data wait, loss, time left.
    chance_loss: what a model that predicts nothing scores, told beside the loss where it is known (ln K for
    SwAV).

    A terminal gets a moving bar; a log file a line now and then, at most one every `quiet_s` seconds. clock: of a run whose
    length is a time; its steps are then as many as its speed gives.
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
        self._live = sys.stderr.isatty()
        self._bar = tqdm(
            total=None if clock is not None else total_steps,
            initial=first_step,
            unit="step",
            file=sys.stderr,
            disable=not self._live,
            dynamic_ncols=True,
        )
        self._start, self._first, self._said = time.monotonic(), first_step, -math.inf

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._clock is not None:
            self._total = self._bar.total = self._clock.total(step + 1)
        if "loss" not in values:
            self._say(step, "  ".join(f"{k} {v:.4f}" for k, v in values.items()))
            return
        words = (
            f"loss {values['loss']:.3f}{self._chance}  {values['images_per_s']:.0f} images/s  "
            f"data wait {values['data_wait']:.0%}"
        )
        if self._live:
            self._bar.set_description_str(words, refresh=False)
            self._bar.update(step + 1 - self._bar.n)
        elif time.monotonic() - self._said >= self._quiet or step + 1 == self._total:
            done = step + 1 - self._first
            left = (time.monotonic() - self._start) / max(done, 1) * (self._total - step - 1)
            if self._clock is not None and self._clock.limit is not None:
                left = max(0.0, self._clock.limit - self._clock.seconds)
            self._say(step + 1, f"{words}  {left / 60:.1f} min left")
            self._said = time.monotonic()

    def _say(self, step: int, words: str) -> None:
        if self._live:
            self._bar.clear()
        log.info(f"step {step}/{self._total}  {words}")

    def close(self) -> None:
        self._bar.close()
