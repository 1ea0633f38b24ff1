"""Checks a request for all that can be told wrong before its run folder is made, so that a wrong word leaves
nothing behind.

Surprising: what the run makes of its config later, on the true model and images, is made here once more and thrown away.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from seer.core.build import build, find
from seer.core.errors import RequestError
from seer.core.protocols import Task
from seer.data.holdout import count_or_share, held_out
from seer.data.ledger import parse_fraction
from seer.data.order import Plan, choose_lanes
from seer.engine.precision import Precision
from seer.engine.retention import Keep
from seer.models.library_network import LibraryNetwork
from seer.models.surgery import Frozen
from seer.parallel.remat import chosen
from seer.parallel.world import World
from seer.parallel.wrap import check_mode
from seer.run import assemble
from seer.run.config import RunConfig
from seer.run.schedule import Durations, schedule
from seer.run.skipped import exclude_files

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)  # whose statistics ranks can share (`parallel.batchnorm`)


def check_config(config: RunConfig) -> None:
    """Raises RequestError for what is wrong before anything is opened."""
    if not config.data.source and not config.data.drawn:
        raise RequestError("pretrain needs data.source=…: a folder of images or of tars, a tar, a glob, {000..009}")
    if not config.data.source and config.data.channels not in (1, 3):
        raise RequestError(
            f"data.channels={config.data.channels}: the built-in images are RGB; give data.source=…, or 1 or 3"
        )
    probe = config.probe
    if probe.run is None and config.eval.test and not config.eval.train and not has_heads(config):
        raise RequestError("the kNN probe needs both eval.train=… and eval.test=…")
    if probe.needs("test") and not has_heads(config):
        raise RequestError(
            "probe=head: the task has no heads to judge; leave it out, or take `seer adapt` or task=heads"
        )
    if probe.share is not None and not parse_fraction(probe.share, "probe.share"):
        raise RequestError(
            f"probe.share={probe.share}: above 0; to measure nothing leave eval.train= and eval.test= out"
        )
    drawn = not config.data.source and config.data.drawn_test
    if config.every.keep_best and not (config.eval.train or config.eval.test or config.holdout or drawn):
        raise RequestError(
            f"every.keep_best={config.every.keep_best}: nothing is measured while training; add eval.train=… eval.test=…, or "
            "holdout=… where heads are judged"
        )
    parse_fraction(config.data.max_bad)
    if count_or_share(config.holdout) and not has_heads(config):
        raise RequestError(
            f"holdout={config.holdout}: only heads are judged on images kept out of training; leave it 0"
        )
    for file in exclude_files(config.data.exclude):
        if not Path(file).is_file():
            raise RequestError(f"data.exclude={file} cannot be read: there is no such file; check the path")
    if Path(config.output).exists() and not Path(config.output).is_dir():
        raise RequestError(f"output={config.output} is a file; give a folder that is this run's, or a new one")


def has_heads(config: RunConfig) -> bool:
    """Returns whether the task has heads that `evals.heads` can judge."""
    return bool(getattr(find("task", config.task.get("_target_", "")), "judged", False))


def check_batch(config: RunConfig, world: World) -> None:
    """Raises RequestError for a batch that the ranks cannot share."""
    if config.batch < world.size or config.batch % world.size:
        raise RequestError(
            f"batch={config.batch} over {world.size} ranks: the batch is a multiple of the number of ranks, one image each "
            "at least"
        )
    if (config.batch // world.size) % config.accumulate:
        raise RequestError(
            f"accumulate={config.accumulate}: each of {world.size} ranks has {config.batch // world.size} images of "
            f"batch={config.batch}, which do not fall into so many equal parts"
        )


def check_parts(
    config: RunConfig, task: Task, lengths: Durations, precision: Precision, world: World, images: int
) -> None:
    """Raises RequestError and ValueError before the folder is claimed."""
    assemble.intervals(config, lengths)
    kept = lengths.steps(config.every.keep_steps, "every.keep_steps")
    Keep(config.every.keep, kept, config.every.keep_hours)
    schedule(config.schedule, config.plateau, lengths)
    assemble.groups(config, task, lengths)
    build("optim", config.optim, [nn.Parameter(torch.zeros(1))], lr=0.0)
    if config.optim.get("differentiable"):
        raise RequestError("optim.differentiable=true: nothing here goes back through a step; leave it false")
    if config.optim.get("capturable") and world.device.type == "cpu":
        raise RequestError("optim.capturable=true is for GPUs, and this is a CPU; leave it false")
    held_out(config.holdout, images)
    part = config.batch // world.size // config.accumulate
    if task.mixes and part % 2:
        raise RequestError(
            f"task.mixup, task.cutmix: images are blended two and two, and a rank has {part} at a time (batch={config.batch}, "
            f"{world.size} ranks, accumulate={config.accumulate}); give a batch of which each has an even number"
        )
    lanes = config.data.lanes or choose_lanes(config.batch, images)
    Plan([images], seed=0, lanes=lanes, block=config.data.block).places(0, config.batch, world.rank, world.size)
    _check_borrowed(config, task, world)
    _check_parallel(config, task, precision, world)


def _check_borrowed(config: RunConfig, task: Task, world: World) -> None:
    """Raises RequestError for what a network of another library cannot do: sizes of views that it does not take, and what needs to
    know its blocks or its batch norms."""
    backbone = task.modules()["backbone"]
    if not isinstance(backbone, LibraryNetwork):
        return
    for _, channels, height, width in assemble.view_shapes(task.transform, 1):
        backbone.shapes_of((2, channels, height, width))
    options = config.parallel
    if world.group is None:
        return
    if options.mode in ("fsdp", "fairscale"):
        raise RequestError(
            f"parallel.mode={options.mode}: {backbone} tells no blocks that could be sharded; use parallel.mode=ddp"
        )
    strange = [m for m in backbone.modules() if isinstance(m, _BatchNorm) and type(m) not in NORMS]
    moves = [m for m in strange if not isinstance(m, Frozen)]
    if moves and options.batch_norm_group != 1:
        raise RequestError(
            f"{backbone}: {type(moves[0]).__name__} does not share its statistics over ranks; give parallel.batch_norm_group=1, "
            "where each rank has its own"
        )


def _check_parallel(config: RunConfig, task: Task, precision: Precision, world: World) -> None:
    options = config.parallel
    if assemble.budget(options.remat) is None:
        chosen(task.model, options.remat)
    elif has_heads(config):
        raise RequestError(
            f"parallel.remat={options.remat}: what a step of heads keeps is not counted; parallel.remat=block, stage, selective, or names"
        )
    check_mode(options.mode, options.remat, options.compile)
    if options.mode == "fairscale" and world.group is not None and precision.scaler.is_enabled():
        raise RequestError(
            "parallel.mode=fairscale with precision=fp16: its ranks would scale apart; use bf16, or parallel.mode=fsdp"
        )
    group = options.batch_norm_group
    if group < 0 or (group and world.size % group):
        raise RequestError(f"parallel.batch_norm_group={group} does not divide {world.size} ranks; 0 means all")
