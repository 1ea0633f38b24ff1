"""Config -> the objects of a run, the same for training and for repeating a step of it."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seer.core import rng
from seer.core.build import build
from seer.core.errors import RequestError
from seer.core.log import log
from seer.core.records import Batch
from seer.data import sample
from seer.data.loader import Loader
from seer.data.multicrop import MultiCrop
from seer.data.order import Plan, choose_lanes
from seer.data.quarantine import known_as, read_exclude
from seer.data.reader import Reader
from seer.data.shards import MANIFEST, Shard, open_shards, write_shards
from seer.engine.loop import Every
from seer.engine.precision import Precision
from seer.losses.queue import Queue
from seer.optim.groups import build_groups
from seer.optim.plateau import Plateau
from seer.optim.schedules import Schedule
from seer.parallel import fairscale_backend
from seer.parallel.allocator import give_back_at_once
from seer.parallel.cores import own_cores
from seer.parallel.memory import Loss, mean_square, recomputed_within, step_memory
from seer.parallel.world import World
from seer.parallel.wrap import parallelize
from seer.run import folder as run_folder
from seer.run.schedule import Lengths, schedule
from seer.run.weights import start_from
from seer.tasks.swav import SwAVTask

STORAGE_SHARE = (
    0.8  # of the time that ranks wait for each other: the words of the one that waits for storage come first
)
DURATIONS = ("hard_until", "queue_from")  # arguments of a task that people write as durations


@dataclass
class Data:
    shards: list[Shard]
    plan: Plan
    loader: Loader
    threads: int
    excluded: Callable[[str, int], bool]  # whether a shard's row is never read


@dataclass
class Training:
    task: SwAVTask
    optimizer: torch.optim.Optimizer
    precision: Precision
    lr: Schedule
    plateau: Plateau | None
    every: Every
    total_steps: int
    keep_steps: int  # checkpoints at its multiples stay for ever
    licence: str | None = None  # of the weights that the backbone started from


def task(wanted: Mapping[str, Any], crop: MultiCrop, lengths: Lengths, world: World) -> tuple[SwAVTask, str | None]:
    """The task on a backbone, made from the seed or from `weights`, and the licence of these. Raises RequestError."""
    torch.manual_seed(rng.key(wanted["seed"], "weights") & 0x7FFFFFFFFFFFFFFF)
    since = {k: lengths.steps(wanted["task"][k], f"task.{k}") for k in DURATIONS if k in wanted["task"]}
    backbone = build("model", wanted["model"], device=None)
    weights = wanted["weights"]
    licence = start_from(weights, backbone, mean=crop.mean, std=crop.std, group=world.group) if weights else None
    for step in wanted["surgery"]["steps"]:
        backbone = build("surgery", step, backbone)
    return build("task", wanted["task"], backbone, crop, world.group, **since), licence


def drawn(wanted: dict[str, Any], folder: Path, world: World) -> list[Shard]:
    """The built-in pictures, drawn at the first start; they also serve the probe when it has no pictures of its own."""
    counts = {"train": wanted["data"]["drawn"], "test": wanted["data"]["drawn_test"]}
    first = 0
    for part, count in counts.items():
        target = folder / "pictures" / part
        if world.rank == 0 and count and not (target / MANIFEST).exists():
            log.info(f"drawing {count} pictures into {target}")
            card = {"classes": list(sample.KINDS)}
            write_shards(sample.samples(count, wanted["seed"], first), target, total=count, per_shard=1000, card=card)
        first += count
    world.barrier()
    if counts["test"] and not wanted["eval"]["train"]:
        wanted["eval"].update({part: str(folder / "pictures" / part) for part in counts})
    return open_shards(folder / "pictures" / "train")


def data(wanted: Mapping[str, Any], shards: list[Shard], crop: MultiCrop, world: World) -> Data:
    how, batch, seed = wanted["data"], wanted["batch"], wanted["seed"]
    lanes = how["lanes"] or choose_lanes(batch, sum(len(s) for s in shards))
    plan = Plan([len(s) for s in shards], seed=rng.key(seed, "order"), lanes=lanes, block=how["block"])
    threads = own_cores(world) if how["threads"] is None else how["threads"]
    exclude = read_exclude(run_folder.lists(how["exclude"]), shards)
    reader = Reader(shards, plan, rng.key(seed, "views"), exclude)
    pin = world.device.type == "cuda"
    loader = Loader(
        reader,
        crop,
        batch=batch,
        rank=world.rank,
        ranks=world.size,
        threads=threads,
        prefetch=how["prefetch"],
        most_bytes=how["prefetch_gb"] * 1e9,
        pin=pin,
        paint=crop.device == "cpu" or world.device.type == "cpu",
        patience_s=STORAGE_SHARE * wanted["parallel"]["timeout_s"],
    )
    return Data(shards, plan, loader, threads, partial(exclude.holds, known_as(shards)))


def counted_loss(task: SwAVTask, ranks: int) -> Loss:
    """The task's loss, as `step_memory` counts it: of one rank of so many, without collectives, with a full queue and, where
    codes are ever one-hot, with those."""

    def loss(model: nn.Module, crops: list[torch.Tensor]) -> torch.Tensor:
        twin = copy.copy(task)
        twin.model, twin.backbone, twin.head, twin.group = model, model.backbone, model.head, None  # type: ignore[assignment]
        twin.step = 0
        if task.queue is not None:
            share = max(1, task.queue.length // ranks)
            width = task.head.prototypes.weight.shape[1]
            twin.queue = Queue(share)
            twin.queue.load_state_dict({"rows": torch.empty(len(task.assign), share, width)})
        # finish() works in place on crops that are float32 already: they are counted once, by whoever made them
        return twin.loss(Batch(crops, [None] * len(crops), [], 0)).loss

    return loss


def recomputed(
    policy: str | Sequence[str],
    model: nn.Module,
    shapes: Sequence[Sequence[int]],
    dtype: torch.dtype,
    loss: Loss = mean_square,
) -> str | Sequence[str]:
    """`budget=GB` -> the blocks that keep a step below it; any other policy as it is. Raises RequestError."""
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
    """GB of `parallel.remat=budget=GB`, None of any other policy. Raises RequestError."""
    if not isinstance(policy, str) or not policy.startswith("budget="):
        return None
    try:
        most = float(policy.removeprefix("budget=").removesuffix("GB"))
    except ValueError:
        most = math.nan
    if not 0 < most < math.inf:
        raise RequestError(f"parallel.remat={policy}: a number of GB above 0 is expected, like budget=8")
    return most


def often(wanted: Mapping[str, Any], lengths: Lengths) -> Every:
    """Raises RequestError and ValueError."""
    steps = {
        name: lengths.steps(wanted["every"][name], f"every.{name}")
        for name in ("log", "evaluate", "checkpoint", "compare")
    }
    every = Every(**steps, minutes=float(wanted["every"]["minutes"]))
    if every.log < 1:
        raise RequestError(f"every.log={wanted['every']['log']}: at least one step")
    return every


def groups(wanted: Mapping[str, Any], task: SwAVTask, lengths: Lengths) -> list[dict[str, Any]]:
    """Parameter groups by the rules. Raises ValueError."""
    rules = [
        {**rule, "frozen_steps": lengths.steps(rule.get("frozen_steps", 0), "groups: frozen_steps")}
        for rule in wanted["groups"]
    ]
    modules = {"backbone": task.backbone, "head": task.head}
    names = [(f"{part}.{name}", p) for part, module in modules.items() for name, p in module.named_parameters()]
    return build_groups(names, rules, weight_decay=wanted["optim"]["weight_decay"])


def training(
    wanted: Mapping[str, Any], task: SwAVTask, lengths: Lengths, world: World, precision: Precision
) -> Training:
    """Model, optimizer, schedule: everything that depends on the length of the run and on the world."""
    every = often(wanted, lengths)
    how = wanted["parallel"]
    here = wanted["batch"] // world.size
    shapes = [(v * here, 3, side, side) for v, side in zip(task.crop.counts, task.crop.sizes, strict=True)]
    if str(how["remat"]).startswith("budget=") and world.device.type == "cpu":
        give_back_at_once()  # a promise of memory is worth more time than a policy
    task.model = parallelize(
        task.model,
        world,
        mode=how["mode"],
        batch_norm_group=how["batch_norm_group"],
        channels_last=how["channels_last"],
        remat=recomputed(how["remat"], task.model, shapes, precision.dtype, counted_loss(task, world.size)),
        compiled=how["compile"],
        dtype=precision.dtype,
    )
    parts = groups(wanted, task, lengths)
    if how["mode"] == "fairscale" and world.group is not None:
        task.model, optimizer = fairscale_backend.shard(task.model, parts, partial(build, wanted["optim"]), world)
    else:
        optimizer = build("optim", wanted["optim"], parts)
    lr, plateau = schedule(wanted["schedule"], wanted["plateau"], lengths)
    keep_steps = lengths.steps(wanted["every"]["keep_steps"], "every.keep_steps")
    return Training(task, optimizer, precision, lr, plateau, every, lengths.total, keep_steps)
