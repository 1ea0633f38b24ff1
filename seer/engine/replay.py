"""Repeats the step of a capture, and says where its first number that is not finite arises.

A step with such a number changes nothing (`precision`), so the weights that the capture holds are those of the step: forward
and backward give the same bits, on the same kind of machine, with the same number of ranks. The optimizer does not step.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from seer.core.protocols import Task
from seer.core.records import Batch
from seer.engine.accumulate import in_parts
from seer.engine.precision import Precision


def replay(
    task: Task,
    batch: Batch,
    precision: Precision,
    *,
    step: int,
    weights: Mapping[str, Tensor],
    scale: float | None,
    accumulate: int = 1,
) -> dict[str, Any]:
    """Runs the forward and backward pass of a step again. weights: a state of the task. scale: the loss scale
    of the step, for fp16.

    Returns loss and grad_norm, and first_activation and first_gradient: the names of the modules whose output, and the
    gradient of whose output, is the first that is not finite, in the order of computing; null where all are.
    """
    task.load_state_dict(weights)
    if scale is not None:
        precision.start_at(scale)
    task.model.train()
    task.before_step(step)
    forward: list[str] = []
    backward: list[str] = []
    hooks = [
        m.register_forward_hook(_looking(name, forward, backward)) for name, m in task.model.named_modules() if name
    ]
    try:
        if accumulate == 1:
            with precision.autocast():
                loss = task.loss(batch).loss
            precision.backward(loss)
        else:
            loss = in_parts(task, batch, precision, accumulate).loss
    finally:
        for hook in hooks:
            hook.remove()
    gradients = [p.grad for p in task.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) / (scale or 1.0)
    return {
        "loss": loss.item(),
        "grad_norm": norm.item(),
        "first_activation": forward[0] if forward else None,
        "first_gradient": backward[0] if backward else None,
    }


def _looking(name: str, forward: list[str], backward: list[str]) -> Any:
    """Returns a forward hook that notes the module when its output, or the gradient of that, is not finite."""

    plain = name.removeprefix("module.")  # what a wrapper for several ranks puts in front

    def check_finite(module: nn.Module, _: Any, output: Any) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                continue
            if not tensor.isfinite().all():
                forward.append(plain)
            if tensor.requires_grad:
                tensor.register_hook(lambda g: backward.append(plain) if not g.isfinite().all() else None)

    return check_finite
