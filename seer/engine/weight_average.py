"""Keeps an exponential moving average of the weights, which is judged and handed over in place of them: `ema=0.999`.

After each step average = decay * average + (1 - decay) * weights; it begins as the weights are. Running statistics of batch norm
are averaged as well, since those of the newest weights would not fit the averaged ones; counters are copied. The average is part
of the checkpoint, so a run that goes on has it to the bit.

Surprising: sharded tensors are averaged shard by shard, each rank its own, so nothing is gathered. Memory: once more all that a
bundle holds.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from seer.core.protocols import Task


class WeightAverage:
    """Holds the average of what a task's bundle holds: backbone and heads. decay: the share of it that stays at each step."""

    def __init__(self, task: Task, decay: float):
        self.task, self.decay = task, decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        return bundled(self.task)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the weights of the step that is done."""
        floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, tensor in self._weights().items():
            average, now = _local(self.tensors[name]), _local(tensor)
            if average.is_floating_point():
                floats[0].append(average)
                floats[1].append(now)
            else:
                average.copy_(now)
        torch._foreach_lerp_(*floats, 1 - self.decay)

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Puts the average in the place of the weights inside this context; afterwards the weights, to the last bit."""
        weights = self._weights()
        own = {name: _local(tensor).detach().clone() for name, tensor in weights.items()}
        self._fill(weights, {name: _local(tensor) for name, tensor in self.tensors.items()})
        try:
            yield
        finally:
            self._fill(weights, own)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the average by the names of the task's state."""
        return dict(self.tensors)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Loads what `state_dict` gave. Raises ValueError for other names."""
        if state.keys() != self.tensors.keys():
            raise ValueError(
                f"the average holds {len(self.tensors)} tensors, and {len(state)} of other names are given"
            )
        self._fill(self.tensors, {name: _local(tensor) for name, tensor in state.items()})

    @staticmethod
    @torch.no_grad()
    def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            _local(tensor).copy_(values[name])


def bundled(task: Task) -> dict[str, Tensor]:
    """Returns {"backbone.stem.0.weight": tensor, …} of all that a task's bundle holds."""
    modules = task.modules()
    parts = ["backbone", *task.head_cards()]
    return {f"{part}.{name}": tensor for part in parts for name, tensor in modules[part].state_dict().items()}


def _local(tensor: Tensor) -> Tensor:
    """Returns what lies on this rank of a tensor, in the same memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
