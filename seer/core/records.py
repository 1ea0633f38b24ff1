"""Holds typed values that cross packages. Legend: B images, V views, K prototypes, S side of a view in pixels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
import torch


class SampleRef(NamedTuple):
    """Says where an image lies: shard number in the list of shards, row inside the shard."""

    shard: int
    row: int


class Sample(NamedTuple):
    """Holds the members of one sample as they lie in the tar: {"jpg": bytes, "cls": b"3", ...}; unknown ones
    pass through."""

    ref: SampleRef
    key: str
    fields: dict[str, bytes]


# What reasons are counted by. A new one goes to the end: counts that a run has stored are told apart by their place.
SKIP_REASONS = ("empty", "format", "size", "truncated", "damaged", "checksum", "archive", "target")


@dataclass(frozen=True)
class Skipped:
    """Records an image that could not be used, and why. One line of `skipped.jsonl`. kind is one of KINDS, or
    `unreadable` where `seer shard` passed over a file.

    attempt 0: the image that was due, which happens once an epoch; 1, 2, ...: a stand-in for it that failed as well.
    """

    shard: str
    member: str
    reason: str
    row: int
    kind: str = "damaged"
    attempt: int = 0


@dataclass
class Color:
    """Holds color and blur of every view, drawn with the image, applied later in one batched pass. N = views of
    one size.

    order uint8 [N, 4]: the order of brightness 0, contrast 1, saturation 2, hue 3. factors float32 [N, 4]: three
    multipliers and the hue shift in turns. gray bool [N]. sigma float32 [N], 0 where there is no blur. jitter bool [N].
    """

    jitter: torch.Tensor
    order: torch.Tensor
    factors: torch.Tensor
    gray: torch.Tensor
    sigma: torch.Tensor

    @classmethod
    def of(cls, batch_fields: Mapping[str, torch.Tensor], size: int) -> "Color | None":
        """Returns what a batch holds for its views of one size; None where color has been applied already."""
        if f"color/{size}/jitter" not in batch_fields:
            return None
        return cls(*(batch_fields[f"color/{size}/{one.name}"] for one in fields(cls)))


FEATURES = "features"  # float32 [B, C] in a batch, in place of views, for a task that reads features alone


@dataclass
class Batch:
    """Holds one step's samples of one rank, as the tensors that its transform names (`protocols.Transform.layout`).

    fields: `views/S` uint8 [v*B, 3, S, S] of each size S, view-major, channels_last; `color/S/NAME` [v*B, ...] of `Color`,
    absent where color has been applied; `label`, `mask` and other targets of the same B samples. images_seen: by the
    whole run once this batch is done.
    """

    fields: dict[str, torch.Tensor]
    skipped: list[Skipped]
    images_seen: int

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Returns the batch on the device, all but what `stays_on_host`.

        non_blocking: for those who keep this batch until the copy is done, since its memory is used again afterwards.
        """
        moved = {
            name: tensor if stays_on_host(name) else tensor.to(device, non_blocking=non_blocking)
            for name, tensor in self.fields.items()
        }
        return Batch(moved, self.skipped, self.images_seen)


def example_batch(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], images: int) -> Batch:
    """Returns a batch of such fields: random pixels, zeros for all else."""
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in layout.items()}
    for name, tensor in made.items():
        if name.startswith("views/"):
            pixels = torch.randint(256, tensor.shape, generator=generator, dtype=tensor.dtype)
            made[name] = pixels.contiguous(memory_format=torch.channels_last)
    return Batch(made, [], images)


def stays_on_host(name: str) -> bool:
    """Returns whether a field of a batch is never moved to the device: of colors, index lists are made without waiting."""
    return name.startswith("color/")


@dataclass
class StepOutput:
    """Holds what a task makes of a batch. loss [] with a gradient; metrics {name: []} detached, left on the
    device. evidence: small detached tensors from which a non-finite loss can be explained, held until the next
    step."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    evidence: dict[str, torch.Tensor] = field(default_factory=dict)


PATIENCE = 10  # logged steps that have to agree before an alarm is raised


@dataclass(frozen=True)
class Alarm:
    """Describes a sign that training goes wrong. needs: the metric it reads. found: the last rows of metrics ->
    is it so? words: what it means and the remedy; may name the latest values in braces. rows: how many it waits
    for."""

    name: str
    needs: str
    found: Callable[[list[Mapping[str, float]]], bool]
    words: str
    rows: int = PATIENCE


@dataclass
class Labelled:
    """Holds images for evaluation. pixels uint8 [B, 3, S, S]; labels int64 [B], -1 where a sample has none."""

    pixels: torch.Tensor
    labels: torch.Tensor


ImageArray = np.ndarray  # uint8 [h, w, 3], RGB
Decoded = dict[str, np.ndarray]  # of one sample: "image" uint8 [h, w, 3], "mask" uint8 [h, w], "label" int64 [], …
