"""The training loop: one function that everything passes through, top to bottom."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing

import torch

from seer.core.protocols import Task
from seer.core.records import Batch
from seer.data.loading.device_prefetch import on_device
from seer.engine.accumulate import in_parts
from seer.engine.control import Control
from seer.engine.monitor import Monitor
from seer.engine.precision import Precision
from seer.engine.weight_average import WeightAverage
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
    by_group: Mapping[str, Schedule] | None = None,
    accumulate: int = 1,
    average: WeightAverage | None = None,
) -> None:
    """Trains from control.first_step to control.total_steps.

    by_group: schedules of parameter groups that have their own. accumulate: parts in which a step's batch is run, one after
    the other. average: of the weights, moved after each step.

    batches(consumed) yields what comes after `consumed` images of the run. Raises Interrupted once a requested stop is
    saved, LostPeer when another rank is gone, NumericsError for a loss or a gradient that is not finite (a step late, with
    nothing updated since), StorageError when the last save or several on end cannot be written, and what the loader raises.
    """
    world = monitor.world
    task.model.train()
    control.before()
    coming = on_device(batches(control.first_step * monitor.batch), world.device)
    with control.running(), closing(coming) as stream:  # type: ignore[type-var]
        for step, batch in zip(control.steps(), stream, strict=False):
            monitor.begin(step)
            apply_schedules(optimizer, step, lr, by_group=by_group)
            task.before_step(step)
            if accumulate == 1:
                with precision.autocast():
                    output = task.loss(batch)
                precision.backward(output.loss)
            else:
                output = in_parts(task, batch, precision, accumulate)
            drop_frozen_gradients(optimizer)
            norm = precision.step(optimizer, output.loss, world.group)
            task.after_step(step)
            if average is not None:
                average.update()
            monitor.end(step, output, norm, batch.skipped)
            control.after(step)
