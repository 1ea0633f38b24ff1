"""What a part must offer so that others can use it without knowing it. Legend: B images, C channels, S side."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from seer.core.records import Batch, StepOutput


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


class Task(Protocol):
    """A way of learning: what the loop trains. `model` is what gets wrapped; `backbone` the plain network inside."""

    model: nn.Module
    backbone: nn.Module

    def loss(self, batch: Batch) -> StepOutput: ...

    def before_step(self, step: int) -> None: ...

    def after_step(self, step: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Evaluator(Protocol):
    """Measures a backbone: {"knn_top1": 0.41}."""

    def run(self, model: Backbone) -> dict[str, float]: ...


class MetricSink(Protocol):
    """Receives numbers by step. May raise StopTraining."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class StopTraining(Exception):
    """Raised by a metric sink that has seen enough: the loop saves and ends in order."""
