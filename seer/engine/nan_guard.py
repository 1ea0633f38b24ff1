"""Saves what a step saw when one of its numbers is not finite, and stops the run.

Surprising here: the flag of a step is read while the next step is already on its way, so that no step waits for the
device; `precision` keeps the weights as they were meanwhile. Before a checkpoint the flag is read at once: a broken step's
batch-norm statistics must never be saved.

A capture is a folder RUN/capture-00001234 with `capture.json` (step, images, loss, gradient norm, config), `weights.pt` (the
task's state) and a file for each rank, `rank-00000.pt`: tensors and plain values, to be read with
`weights_only=True`. `seer pretrain replay=…` repeats the step from it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from seer.core.errors import NumericsError
from seer.parallel.collectives import gather_to_rank0
from seer.parallel.world import World

__all__ = ["CAPTURE_JSON", "CAPTURE_WEIGHTS", "NaNGuard"]
CAPTURE_JSON, CAPTURE_WEIGHTS = "capture.json", "weights.pt"


@dataclass
class _Seen:
    step: int
    flag: torch.Tensor  # [] float32, on the host, once `arrived`
    arrived: torch.cuda.Event | None
    numbers: Mapping[str, torch.Tensor]
    evidence: Mapping[str, torch.Tensor]
    history: torch.Tensor | None


class NaNGuard:
    """Saves the capture of a step that is not finite, and raises. folder: the run's. images(step) -> plain
    values that name this rank's images of a step. explain(evidence) -> what is made of a task's evidence, now
    that it is worth the work. weights() -> the task's state. config: plain values."""

    def __init__(
        self,
        folder: Path,
        world: World,
        *,
        images: Callable[[int], list[dict[str, Any]]],
        explain: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]],
        weights: Callable[[], Mapping[str, torch.Tensor]],
        config: Mapping[str, Any],
    ):
        self._folder, self._world, self._config = folder, world, config
        self._images, self._explain, self._weights = images, explain, weights
        self._seen: _Seen | None = None

    def watch(
        self,
        step: int,
        flag: torch.Tensor,
        numbers: Mapping[str, torch.Tensor],
        evidence: Mapping[str, torch.Tensor],
        history: torch.Tensor | None = None,
    ) -> None:
        """Starts to fetch this step's flag ([] float32, the same on every rank), and judges the step before it.

        numbers: {name: []}, evidence: {name: tensor} of this rank, held until the next step; history: of `Precision`, in
        fp16. Raises NumericsError.
        """
        arrived = None
        if flag.is_cuda:
            host = torch.empty((), pin_memory=True)
            host.copy_(flag, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            flag = host
        before, self._seen = self._seen, _Seen(step, flag, arrived, numbers, evidence, history)
        self._judge(before)

    def check_now(self) -> None:
        """Judges the last step now. Raises NumericsError."""
        last, self._seen = self._seen, None
        self._judge(last)

    def _judge(self, seen: _Seen | None) -> None:
        if seen is None:
            return
        if seen.arrived is not None:
            seen.arrived.synchronize()
        if not seen.flag.item():
            return
        self._seen = None
        numbers = {name: float(value) for name, value in seen.numbers.items()}
        where = self._capture(seen, numbers)
        message = ", ".join(f"{name} {value:g}" for name, value in numbers.items()) + _scales(seen.history)
        raise NumericsError(
            f"a number is not finite at step {seen.step} ({message}); nothing was updated, what the step saw is in {where}; "
            "lower schedule.peak, set precision.dtype=fp32 or precision.clip, and look at the images it names"
        )

    def _capture(self, seen: _Seen, numbers: Mapping[str, float]) -> Path:
        folder = self._folder / f"capture-{seen.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)  # every rank may be the first
        found = {name: tensor.detach().cpu() for name, tensor in self._explain(seen.evidence).items()}
        images = self._images(seen.step)
        torch.save({"pictures": images, **found}, folder / f"rank-{self._world.rank:05d}.pt")
        state = gather_to_rank0(self._weights(), self._world.group)
        if self._world.rank == 0:
            torch.save(state, folder / CAPTURE_WEIGHTS)
            card = {"step": seen.step, "ranks": self._world.size, **{k: str(v) for k, v in numbers.items()}}
            text = json.dumps({**card, "pictures": images, "config": self._config}, indent=1)
            (folder / CAPTURE_JSON).write_text(text, encoding="utf-8")
        self._world.barrier()
        return folder


def _scales(history: torch.Tensor | None) -> str:
    """Returns the loss scales of the last steps in words, equal neighbours once."""
    scales = [] if history is None else [scale for scale in history[:, 0].tolist() if scale]
    runs = [(scale, len(list(steps))) for scale, steps in groupby(scales)]
    if not runs:
        return ""
    message = ", ".join(f"{scale:g}" if times == 1 else f"{scale:g} ({times} steps)" for scale, times in runs)
    return f"; loss scales of the last {len(scales)} steps: {message}"
