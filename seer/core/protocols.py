"""Says what a part must offer so that others can use it without knowing it. Legend: B images, C channels, S side."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from seer.core.records import Alarm, Batch, Decoded, Sample, StepOutput, example_batch


@runtime_checkable
class Backbone(Protocol):
    """Turns images into features."""

    feature_dim: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [B, C] for [B, 3, S, S], globally average pooled."""
        ...

    def forward_stages(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns {stage name: [B, c, h, w]} for [B, 3, S, S], in the order of depth."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, torch.Tensor]: ...


class Modules(Protocol):
    """Holds networks that can be judged, by name."""

    def modules(self) -> Mapping[str, nn.Module]:
        """Returns the plain networks by name, "backbone" among them, in the order of their parameters."""
        ...


class Task(Modules, Protocol):
    """Defines a way of learning: what the loop trains, and all that the program asks of it.

    Made by the program as `Target(backbone, transform, group, **config)`; arguments that `durations` names come as steps. A
    class that names `Task` as its base gets what has a body here. `model` is what gets wrapped for several ranks and
    compiled; `modules` gives the plain networks inside, whose names begin those of parameters (`groups`) and of the state.
    """

    durations: ClassVar[tuple[str, ...]] = ()
    groups: ClassVar[tuple[Mapping[str, Any], ...]] = ()  # rules for parameters, where the config has none
    learns_classes: ClassVar[bool] = (
        False  # it takes `classes`, names that the program finds in the data where the config has none
    )
    seed: int = 0  # of the run, given by the program: whatever is drawn in a loss comes from it and the step
    mixes: bool = False  # it mixes neighbouring images of a batch, two and two
    targets: Sequence[str] = ()  # fields of a batch beside the views that its transform must give: label, labels
    model: nn.Module
    transform: "Transform"  # what makes a batch of its samples
    chance_loss: float | None = None  # the loss of a model that predicts nothing, where that is known
    alarms: Sequence[Alarm] = ()

    def loss(self, batch: Batch) -> StepOutput: ...

    def example(self, batch_size: int) -> Batch:
        """Returns a batch of random images on the CPU, as large as one of a step of `batch_size` images on this rank."""
        return example_batch(self.transform.layout(batch_size, painted=True), batch_size)

    def before_step(self, step: int) -> None:
        """Called before the loss of a step."""

    def before_parts(self, parts: Sequence[Batch]) -> None:
        """Called before the losses of a step whose batch is run in parts (`accumulate`), which then come in this order. Makes
        what a loss needs of the whole batch; a loss that is a mean over images needs nothing."""

    def after_step(self, step: int) -> None:
        """Called when the parameters of a step are updated."""

    def warm_start(self, batches: Iterator[Batch], seed: int) -> None:
        """Prepares a model that has not trained yet from the first batches, if the task does so; on all ranks alike."""

    def describe(self, batch_size: int) -> list[str]:
        """Returns what people are warned of before training begins, a sentence each. batch_size: of a step, over all ranks."""
        return []

    def explain(self, evidence: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Returns what can be made of a step's evidence, once it is worth the work."""
        return evidence

    def counted(self, model: nn.Module, ranks: int) -> "Task":
        """Returns a copy around another model, whose loss is called to count memory: of one rank of so many, talking to nobody,
        with all that a long run holds. This one is enough for a loss that uses `self.model` alone."""
        twin = copy.copy(self)
        twin.model = model
        return twin

    @property
    def resting(self) -> Mapping[str, int]:
        """Returns modules that rest at first, and for so many steps: the optimizer leaves their parameters alone."""
        return {}

    def parts(self) -> Mapping[str, Any]:
        """Returns what is saved, by name: the modules, and whatever else has a state."""
        return self.modules()

    @property
    def reads_features(self) -> bool:
        """Returns whether its loss needs of an image nothing but `features`, and takes them as a field in place of views."""
        return False

    def features(self, batch: Batch) -> torch.Tensor | None:
        """Returns what the backbone makes of a batch, [B, C]; None of a task that reads more than that."""
        return None

    def head_cards(self) -> Mapping[str, Any]:
        """Returns what a bundle says of each head that it keeps beside the backbone (`models.head_files.HeadCard`), by its name
        among `modules`. Those that only serve to train the backbone, like prototypes, are none."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Returns {"backbone.stem.0.weight": tensor, …} over all parts."""
        return {f"{name}.{k}": v for name, part in self.parts().items() for k, v in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads what `state_dict` gave. Raises what a part raises for keys that do not fit."""
        for name, part in self.parts().items():
            first = f"{name}."
            part.load_state_dict({k.removeprefix(first): v for k, v in state.items() if k.startswith(first)})


class Evaluator(Protocol):
    """Measures what was trained: {"knn_top1": 0.41}. It builds its own data."""

    def run(self, task: Modules) -> dict[str, float]: ...


class MetricSink(Protocol):
    """Receives numbers by step. May raise StopTraining."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class StopTraining(Exception):
    """Ends a run in order, saved, when a metric sink that has seen enough raises it."""


class Draws(Protocol):
    """Holds the random numbers of a chunk of samples, each sample's from its own key alone."""

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

    @property
    def input_size(self) -> int:
        """Returns the side of the largest views: what a network that was trained on them expects."""
        ...

    def layout(self, batch_size: int, *, painted: bool = False) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Returns dtype and shape of each field of a batch. One of four axes [N, C, H, W] is laid out channels_last, and
        its array is [N, H, W, C]. painted: `fill` applies color as well, so that none is left to be applied later."""
        ...

    def decode(self, sample: Sample, scratch: np.ndarray | None = None) -> Decoded:
        """Returns the image and the targets of a sample. scratch: memory for pixels, to be overwritten by the next one.

        Raises ValueError with a `kind` of records.SKIP_REASONS (`decode.Undecodable`) for one that cannot be used: another
        sample then stands in for it, and it is told.
        """
        ...

    def draws(self, keys: np.ndarray, *, painted: bool = False) -> Draws:
        """Returns the random numbers of n samples. keys: uint64 [n]."""
        ...
