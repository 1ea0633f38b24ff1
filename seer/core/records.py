"""Typed values that cross packages. Legend: B images, V views, K prototypes, S side of a view in pixels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch


class SampleRef(NamedTuple):
    """Where a picture lies: shard number in the list of shards, row inside the shard."""

    shard: int
    row: int


class Sample(NamedTuple):
    """The members of one sample as they lie in the tar: {"jpg": bytes, "cls": b"3", ...}; unknown ones pass through."""

    ref: SampleRef
    key: str
    fields: dict[str, bytes]


KINDS = ("empty", "format", "size", "truncated", "damaged", "checksum", "archive")  # what reasons are counted by


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be used, and why. One line of `skipped.jsonl`. kind is one of KINDS, or
    `unreadable` where `seer shard` passed over a file.

    attempt 0: the picture that was due, which happens once an epoch; 1, 2, ...: a stand-in for it that failed as well.
    """

    shard: str
    member: str
    reason: str
    row: int
    kind: str = "damaged"
    attempt: int = 0


@dataclass
class Colour:
    """Colour and blur of every view, drawn with the picture, applied later in one batched pass. N = views of one size.

    order uint8 [N, 4]: the order of brightness 0, contrast 1, saturation 2, hue 3. factors float32 [N, 4]: three
    multipliers and the hue shift in turns. gray bool [N]. sigma float32 [N], 0 where there is no blur. jitter bool [N].
    """

    jitter: torch.Tensor
    order: torch.Tensor
    factors: torch.Tensor
    gray: torch.Tensor
    sigma: torch.Tensor


@dataclass
class Batch:
    """One step's pictures of one rank. crops: one uint8 tensor [v*B, 3, S, S] per resolution, view-major, channels_last.
    colours: of each resolution, or None where they have been applied."""

    crops: list[torch.Tensor]
    colours: Sequence[Colour | None]
    skipped: list[Skipped]
    position: int  # pictures consumed by the whole run once this batch is done

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Pixels to the device; colours stay on the host, where index lists are made of them without waiting.

        non_blocking: for those who keep this batch until the copy is done, since its memory is used again afterwards.
        """
        crops = [c.to(device, non_blocking=non_blocking) for c in self.crops]
        return Batch(crops, self.colours, self.skipped, self.position)


@dataclass
class StepOutput:
    """What a task makes of a batch. loss [] with a gradient; metrics {name: []} detached, left on the device. evidence:
    small detached tensors from which a non-finite loss can be explained, held until the next step."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    evidence: dict[str, torch.Tensor] = field(default_factory=dict)


PATIENCE = 10  # logged steps that have to agree before an alarm is raised


@dataclass(frozen=True)
class Alarm:
    """A sign that training goes wrong. needs: the metric it reads. found: the last rows of metrics -> is it so? words: what
    it means and the remedy; may name the latest values in braces. rows: how many it waits for."""

    name: str
    needs: str
    found: Callable[[list[Mapping[str, float]]], bool]
    words: str
    rows: int = PATIENCE


@dataclass
class Labelled:
    """Pictures for evaluation. pixels uint8 [B, 3, S, S]; labels int64 [B], -1 where a sample has none."""

    pixels: torch.Tensor
    labels: torch.Tensor


Picture = np.ndarray  # uint8 [h, w, 3], RGB
