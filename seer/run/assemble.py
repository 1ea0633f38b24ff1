"""Makes a run's objects from its config, the same for training, for planning and for repeating a step of it."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seer.core import rng
from seer.core.build import build, find
from seer.core.errors import RequestError
from seer.core.log import log
from seer.core.protocols import Task, Transform
from seer.core.records import Batch
from seer.data.drawing import draw_shards
from seer.data.loading.loader import Loader
from seer.data.loading.reader import Reader
from seer.data.order import Plan, choose_lanes
from seer.data.quarantine import known_as, read_exclude
from seer.data.shards.shard import Shard
from seer.data.shards.writer import SHARDS_MANIFEST
from seer.engine.clock import Clock
from seer.engine.control import Every
from seer.engine.precision import Precision
from seer.engine.weight_average import WeightAverage
from seer.optim.groups import build_groups, split_groups
from seer.optim.plateau import Plateau
from seer.optim.schedules import Schedule
from seer.parallel import fairscale_backend
from seer.parallel.allocator import mmap_large_blocks
from seer.parallel.cores import cores_per_rank
from seer.parallel.memory import Loss, mean_square, recomputed_within, step_memory
from seer.parallel.world import World
from seer.parallel.wrap import parallelize
from seer.run.config import RunConfig
from seer.run.layer_rates import places_of
from seer.run.lineage import Lineage
from seer.run.network_input import backbone
from seer.run.schedule import Durations, schedule
from seer.run.skipped import exclude_files
from seer.run.source import open_source
from seer.run.weights import start_from

# of the time that ranks wait for each other: the words of the one that waits for storage come first
READ_TIMEOUT_FRACTION = 0.8


@dataclass
class Data:
    """Holds what is trained on. excluded: whether a shard's row is never read."""

    shards: list[Shard]
    plan: Plan
    loader: Loader
    threads: int
    excluded: Callable[[str, int], bool]


@dataclass
class Training:
    """Holds what trains. keep_steps: checkpoints at its multiples stay for ever. by_group: schedules of groups that have
    their own. licence: of the weights that the backbone started from, lineage: what heads came with them. average: of the weights,
    where one is kept."""

    task: Task
    optimizer: torch.optim.Optimizer
    precision: Precision
    lr: Schedule
    plateau: Plateau | None
    every: Every
    total_steps: int
    keep_steps: int
    clock: Clock
    by_group: dict[str, Schedule]
    licence: str | None = None
    lineage: Lineage = field(default_factory=Lineage)
    average: WeightAverage | None = None


def task(config: RunConfig, transform: Transform, lengths: Durations, world: World) -> tuple[Task, str | None]:
    """Makes the task on a backbone, from the seed or from `weights`, and tells the licence of these. Raises RequestError."""
    torch.manual_seed(rng.key(config.seed, "weights") & 0x7FFFFFFFFFFFFFFF)
    durations = getattr(find("task", config.task.get("_target_", "")), "durations", ())
    since = {k: lengths.steps(config.task[k], f"task.{k}") for k in durations if k in config.task}
    made = backbone(config)
    licence = None
    if config.weights:
        licence = start_from(config.weights, made, mean=transform.mean, std=transform.std, group=world.group)
    for step in config.surgery["steps"]:
        made = build("surgery", step, made)
    task = build("task", config.task, made, transform, world.group, **since)
    task.seed = config.seed
    return task, licence


def drawn(config: RunConfig, folder: Path, world: World) -> list[Shard]:
    """Draws the built-in images at the first start, those of the probe as well, and opens those to train on."""
    counts = {"train": config.data.drawn, "test": config.data.drawn_test}
    target = folder / "pictures"
    if world.rank == 0 and not all(
        (target / part / SHARDS_MANIFEST).exists() for part, count in counts.items() if count
    ):
        log.info(f"drawing {sum(counts.values())} images into {target}")
        draw_shards(target, counts, config.seed, len(os.sched_getaffinity(0)))  # the other ranks wait for it
    world.barrier()
    return open_source(config, folder, str(target / "train"))


