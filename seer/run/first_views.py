"""Shows what the network sees: a grid of views of the first batch, once, for TensorBoard.

A row is an image, its columns are its views, the large ones first: after crop, color, blur and normalization, which is undone for
the eye. What is wrong with a mean, a channel's order or a crop is seen there before an hour of training tells it. Costs some
ten milliseconds at the start of a run, on the host.

Legend: B images of the batch, v views of one size, S side, n images shown.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Protocol

import numpy as np
import torch

from seer.core.records import Batch
from seer.data.augment import augment_batch

MOST_IMAGES = 8
MOST_ROWS = 900  # of pixels
GAP = 2  # pixels between views, of the gray that fills the grid
GRAY = 128


class Shows(Protocol):
    """Takes an image: uint8 [h, w, 3]."""

    def show(self, name: str, pixels: np.ndarray, done: int) -> None: ...


def shown(
    batches: Callable[[int], Iterator[Batch]], images: int, mean: Sequence[float], std: Sequence[float], sink: Shows
) -> Callable[[int], Iterator[Batch]]:
    """Returns the like of `batches` that gives a grid of the first batch of a run to the sink. images: of a batch."""

    def yielded(consumed: int) -> Iterator[Batch]:
        with closing(batches(consumed)) as stream:  # type: ignore[type-var]
            for batch in stream:
                if consumed == 0 and any(name.startswith("views/") for name in batch.fields):
                    sink.show("views/first_batch", grid(batch.fields, images, mean, std), 0)
                consumed = -1
                yield batch

    return yielded


def grid(fields: Mapping[str, torch.Tensor], images: int, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Returns uint8 [h, w, 3] of some of the batch's images. fields: as `Batch` has them; images: B."""
    sizes = sorted((int(name.partition("/")[2]) for name in fields if name.startswith("views/")), reverse=True)
    count = min(images, MOST_IMAGES, max(1, MOST_ROWS // (sizes[0] + GAP)))
    strips = [_views(fields, size, images, count, mean, std) for size in sizes]  # each [n, v, S, S, 3]
    height = count * (sizes[0] + GAP) - GAP
    width = sum(strip.shape[1] * (strip.shape[2] + GAP) for strip in strips) - GAP
    made = np.full((height, width, 3), GRAY, dtype=np.uint8)
    left = 0
    for strip in strips:
        for view in range(strip.shape[1]):
            side = strip.shape[2]
            for row in range(count):
                top = row * (sizes[0] + GAP)
                made[top : top + side, left : left + side] = strip[row, view]
            left += side + GAP
    return made


def _views(
    fields: Mapping[str, torch.Tensor], size: int, images: int, count: int, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """Returns uint8 [n, v, S, S, 3]: views as the network gets them, in levels again."""
    views = len(fields[f"views/{size}"]) // images
    rows = (torch.arange(views)[None] * images + torch.arange(count)[:, None]).flatten()  # view-major: image by image
    own = {n: f[rows] for n, f in fields.items() if n == f"views/{size}" or n.startswith(f"color/{size}/")}
    x = augment_batch(own, size, mean, std)  # [n*v, C, S, S]
    scale, shift = (torch.tensor(numbers)[:, None, None] for numbers in (std, mean))
    levels = ((x * scale + shift) * 255).round_().clamp_(0, 255).to(torch.uint8)
    if levels.shape[1] != 3:  # bands that are no colors: their mean
        levels = levels.float().mean(1, keepdim=True).to(torch.uint8).expand(-1, 3, -1, -1)
    return levels.permute(0, 2, 3, 1).unflatten(0, (count, views)).numpy()
