"""Runs a step's batch in parts, one after the other, for batches that do not fit into memory at once: `accumulate=4`.

Gradients of all parts add up to those of the whole, the mean over its images; ranks talk once, in the last part. What a loss
needs of the whole batch is asked of the task before (`Task.before_parts`). Only batch norm differs, where its statistics are
those of the batch: it sees a part at a time, and its running statistics move once a part.

Legend: B images of a rank in a step, v views of an image, P parts.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from seer.core.protocols import Task
from seer.core.records import Batch, StepOutput
from seer.engine.precision import Precision
from seer.parallel.gradients import kept_apart


def parts_of(batch: Batch, parts: int, images: int) -> list[Batch]:
    """Returns P batches of B / P images, in order; copies, since the views of an image lie apart. images: B."""
    fields: list[dict[str, torch.Tensor]] = [{} for _ in range(parts)]
    for name, tensor in batch.fields.items():
        by_view = tensor.unflatten(0, (-1, images))  # [v, B, ..]
        for field, part in zip(fields, by_view.chunk(parts, dim=1), strict=True):
            one = part.flatten(0, 1)  # [v*B/P, ..]
            last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
            field[name] = one.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    return [Batch(field, batch.skipped, batch.images_seen) for field in fields]


def images_of(task: Task, batch: Batch) -> int:
    """Returns B: a field holds so many rows, or v times as many for v views."""
    layout = task.transform.layout(1)
    name = next(name for name in layout if name in batch.fields)
    return len(batch.fields[name]) // layout[name][1][0]


def in_parts(task: Task, batch: Batch, precision: Precision, parts: int) -> StepOutput:
    """Adds the gradients of a step to the parameters; returns what the loss of the whole batch returns: means over the parts,
    and their evidence row by row."""
    pieces = parts_of(batch, parts, images_of(task, batch))
    with precision.autocast():
        task.before_parts(pieces)
    outputs = []
    for number, piece in enumerate(pieces):
        last = number == parts - 1
        with nullcontext() if last else kept_apart(task.model):
            with precision.autocast():
                output = task.loss(piece)
            precision.backward(output.loss / parts)
        outputs.append(StepOutput(output.loss.detach(), output.metrics, output.evidence))
    return _joined(outputs)


def _joined(outputs: Sequence[StepOutput]) -> StepOutput:
    first = outputs[0]
    metrics = {name: torch.stack([o.metrics[name].float() for o in outputs]).mean(0) for name in first.metrics}
    evidence = {
        name: torch.cat([o.evidence[name] for o in outputs if name in o.evidence]) if tensor.ndim else tensor
        for name, tensor in first.evidence.items()
    }
    return StepOutput(torch.stack([o.loss for o in outputs]).mean(), metrics, evidence)