def data(
    config: RunConfig,
    shards: list[Shard],
    transform: Transform,
    world: World,
    unlabelled: Iterable[tuple[int, int]] = (),
) -> Data:
    """Makes the order and the loader of this rank. unlabelled: (shard, row) that have nothing to be learned. Raises
    RequestError."""
    options, batch, seed = config.data, config.batch, config.seed
    lanes = options.lanes or choose_lanes(batch, sum(len(s) for s in shards))
    plan = Plan([len(s) for s in shards], seed=rng.key(seed, "order"), lanes=lanes, block=options.block)
    threads = cores_per_rank(world) if options.threads is None else options.threads
    exclude = read_exclude(exclude_files(options.exclude), shards, unlabelled)
    reader = Reader(shards, plan, rng.key(seed, "views"), exclude)
    loader = Loader(
        reader,
        transform,
        batch=batch,
        rank=world.rank,
        ranks=world.size,
        threads=threads,
        prefetch=options.prefetch,
        most_bytes=options.prefetch_gb * 1e9,
        pin=world.device.type == "cuda",
        painted=getattr(transform, "device", "auto") == "cpu" or world.device.type == "cpu",
        patience_s=READ_TIMEOUT_FRACTION * config.parallel.timeout_s,
    )
    return Data(shards, plan, loader, threads, partial(exclude.holds, known_as(shards)))


def view_shapes(transform: Transform, images: int) -> list[tuple[int, ...]]:
    """Returns [v*B, C, S, S] of each size of views, for so many images."""
    return [shape for name, (_, shape) in transform.layout(images).items() if name.startswith("views/")]


def counted_loss(task: Task, images: int, ranks: int, parts: int = 1) -> Loss:
    """Returns the task's loss as `step_memory` counts it: of one rank of so many, with so many images in each part of a
    batch; of several, that of the second, beside the gradients of the first and what the task keeps of the whole."""
    layout = task.transform.layout(images, painted=True)

    def loss(model: nn.Module, views: list[torch.Tensor]) -> torch.Tensor:
        # finish() works in place on views that are float32 already: they are counted once, by whoever made them
        fields = {f"views/{view.shape[-1]}": view for view in views}
        fields |= {n: torch.zeros(shape, dtype=dtype) for n, (dtype, shape) in layout.items() if n not in fields}
        twin, batch = task.counted(model, ranks), Batch(fields, [], images)
        if parts > 1:
            twin.before_parts([batch] * parts)
            twin.loss(batch).loss.backward()
        return twin.loss(batch).loss

    return loss


def recomputed(
    policy: str | Sequence[str],
    model: nn.Module,
    shapes: Sequence[Sequence[int]],
    dtype: torch.dtype,
    loss: Loss = mean_square,
) -> str | Sequence[str]:
    """Turns `budget=GB` into the blocks that keep a step below it; any other policy stays. Raises RequestError."""
    most = budget(policy)
    if most is None:
        return policy
    blocks = recomputed_within(model, round(most * 1e9), shapes, dtype, loss)
    peak = step_memory(model, shapes, dtype, blocks or "none", loss=loss).peak / 1e9
    log.info(
        f"parallel.remat={policy}: {len(blocks)} blocks are recomputed, a step takes {peak:.2f} GB beyond the weights: "
        f"{', '.join(blocks) or 'none need be'}"
    )
    return blocks or "none"


def budget(policy: str | Sequence[str]) -> float | None:
    """Returns the GB of `parallel.remat=budget=GB`, None of any other policy. Raises RequestError."""
    if not isinstance(policy, str) or not policy.startswith("budget="):
        return None
    try:
        most = float(policy.removeprefix("budget=").removesuffix("GB"))
    except ValueError:
        most = math.nan
    if not 0 < most < math.inf:
        raise RequestError(f"parallel.remat={policy}: a number of GB above 0 is expected, like budget=8")
    return most


