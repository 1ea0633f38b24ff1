"""Keeps numbers by step on the device until it is time to look, then writes them to every sink in one go."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from seer.core.lines import Lines
from seer.core.log import log
from seer.core.protocols import MetricSink


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


def done_after(step: int, values: Mapping[str, float]) -> int:
    """Returns how many steps were done when a row was made, which is what people are told. Rows carry the number of the step
    itself, from 0; what was measured before any training says `images` 0."""
    return 0 if values.get("images") == 0 else step + 1


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
    """Writes event files beside the run: numbers by steps done, in groups (`GROUPS`; names with a slash have one already). A resumed
    run purges what lies behind its first step. Once storage has refused them, told, there are no more: `metrics.jsonl` has
    the same numbers."""

    GROUPS: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("loss", "lr", "weight_decay", "grad_norm", "loss_scale"), "training"),
        **dict.fromkeys(("images_per_s", "data_wait", "step_ms", "peak_memory_gb"), "speed"),
        **dict.fromkeys(("epoch", "images", "skipped"), "data"),
        **dict.fromkeys(("knn_top1", "knn_pixels", "knn_colours", "rankme", "linear_top1", "probe_share"), "probe"),
    }

    def __init__(self, folder: Path, first_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter  # 1 s to import, for those who want it

        self._writer: SummaryWriter | None = SummaryWriter(
            str(folder), purge_step=first_step + 1 if first_step else None
        )
        self._folder = folder

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            try:
                for name, value in values.items():
                    group = f"{self.GROUPS[name]}/" if name in self.GROUPS else ""
                    self._writer.add_scalar(group + name, value, done_after(step, values))
            except OSError as error:
                self._give_up(error)

    def show(self, name: str, pixels: np.ndarray, done: int) -> None:
        """Writes an image, uint8 [h, w, 3]. done: steps by then."""
        if self._writer is not None:
            try:
                self._writer.add_image(name, pixels, done, dataformats="HWC")
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
