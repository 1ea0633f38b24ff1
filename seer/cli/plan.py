"""`seer plan`: what a training step needs of each GPU, counted on shapes before a job is queued.

The sum of five parts, printed one by one: what stays (weights, gradients, momentum), whole blocks that FSDP has gathered, buffers
that talk, and the step's own tensors, which `parallel/memory.py` counts by running the step without data. Not in it: what
libraries take for themselves and what allocators waste, for which a tenth of the memory is left.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seer.cli import config
from seer.core.build import build
from seer.core.errors import RequestError
from seer.core.log import log
from seer.engine.precision import DTYPES
from seer.parallel.blocks import towers
from seer.parallel.memory import step_memory
from seer.parallel.world import World
from seer.run import assemble
from seer.run.config import RunConfig
from seer.run.schedule import Lengths

LEFT = 0.1  # of the memory, for libraries and allocators
PICTURES = 10**9  # durations are given meaning by these; they change no byte


def run(words: Sequence[str], output: list[Path]) -> dict[str, Any]:
    """Returns the sum and its parts, in GB of each GPU. Raises RequestError."""
    wanted = config.read("plan", words)
    gpus, gpu_memory = wanted.pop("gpus"), wanted.pop("gpu_memory")
    del wanted["replay"]
    asked_for = RunConfig.of(wanted).replace(weights=None)
    batch = asked_for.batch
    if gpus < 1:
        raise RequestError(f"gpus={gpus}: at least one")
    if batch % gpus:
        raise RequestError(f"batch={batch} over gpus={gpus}: the batch is a multiple of the GPUs; give batch=…")
    crop, world = build("augment", wanted["augment"]), World(0, 1, 0, torch.device("cpu"))
    lengths = Lengths(wanted["steps"], batch, PICTURES)
    with torch.device("meta"):
        task, _ = assemble.task(asked_for, crop, lengths, world)
        moments = 2 if "betas" in wanted["optim"] else 1
    asked = wanted["precision"]["dtype"]
    if asked not in (*DTYPES, "auto"):
        build("precision", wanted["precision"], world.device)  # says which there are
    dtype = DTYPES.get(asked, torch.bfloat16)  # auto: that of a GPU of such a size
    sharded = wanted["parallel"]["mode"] == "fsdp" and gpus > 1
    shapes = [(v * batch // gpus, 3, side, side) for v, side in zip(crop.counts, crop.sizes, strict=True)]
    policy = assemble.recomputed(wanted["parallel"]["remat"], task.model, shapes, dtype)

    units = _units(task.model)
    _print_units(units, dtype, sharded, policy)
    parameters = sum(units.values())
    largest = sorted(units.values())[-2:]
    narrow = torch.finfo(dtype).bits // 8
    share = gpus if sharded else 1
    step = step_memory(task.model, shapes, dtype, policy, sharded=sharded)
    # under DDP the step's peak has the gradients in it already
    held = {
        "weights": 4 * parameters / share,
        "gradients": 4 * parameters / share if sharded else 0,
        "momentum": 4 * moments * parameters / share,
        "gathered": narrow * sum(largest) if sharded else 0,
        "buffers": 4 * largest[-1] if sharded else 4 * parameters if gpus > 1 else 0,
        "pictures": 2 * sum(3 * n * side * side for n, _, side, _ in shapes) * 5,  # uint8 and float32, two steps
        "step": step.peak,
    }
    parts = {name: round(size / 1e9, 2) for name, size in held.items()}
    total = sum(held.values()) / 1e9
    room = gpu_memory * (1 - LEFT)
    fits = total <= room
    for name, size in parts.items():
        log.info(f"  {name:10} {size:8.2f} GB")
    log.info(
        f"  {'sum':10} {total:8.2f} GB of {room:.1f} GB ({wanted['gpu_memory']:g} GB less a tenth): "
        + (
            "fits"
            if fits
            else "does not fit; lower batch, or give parallel.mode=fsdp, parallel.remat=block, or more gpus"
        )
    )
    return {"gpus": gpus, "parameters": parameters, **parts, "sum": round(total, 2), "fits": fits}


def _units(model: nn.Module) -> dict[str, int]:
    """What FSDP gathers at once, and its parameters: each block and the rest of each tower, and the head."""
    units: dict[str, int] = {}
    for front, tower in towers(model).items():
        counts = {front + name: _parameters(block) for name, block in tower.blocks().items()}  # type: ignore[operator]
        units |= {f"{front}stem": _parameters(tower) - sum(counts.values()), **counts}
    return {**units, "head": _parameters(model) - sum(units.values())}


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _print_units(units: Mapping[str, int], dtype: torch.dtype, sharded: bool, policy: str | Sequence[str]) -> None:
    kind = "gathered one by one, " if sharded else ""
    log.info(f"{len(units)} parts, {kind}{str(dtype).removeprefix('torch.')}; recomputed: {policy}")
    for name, count in units.items():
        log.info(f"  {name:18} {count / 1e6:10.2f} M parameters")
