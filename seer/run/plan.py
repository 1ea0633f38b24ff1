"""Counts what a training step of any task needs of each GPU, on shapes, before a job is queued.

The sum of parts, printed one by one: what stays (weights, gradients, momentum), whole blocks that FSDP has gathered, buffers
that talk, images, and the step's own tensors with the task's true loss, which `parallel/memory.py` counts by running the step
without data. Of a GPU a tenth of the memory is left for what libraries take for themselves and what allocators waste.

With `parallel.device=cpu` it is the memory of one training process, beyond that of the program before its first step. There
`allocator` is what holes between the C library's blocks add and `libraries` what these keep, measured allowances
(`parallel/allocator.py`), and `images` has the ring of batches in it; the reader process beside it is not counted.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from seer.core import budget as limits
from seer.core.budget import Budget
from seer.core.build import build
from seer.core.errors import RequestError
from seer.core.log import log
from seer.core.protocols import Task
from seer.data import augment
from seer.data.loading.batch_buffer import BatchLayout
from seer.data.loading.loader import HELD
from seer.engine.precision import DTYPES, default_dtype
from seer.export import gate
from seer.models import cost
from seer.parallel.allocator import LIBRARIES, wasted
from seer.parallel.blocks import towers
from seer.parallel.memory import Live, Shapes, step_memory
from seer.parallel.world import World
from seer.run import assemble, network_input
from seer.run.config import RunConfig
from seer.run.resume import moments
from seer.run.schedule import Durations

HEADROOM = 0.1  # of the memory, for libraries and allocators
UNLIMITED = Budget()
IMAGES = 10**9  # durations are given meaning by these; they change no byte


def plan(config: RunConfig, gpus: int, gpu_memory: float, budget: Budget = UNLIMITED) -> dict[str, Any]:
    """Returns the sum and its parts, in GB of each GPU, and what the backbone costs in use. Raises RequestError."""
    batch, options = config.batch, config.parallel
    if gpus < 1:
        raise RequestError(f"gpus={gpus}: at least one")
    pieces = config.accumulate
    if batch % (gpus * pieces):
        raise RequestError(
            f"batch={batch} over gpus={gpus}, accumulate={pieces}: the batch is a multiple of the GPUs and of the parts of each; "
            "give batch=…"
        )
    images = batch // gpus // pieces  # that run at once
    task = _task(config)
    host = options.device == "cpu"
    dtype = _dtype(config, host)
    sharded = options.mode == "fsdp" and gpus > 1
    shapes = assemble.view_shapes(task.transform, images)
    loss = assemble.counted_loss(task, images, gpus, pieces)
    policy = assemble.recomputed(options.remat, task.model, shapes, dtype, loss)

    units = _units(task.model)
    parameters = sum(units.values())
    largest = sorted(units.values())[-2:]
    share = gpus if sharded else 1
    tensors = step_memory(task.model, shapes, dtype, policy, sharded=sharded, loss=loss).peak
    scratch = _scratch(config.optim, task.model, host) / share  # beside gradients, once activations are gone
    gradients = 4 * parameters / share
    step = max(tensors, scratch + (0 if sharded else gradients), 0 if host else _painting(task, images))
    # under DDP the step's peak has the gradients in it already
    held = {
        "weights": 4 * parameters / share,
        # FSDP holds whole ones while it adds up parts
        "gradients": gradients + (4 * parameters if pieces > 1 else 0) if sharded else 0,
        "momentum": 4 * moments(config.optim) * parameters / share,
        "gathered": torch.finfo(dtype).bits // 8 * sum(largest) if sharded else 0,
        "buffers": 4 * largest[-1] if sharded else 4 * parameters if gpus > 1 else 0,
        "pictures": _images(config, task, images, shapes, host),
        "step": step,
    }
    if host:
        at_once = assemble.budget(options.remat) is not None
        held["libraries"] = LIBRARIES
        held["allocator"] = wasted(round(step), policy, at_once=at_once)
    total = _print_parts(held, gpu_memory)
    _print_units(units, dtype, sharded, policy)
    used = _use(task, max(side for _, _, side, _ in shapes), budget)
    parts = {name: round(size / 1e9, 2) for name, size in held.items()}
    fits = total <= gpu_memory * (1 - HEADROOM)
    return {
        **{"device": "cpu" if host else "gpu", "gpus": gpus, "parameters": parameters},
        **parts,
        **{"sum": round(total, 2), "fits": fits},
        **({"backbone": used} if used else {}),
    }


def _use(task: Task, side: int, budget: Budget) -> dict[str, Any] | None:
    """Tells and returns what the backbone will cost whoever uses it, on one image of `side` pixels, and how that keeps a budget as a
    float program and in int8; None of a stranger's network, which tells no architecture."""
    architecture = getattr(task.modules().get("backbone"), "architecture", None)
    if not isinstance(architecture, Mapping):
        return None
    found = cost.of(architecture, side)
    log.info(
        f"  the backbone in use: {found['parameters'] / 1e6:.2f} M parameters, {found['weight_bytes'] / 1e6:.1f} MB in float32, "
        f"{found['macs'] / 1e9:.3f} G multiply-adds an image of {side} pixels"
    )
    log.info(
        f"  as a program (predicted): a file of {found['fp32_file_bytes'] / 1e6:.2f} MB, in int8 {found['int8_file_bytes'] / 1e6:.2f} MB; "
        f"{found['live_bytes'] / 1e6:.1f} MB of activations live at once in float32"
    )
    kept: dict[str, Any] = {}
    for form in gate.FORMS:
        rows = limits.check(budget, gate.predicted(found, form))
        for row in rows:
            log.info(f"  budget, {form}: {limits.line(row)}")
        kept |= {form: limits.plain(budget, rows)} if rows else {}
    if any(one["pass"] is False for one in kept.values()):
        nearest = gate.fitting(budget, architecture, side, "float32")
        log.info(
            f"  predicted to fit: {', '.join(f'{one.name} in {one.form}' for one in nearest) or 'no smaller row of the zoo'}"
        )
        kept["nearest"] = [vars(one) for one in nearest]
    return {"side": side, **found, **({"budget": kept} if kept else {})}


