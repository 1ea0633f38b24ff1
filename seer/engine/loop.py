"""The training loop: one function that everything passes through, top to bottom."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from seer.core.errors import Interrupted
from seer.core.protocols import Evaluator, StopTraining, Task
from seer.core.records import Batch, Skipped
from seer.data.transfer import on_device
from seer.engine.metrics import Metrics
from seer.engine.numerics import Guard
from seer.engine.precision import Precision
from seer.engine.probe import Probe
from seer.engine.saving import Checkpoints
from seer.engine.stop import StopRequest
from seer.engine.straggler import Stragglers
from seer.optim.groups import apply_schedules, drop_frozen_gradients
from seer.optim.lars import trust
from seer.optim.plateau import Plateau
from seer.optim.schedules import Schedule
from seer.parallel.agreement import replicated, same_weights
from seer.parallel.batchnorm import averaged
from seer.parallel.collectives import all_reduce_mean, highest
from seer.parallel.world import World

SAVE, GIVE_UP, STOP = 1, 2, 3  # what a rank may ask for at the end of a step; the highest counts


@dataclass(frozen=True)
class Every:
    """How often, in steps; 0 = only where it must be (evaluation and checkpoint: at the end; compare, of the weights that
    ranks hold in common: before a checkpoint). minutes: a checkpoint also so long after the last one, on any rank's clock;
    0 = not."""

    log: int
    evaluate: int
    checkpoint: int
    compare: int = 0
    minutes: float = 0.0


def fit(
    task: Task,
    batches: Callable[[int], Iterator[Batch]],
    optimizer: torch.optim.Optimizer,
    *,
    lr: Schedule,
    plateau: Plateau | None,
    weight_decay: Schedule | None,
    precision: Precision,
    guard: Guard,
    checkpoints: Checkpoints,
    metrics: Metrics,
    evaluators: Sequence[Evaluator],
    ledger: Callable[[int, Sequence[Skipped]], tuple[int, Mapping[str, int]]],
    world: World,
    every: Every,
    batch: int,
    pictures: int,
    first_step: int,
    total_steps: int,
    facts: Mapping[str, Any],
    stop: StopRequest,
) -> None:
    """Train from first_step to total_steps.

    batches(consumed) yields what comes after `consumed` pictures of the run. ledger(step, skipped) keeps the skipped and
    returns how many there are by now on this rank, and how many by reason on all, as last heard; metrics tell the sum of them,
    and the mean of a loss, over all ranks. Raises Interrupted once a requested stop is saved, LostPeer when another rank is gone,
    NumericsError for a loss or a gradient that is not finite (a step late, with nothing updated since), StorageError when
    the last save or several on end cannot be written, and what the loader raises.
    """

    saved_at = time.monotonic()
    slow = Stragglers(world, socket.gethostname()) if world.size > 1 else None

    def agree(step: int) -> None:
        same_weights(step, replicated(task.state_dict()), world.group)

    def save(step: int) -> None:
        nonlocal saved_at
        world.note(step, "saving")
        guard.settle()
        probe.mark()
        agree(step)
        parts: dict[str, Any] = {"task": task, "optimizer": optimizer, "precision": precision, "plateau": plateau}
        state = {name: part.state_dict() for name, part in parts.items() if part is not None}
        checkpoints.save(step, state, {**facts, "images": step * batch})
        probe.skip()
        saved_at = time.monotonic()

    def look(done: int) -> bool:
        """Write what is waiting, judge the last step; True when a sink has seen enough."""
        guard.settle()
        try:
            metrics.flush()
        except StopTraining:
            return True
        if plateau is not None and done:
            plateau.observe(done, metrics.last["loss"])
        return False

    probe = Probe(world.device, batch)
    task.model.train()
    if first_step == 0 and evaluators:
        metrics.add(0, _evaluate(task, evaluators, world, checkpoints.statistics))
        probe.skip()
    coming = on_device(batches(first_step * batch), world.device)
    with stop.held(), closing(checkpoints), closing(coming) as stream:  # type: ignore[type-var]
        for step, batch_now in zip(range(first_step, total_steps), stream, strict=False):
            probe.waited()
            world.note(step, "training")
            apply_schedules(optimizer, step, lr, weight_decay)
            task.before_step(step)
            with precision.autocast():
                output = task.loss(batch_now)
            precision.backward(output.loss)
            drop_frozen_gradients(optimizer)
            norm = precision.step(optimizer, output.loss, world.group)
            task.after_step(step)
            numbers = {"grad_norm": norm, **precision.numbers()}
            seen = {"loss": output.loss.detach(), **numbers}
            guard.watch(step, precision.broken, seen, output.evidence, precision.history)
            skipped, reasons = ledger(step, batch_now.skipped)
            probe.stepped()

            done, end, enough = step + 1, step + 1 == total_steps, False
            if end or done % every.log == 0:
                shared = _over_ranks({"loss": output.loss, **output.metrics, "skipped": skipped * world.size}, world)
                progress = {"epoch": done * batch / pictures, "images": done * batch}
                guard.settle()  # which waits for the device
                cost = probe.read()
                by_reason = {f"skipped/{reason}": count for reason, count in reasons.items() if count}
                metrics.add(
                    step,
                    {**progress, **by_reason, **shared, **_rates(optimizer), **trust(optimizer), **numbers, **cost},
                )
                if slow:
                    slow.look(cost["data_wait"] * cost["step_ms"] * every.log / 1e3)
                enough = look(done)
            if evaluators and (end or (every.evaluate and done % every.evaluate == 0)):
                world.note(step, "evaluating")
                guard.settle()
                probe.mark()
                metrics.add(step, _evaluate(task, evaluators, world, checkpoints.statistics))
                probe.skip()
                enough = look(0) or enough
            late = every.minutes and time.monotonic() - saved_at > 60 * every.minutes
            lost = checkpoints.look()
            want = STOP if enough or stop.asked else GIVE_UP if lost else SAVE if late else 0
            asked = highest(want, world.group)  # what any rank asks for
            if asked == GIVE_UP and not end:
                checkpoints.settle()
            if every.compare and done % every.compare == 0:
                agree(done)
            if end or asked or (every.checkpoint and done % every.checkpoint == 0):
                save(done)
                if slow:
                    slow.start()
            if end or asked == STOP:
                checkpoints.settle()
            if asked == STOP and not end:
                raise Interrupted(
                    f"stopped on {stop.asked or 'request'} after step {done} of {total_steps}, saved; run again to go on",
                    done,
                )
            world.note(done, "reading pictures")
            probe.mark()


def _over_ranks(values: Mapping[str, torch.Tensor | float], world: World) -> dict[str, torch.Tensor]:
    """Each value's mean over all ranks, [] float32: every rank's loss is the mean over its own pictures alone."""
    rows = [torch.as_tensor(v, dtype=torch.float32, device=world.device).detach() for v in values.values()]
    return dict(zip(values, all_reduce_mean(torch.stack(rows), world.group).unbind(), strict=True))


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Of the group that learns fastest; groups may be frozen or scaled."""
    group = max(optimizer.param_groups, key=lambda g: g["lr"])
    return {"lr": group["lr"], "weight_decay": group["weight_decay"]}


def _evaluate(task: Task, evaluators: Sequence[Evaluator], world: World, groups: int) -> dict[str, float]:
    """Every evaluator on the plain backbone, in evaluation mode with the mean of all groups' statistics; back to training
    with their own afterwards."""
    task.model.eval()
    try:
        # pictures of any size and number come here: nothing is compiled for them
        stance = torch.compiler.set_stance("force_eager")
        with torch.no_grad(), stance, averaged(task.backbone, world.group, groups):
            return {k: v for one in evaluators for k, v in one.run(task.backbone).items()}  # type: ignore[arg-type]
    finally:
        task.model.train()
