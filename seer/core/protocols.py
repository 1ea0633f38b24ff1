"""What a part must offer so that others can use it without knowing it. Legend: B images, C channels, S side."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from seer.core.records import Alarm, Batch, StepOutput


@runtime_checkable
class Backbone(Protocol):
    """A network that turns pictures into features."""

    feature_dim: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, C], globally average pooled."""
        ...

    def forward_stages(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """[B, 3, S, S] -> {stage name: [B, c, h, w]}, in the order of depth."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, torch.Tensor]: ...


class Modules(Protocol):
    """What can be judged: networks by name."""

    def modules(self) -> Mapping[str, nn.Module]:
        """Returns the plain networks by name, "backbone" among them, in the order of their parameters."""
        ...


class Task(Modules, Protocol):
    """A way of learning: what the loop trains, and all that the program asks of it.

    Made by the program as `Target(backbone, transform, group, **config)`; of `durations`, if the class has such a tuple,
    those arguments come as steps. `model` is what gets wrapped for several ranks and compiled; `modules` gives the plain
    networks inside, whose names begin the names of parameters in `groups`.
    """

    model: nn.Module
    transform: Any  # what makes a batch of its samples: `data.multicrop.MultiCrop`
    chance_loss: float | None  # the loss of a model that predicts nothing, where that is known
    alarms: Sequence[Alarm]

    def example(self, batch_size: int) -> Batch:
        """Returns a batch of random images on the CPU, as large as one of a step of `batch_size` images on this rank."""
        ...

    def loss(self, batch: Batch) -> StepOutput: ...

    def before_step(self, step: int) -> None: ...

    def after_step(self, step: int) -> None: ...

    def warm_start(self, batches: Iterator[Batch], seed: int) -> None:
        """Prepares a model that has not trained yet from the first batches, if the task does so; on all ranks alike."""
        ...

    def describe(self, batch_size: int) -> list[str]:
        """Returns what people should know before training begins, a sentence each. batch_size: images of a step, all ranks."""
        ...

    def explain(self, evidence: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Returns what can be made of a step's evidence, once it is worth the work."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Evaluator(Protocol):
    """Measures what was trained: {"knn_top1": 0.41}. It builds its own data."""

    def run(self, task: Modules) -> dict[str, float]: ...


class MetricSink(Protocol):
    """Receives numbers by step. May raise StopTraining."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class StopTraining(Exception):
    """Raised by a metric sink that has seen enough: the loop saves and ends in order."""
