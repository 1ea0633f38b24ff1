"""One SwAV step on prepared crops: forward, codes, loss, backward, LARS. Crops of one size go through together, channels_last."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from prepare import crop
from process import held

from seer.core.records import Batch
from seer.engine.precision import Precision
from seer.models import zoo
from seer.optim.lars import LARS
from seer.parallel.world import World
from seer.parallel.wrap import parallelize
from seer.tasks.swav import SwAVTask

PARTIES = {"ours": ("fp32", False), "ours, compiled": ("fp32", True), "ours, bf16": ("bf16", False)}
PARTIES |= {"ours, bf16, compiled": ("bf16", True), "ours, float64": ("fp64", False)}
CPU = torch.device("cpu")


class Prepared(SwAVTask):
    """Learns from crops that have their colors, and remembers its codes."""

    def _seen(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        seen: tuple[torch.Tensor, torch.Tensor] = self.model([batch.fields[f"views/{s}"] for s in self.transform.sizes])
        return seen

    def _codes(self, *given: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        codes, deviation = super()._codes(*given, **named)
        self.last_codes = codes
        return codes, deviation


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    start = torch.load(Path(given["folder"], "start.pt"), weights_only=True)
    cut = crop(given)
    dtype, compiled = PARTIES[given["party"]]
    wide = torch.float64 if dtype == "fp64" else torch.float32  # of weights and crops
    given["floor"] = held("VmRSS")
    task = Prepared(zoo.build(given["model"]), cut, prototypes=given["prototypes"])
    task.backbone.load_state_dict(start["ours"])
    task.head.load_state_dict(start["head"])
    task.model = parallelize(task.model.to(wide), World(0, 1, 0, CPU), channels_last=True, compiled=compiled)
    parameters = [*task.backbone.parameters(), *task.head.parameters()]
    optimizer = LARS(parameters, lr=0.3 * given["batch"] / 256, momentum=0.9, weight_decay=1e-6)
    precision, steps = Precision(CPU, "bf16" if dtype == "bf16" else "fp32"), 0
    task.model.train()
    batches = [
        Batch({f"views/{s}": x.to(wide) for s, x in zip(cut.sizes, crops, strict=True)}, [], 0)
        for crops in start["crops"]
    ]

    def run() -> dict[str, Any]:
        nonlocal steps
        begun, wall = time.process_time(), time.perf_counter()
        task.before_step(steps)
        with precision.autocast():
            output = task.loss(batches[steps % len(batches)])
        precision.backward(output.loss)
        precision.step(optimizer, output.loss)
        task.after_step(steps)
        loss = output.loss.item()
        spent, passed = time.process_time() - begun, time.perf_counter() - wall
        steps += 1
        choices = task.last_codes[0].argmax(-1).flatten().tolist()
        return {"amount": given["batch"], "seconds": spent, "wall": passed, "loss": loss, "choices": choices}

    return {given["party"]: run}