def _task(config: RunConfig) -> Task:
    """Makes the task without memory for its weights."""
    transform = network_input.transform(config)
    lengths = Durations(config.steps, config.batch, IMAGES)
    with torch.device("meta"):
        alone = World(0, 1, 0, torch.device("cpu"))
        return assemble.task(config.replace(weights=None), transform, lengths, alone)[0]


def _dtype(config: RunConfig, host: bool) -> torch.dtype:
    asked = config.precision.get("dtype", "auto")
    if asked not in (*DTYPES, "auto"):
        build("precision", config.precision, torch.device("cpu"))  # says which there are
    auto = DTYPES[default_dtype(torch.device("cpu"))] if host else torch.bfloat16  # that of a GPU of such a size
    return DTYPES.get(asked, auto)


def _print_parts(held: Mapping[str, float], memory: float) -> float:
    """Tells the sum, which is what people came for, and then its parts; returns it, in GB."""
    total = sum(held.values()) / 1e9
    room = memory * (1 - HEADROOM)
    remedy = "does not fit; lower batch, or give parallel.mode=fsdp, parallel.remat=block, or more gpus"
    log.info(
        f"  {'sum':10} {total:8.2f} GB of {room:.1f} GB ({memory:g} GB less a tenth): {'fits' if total <= room else remedy}"
    )
    for name, size in held.items():
        log.info(f"  {name:10} {size / 1e9:8.2f} GB")
    return total


def _images(config: RunConfig, task: Task, images: int, shapes: Shapes, host: bool) -> float:
    """Returns the bytes of the float32 views of a step, and of uint8 batches: on a GPU one more step of both, on a CPU the
    ring. images, shapes: of what runs at once; of several parts the uint8 ones are there twice, and one part's float32 ones."""
    pixels, parts = sum(c * n * side * side for n, c, side, _ in shapes), config.accumulate
    if not host:
        return 2 * 5 * pixels if parts == 1 else (2 * 4 + 3 * parts) * pixels
    block = BatchLayout(task.transform.layout(images * parts, painted=True), images * parts).bytes
    options = config.data
    ahead = max(1, int(min(options.prefetch, options.prefetch_gb * 1e9 // block - HELD)))  # as `Loader` chooses
    return 4 * pixels + (parts * pixels if parts > 1 else 0) + (HELD if options.threads == 0 else ahead + HELD) * block


def _scratch(optim: Mapping[str, Any], model: nn.Module, host: bool) -> float:
    """Returns the bytes that an update takes beside gradients: Adam's square roots and quotients, of one tensor at a time on a
    CPU and of all at once on a GPU; the fused ones and LARS take none."""
    if "betas" not in optim or optim.get("fused"):
        return 0
    sizes = [4 * p.numel() for p in model.parameters()]
    one_by_one = optim.get("foreach") is False or (host and not optim.get("foreach"))
    return 2 * max(sizes) if one_by_one else sum(sizes)


def _painting(task: Task, images: int) -> int:
    """Returns the bytes that color and blur take on a GPU, of one size of views at a time, before there is any activation:
    gathered views beside the finished ones, as many as are to be expected. 0 for a transform that leaves no color to apply."""
    transform: Any = task.transform
    layout = transform.layout(images)
    if getattr(transform, "device", "auto") == "cpu" or not any(name.startswith("color/") for name in layout):
        return 0
    most = 0
    with FakeTensorMode():
        for n, channels, side, _ in assemble.view_shapes(transform, images):
            turned, blurred = (math.ceil(share * n) for share in (transform.jitter / 4, transform.blur))
            with Live() as live:
                change = augment.hue if channels == 3 else augment.contrast
                change(torch.empty(turned, channels, side, side), torch.empty(turned, 1, 1, 1))
                if blurred:
                    reach = math.ceil(3 * transform.blur_sigma[1])
                    augment.blur(torch.empty(blurred, channels, side, side), torch.empty(blurred), reach)
            most = max(most, live.peak)
    return most


def _units(model: nn.Module) -> dict[str, int]:
    """Returns what FSDP gathers at once, and its parameters: each block and the rest of each tower, and the head."""
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