def intervals(config: RunConfig, lengths: Durations) -> Every:
    """Turns `every` into steps. Raises RequestError and ValueError."""
    names = ("log", "evaluate", "checkpoint", "compare")
    every = Every(
        **{name: lengths.interval(getattr(config.every, name), f"every.{name}") for name in names},
        minutes=float(config.every.minutes),
    )
    if every.log <= 0:
        raise RequestError(f"every.log={config.every.log}: at least one step")
    return every


def groups(config: RunConfig, task: Task, lengths: Durations) -> list[dict[str, Any]]:
    """Makes parameter groups by the rules, of the names MODULE.PARAMETER. Raises ValueError."""
    rules = []
    for rule in config.groups or ():
        frozen = lengths.interval(rule.get("frozen_steps", 0), "groups: frozen_steps")
        rules.append({**rule, "frozen_steps": 0 if isinstance(frozen, Fraction) else frozen})  # see `frozen_by_clock`
    names = [
        (f"{part}.{name}", parameter)
        for part, module in task.modules().items()
        for name, parameter in module.named_parameters()
    ]
    made = build_groups(names, rules, weight_decay=config.optim.get("weight_decay", 0.0))
    places = places_of(task, float(config.layer_decay))
    return split_groups(made, places) if places else made


def frozen_by_clock(config: RunConfig, lengths: Durations, clock: Clock, lr: Schedule) -> dict[str, Schedule]:
    """Returns schedules by group name, of groups that stand still for a share of a run whose length is a time."""

    def since(share: Fraction) -> Schedule:
        return lambda step: None if clock.share < share else lr(step)

    found: dict[str, Schedule] = {}
    for rule in config.groups or ():
        frozen = lengths.interval(rule.get("frozen_steps", 0), "groups: frozen_steps")
        if isinstance(frozen, Fraction):
            found[rule.get("name") or rule["pattern"]] = since(frozen)
    return found


def on_device_arguments(node: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Returns what an optimizer of torch is given on a GPU where the config leaves the choice to torch: one kernel for the update.
    Torch's other forms cannot leave a broken step out by themselves, so the host would wait for its flag in every step
    (`Precision.step`)."""
    fusing = node.get("_target_") in ("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD")
    chosen = [node.get(name) for name in ("fused", "foreach", "differentiable")]
    open_ = chosen[0] is None and chosen[1] is None and not chosen[2]
    return {"fused": True} if device.type == "cuda" and fusing and open_ else {}


def training(config: RunConfig, task: Task, lengths: Durations, world: World, precision: Precision) -> Training:
    """Makes model, optimizer, schedule: everything that depends on the length of the run and on the world."""
    every, options = intervals(config, lengths), config.parallel
    if str(options.remat).startswith("budget=") and world.device.type == "cpu":
        mmap_large_blocks()  # a promise of memory is worth more time than a policy
    parts = config.accumulate
    here = config.batch // world.size // parts
    task.model = parallelize(
        task.model,
        world,
        mode=options.mode,
        batch_norm_group=options.batch_norm_group,
        channels_last=options.channels_last,
        remat=recomputed(
            options.remat,
            task.model,
            view_shapes(task.transform, here),
            precision.dtype,
            counted_loss(task, here, world.size, parts),
        ),
        compiled=options.compile,
        dtype=precision.dtype,
    )
    by_rule = groups(config, task, lengths)
    if options.mode == "fairscale" and world.group is not None:
        make = partial(build, "optim", config.optim, lr=0.0)
        task.model, optimizer = fairscale_backend.shard(task.model, by_rule, make, world)
    else:
        fused = on_device_arguments(config.optim, world.device)
        optimizer = build("optim", config.optim, by_rule, lr=0.0, **fused)  # the schedule sets it before every step
    clock = Clock(lengths.clock)
    lr, plateau = schedule(config.schedule, config.plateau, lengths, clock)
    keep_steps = lengths.steps(config.every.keep_steps, "every.keep_steps")
    by_group = frozen_by_clock(config, lengths, clock, lr)
    average = WeightAverage(task, config.ema) if config.ema else None
    made = (task, optimizer, precision, lr, plateau, every, lengths.total, keep_steps, clock, by_group)
    return Training(*made, average=average)
