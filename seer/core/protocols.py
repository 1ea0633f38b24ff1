"""What a part must offer so that others can use it without knowing it. Legend: B images, C channels, S side."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from seer.core.records import Batch, Decoded, Sample, StepOutput


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


class Draws(Protocol):
    """The random numbers of a chunk of samples, each sample's from its own key alone."""

    def fill(self, i: int, decoded: Decoded, arrays: Mapping[str, np.ndarray], row: int) -> None:
        """Writes sample i of the chunk as sample `row` of a batch. arrays: those of `Transform.layout`."""
        ...


class Transform(Protocol):
    """Turns samples into named fields of a batch. Stateless: any thread of the loader may call it, for any row.

    Geometry is drawn once a sample and applied to all that lies on its image: the image itself (bilinear), its mask
    (nearest) and its boxes. Numbers are drawn for a chunk of samples in one go, since numpy's price is by the call: a
    sample's own would take a tenth of the time of its views. Whoever writes one may ignore that and draw in `fill`.
    """

    @property
    def mean(self) -> Sequence[float]:
        """Returns what is subtracted from pixels in [0, 1], a number a channel; `std` divides them then."""
        ...

    @property
    def std(self) -> Sequence[float]: ...

    def layout(self, batch_size: int, *, painted: bool = False) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Returns dtype and shape of each field of a batch. One of four axes [N, C, H, W] is laid out channels_last, and
        its array is [N, H, W, C]. painted: `fill` applies color as well, so that none is left to be applied later."""
        ...

    def decode(self, sample: Sample, scratch: np.ndarray | None = None) -> Decoded:
        """Returns the image and the targets of a sample. scratch: memory for pixels, to be overwritten by the next one.

        Raises ValueError with a `kind` of records.KINDS (`decode.Undecodable`) for one that cannot be used: another
        sample then stands in for it, and it is told.
        """
        ...

    def draws(self, keys: np.ndarray, *, painted: bool = False) -> Draws:
        """Returns the random numbers of n samples. keys: uint64 [n]."""
        ...
