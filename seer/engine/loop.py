"""The training loop: one function that everything passes through, top to bottom."""

from collections.abc import Callable, Iterator
from contextlib import closing

import torch

from seer.core.protocols import Task
from seer.core.records import Batch
from seer.data.loading.device_prefetch import on_device
from seer.engine.control import Control
from seer.engine.monitor import Monitor
from seer.engine.precision import Precision
from seer.optim.groups import apply_schedules, drop_frozen_gradients
from seer.optim.schedules import Schedule


def fit(
    task: Task,
    batches: Callable[[int], Iterator[Batch]],
    optimizer: torch.optim.Optimizer,
    *,
    lr: Schedule,
    precision: Precision,
    monitor: Monitor,
    control: Control,
) -> None:
    """Trains from control.first_step to control.total_steps.

    batches(consumed) yields what comes after `consumed` images of the run. Raises Interrupted once a requested stop is
    saved, LostPeer when another rank is gone, NumericsError for a loss or a gradient that is not finite (a step late, with
    nothing updated since), StorageError when the last save or several on end cannot be written, and what the loader raises.
    """
    world = monitor.world
    task.model.train()
    control.before()
    coming = on_device(batches(control.first_step * monitor.batch), world.device)
    with control.running(), closing(coming) as stream:  # type: ignore[type-var]
        for step, batch in zip(range(control.first_step, control.total_steps), stream, strict=False):
            monitor.begin(step)
            apply_schedules(optimizer, step, lr)
            task.before_step(step)
            with precision.autocast():
                output = task.loss(batch)
            precision.backward(output.loss)
            drop_frozen_gradients(optimizer)
            norm = precision.step(optimizer, output.loss, world.group)
            task.after_step(step)
            monitor.end(step, output, norm, batch.skipped)
            control.after(step)
