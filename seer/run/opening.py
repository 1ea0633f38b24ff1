"""Tells people at the start what a run is going to do: a short table of numbers, each with the rule it comes from."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from seer.core import readable
from seer.core.log import log
from seer.data.shards.open import census_of
from seer.export.targets import limits
from seer.parallel.world import World
from seer.run.assemble import Data, Training
from seer.run.config import RunConfig
from seer.run.doubts import accumulates, doubts
from seer.run.schedule import rate

Row = tuple[str, str, str]  # what, the number, its rule; "" where the number was given as it is


def announce(asked: RunConfig, config: RunConfig, data: Data, training: Training, world: World, first: int) -> None:
    """Logs the table, and what the task has to say of itself. asked: the config as words gave it, before machine and data
    decided what they left open. first: the step that training goes on from."""
    log.info(f"data: {census_of(data.shards).line()}")
    for words in lines([*_rows(asked, config, data, training, world, first)]):
        log.info(words)
    for words in (*training.task.describe(config.batch), *doubts(config, data.plan.total, training.optimizer.defaults)):
        log.warning(words)
    if config.accumulate > 1:
        log.info(accumulates(config.accumulate, config.batch // world.size, training.task.model))
    if words := limits(training.task.modules()["backbone"]):  # type: ignore[arg-type,assignment]
        log.info(words)


def lines(rows: list[Row]) -> list[str]:
    """Returns the table, a line a row, its columns below each other."""
    wide = max((len(value) for _, value, rule in rows if rule), default=0)
    return [
        f"  {name:14}{value:{wide}}  {rule}".rstrip() if rule else f"  {name:14}{value}" for name, value, rule in rows
    ]


def _rows(
    asked: RunConfig, config: RunConfig, data: Data, training: Training, world: World, first: int
) -> Iterator[Row]:
    batch, total, images, task = config.batch, training.total_steps, data.plan.total, training.task
    sizes = [f"{name} {_millions(module)}" for name, module in task.modules().items()]
    yield "model", f"{_name(config.model)}: {', '.join(sizes)} M parameters", ""
    kept = f"{data.plan.lanes} lanes, {'chosen by the batch' if asked.data.lanes is None else 'data.lanes'}"
    yield "data", f"{images:,} images in {len(data.shards)} shards", kept
    going_on = f"; going on from step {first}" if first else ""
    clock = training.clock
    if clock.limit is None:
        length = f"steps={asked.steps}: {total * batch:,} images, {total * batch / images:.1f} epochs{going_on}"
        yield "steps", f"{total:,}", length
    else:
        over = f", {readable.duration(clock.seconds)} of them over" if clock.seconds else ""
        yield (
            "time",
            readable.duration(clock.limit),
            f"steps={asked.steps} of training{over}{going_on}; the schedule follows it",
        )
    yield (
        "batch",
        f"{batch}",
        f"{world.size} {'rank' if world.size == 1 else 'ranks'} of {batch // world.size} on {_place(world)}",
    )
    yield from _learning_rate(asked, training, batch)
    if "prototypes" in config.task:
        heads = config.task.get("heads", 1)
        share = f"{config.task['prototypes'] / batch:.3g} for each image of a batch"
        yield "prototypes", f"{config.task['prototypes']}{f' x {heads} heads' if heads > 1 else ''}", share
    if task.chance_loss is not None:
        swav = "prototypes" in config.task and math.isclose(math.exp(task.chance_loss), config.task["prototypes"])
        rule = f"of a model that predicts nothing{', ln of the prototypes' if swav else ''}"
        yield "chance loss", f"{task.chance_loss:.2f}", rule
    auto = "auto: what is default_dtype here" if asked.precision.get("dtype") == "auto" else "as asked"
    yield "precision", str(config.precision["dtype"]), auto
    own = "cores of this rank" if asked.data.threads is None else "data.threads"
    yield "readers", f"{data.threads} threads", f"{own}; {config.data.prefetch} batches ahead at the most"
    for what, number in (
        ("log", training.every.log),
        ("evaluate", training.every.evaluate),
        ("checkpoint", training.every.checkpoint),
    ):
        yield what, interval(number, clock.limit), f"every.{what}={getattr(asked.every, what)}"


def interval(number: int | Fraction, limit: float | None) -> str:
    """Returns the steps or, of a run whose length is a time, the time between two of a kind."""
    if not number:
        return "at the end"
    if limit is None or not isinstance(number, Fraction):
        return f"every {number:,} steps"
    return f"every {readable.duration(float(number) * limit)}"


def _learning_rate(asked: RunConfig, training: Training, batch: int) -> Iterator[Row]:
    """Yields the highest rate with the rule that made it, and its course."""
    given = str(asked.schedule["peak"])
    base, scaled, reference = given.partition("@")
    scaling = f" = {base} x {batch} / {reference}" if scaled else ""
    yield "learning rate", f"{rate(given, batch, None):g}", f"schedule.peak={given}{scaling}"
    course = [f"{name}={asked.schedule[name]}" for name in ("warmup", "start", "final") if asked.schedule.get(name)]
    ends = f"{training.lr(0):.3g} at first"
    if training.clock.limit is None:
        ends += f", {training.lr(training.total_steps - 1):.3g} at last"
    yield "  its course", _name(asked.schedule), f"{', '.join(course)}; {ends}"


def _name(node: Any) -> str:
    """Returns the name of a node's choice, or of what it builds."""
    return str(node.get("name") or str(node.get("_target_", "")).rpartition(".")[2])


def _millions(module: Any) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.3g}"


def _place(world: World) -> str:
    if world.device.type == "cpu":
        return "the CPU"
    import torch

    return torch.cuda.get_device_name(world.device)
