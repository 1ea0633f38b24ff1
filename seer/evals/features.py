"""Extracts features of labelled images: the shorter side resized, the center cut out, one forward each.

Legend: M images in all, B in one forward, S side, C features.
"""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from seer.core.errors import RequestError
from seer.core.log import log
from seer.core.protocols import Backbone, Modules
from seer.core.records import Labelled
from seer.data.augment import normalize
from seer.data.decode import Undecodable, decode
from seer.data.ledger import shown
from seer.data.pixels import Pixels
from seer.data.shards.folder import place_of
from seer.data.shards.shard import Shard, image_of
from seer.data.shards.tar import TarError
from seer.data.transforms.one_view import center
from seer.evals.labels import UNLABELLED, Labels, find, match

# Bytes of cut images that stay in memory for the next time: those of 7,000 images of 48 px take 48 MB, and a third of the
# time of a probe with a small network
KEPT = 256_000_000

center = center  # as others know it


class LabelledImages:
    """Holds labelled images for evaluation. labels: where labels come from, a word of `label_words`.

    size: side of the center cut; resize: length of the shorter side before it, by default size * 256 / 224, or the size
    itself below 64 pixels. most: use so many images at the most, spread evenly over the whole (0 = all). like: those
    whose classes these are matched with by name (`labels.match`). Those without a label are left out.
    content: of each row that was read and could be used, a hash of the bytes of its image; 0 for others. pixels: what images
    are decoded to, as in training. Raises RequestError when there are no labels.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        size: int,
        resize: int | None = None,
        labels: str = "auto",
        most: int = 0,
        like: "LabelledImages | None" = None,
        pixels: Pixels | None = None,
    ):
        self.shards, self.size, self.pixels = shards, size, pixels or Pixels()
        self.short = resize or short_side(size)
        rows = chosen_rows(shards, most)
        found = find(shards, rows, labels, () if like is None else like.labels.names)
        if like is None and found.named and len(found.names) < 2:
            raise RequestError(
                f"{shards[0].path}: one class alone, {shown(found.names[0])}, so all labels are the same; "
                "labels=folder:1, folder:2 … folder:-1 say which folders name the classes"
            )
        self.labels: Labels = found if like is None else match(like.labels, found)
        self.rows = [(s, r) for s, r in rows if found.of[s][r] >= 0]
        self.unlabelled = sum(int(found.of[s][r] == UNLABELLED) for s, r in rows)
        self._begin()

    def _begin(self) -> None:
        self.broken: set[tuple[int, int]] = set()  # rows that could not be read so far
        self.content = [np.zeros(len(shard), dtype=np.uint64) for shard in self.shards]  # S of [n], 0.1 ms for 100 kB
        self._cut: dict[tuple[int, int], torch.Tensor] = {}  # uint8 [3, S, S], of as many rows as KEPT holds

    @property
    def classes(self) -> list[str]:
        """Returns names in the order of the labels; numbers, where nothing names the classes."""
        return self.labels.names

    def __len__(self) -> int:
        return len(self.rows)

    def used(self) -> dict[str, int]:
        """Returns how many images of each class were read and could be used so far; a class without any is left out."""
        of = [np.where(content != 0, one, -1) for content, one in zip(self.content, self.labels.of, strict=True)]
        return replace(self.labels, of=of).per_class()

    def batches(self, batch: int = 256, threads: int = 2) -> Iterator[Labelled]:
        """Yields uint8 [B, C, S, S] and int64 [B], in the order of the rows. An image that cannot be read is
        left out."""
        with ThreadPoolExecutor(threads, thread_name_prefix="evaluation") as pool:
            for first in range(0, len(self.rows), batch):
                found = [one for one in pool.map(self._one, self.rows[first : first + batch]) if one is not None]
                if found:
                    yield Labelled(torch.stack([p for p, _ in found]), torch.tensor([label for _, label in found]))

    def _one(self, place: tuple[int, int]) -> tuple[torch.Tensor, int] | None:
        label = int(self.labels.of[place[0]][place[1]])
        if place in self._cut:
            return self._cut[place], label
        try:
            sample = self.shards[place[0]].read(*place)
            data = image_of(sample)
            image = decode(data, None, self.pixels, shorter=self.short)
        except (Undecodable, TarError) as error:
            if place not in self.broken:
                log.warning(f"{place_of(self.shards[place[0]], place[1])} is left out: {error}")
            self.broken.add(place)
            return None
        if not self.content[place[0]][place[1]]:
            digest = int.from_bytes(hashlib.sha256(data).digest()[:8])
            self.content[place[0]][place[1]] = max(1, digest)
        cut = center(image, self.short, self.size)
        if (len(self._cut) + 1) * cut.nbytes <= KEPT:
            self._cut[place] = cut.clone()  # a cut is a view of the whole
        return cut, label


class PlainImages(LabelledImages):
    """Holds images for evaluation whose labels are not looked at: every image that can be read counts. Arguments are those of
    `LabelledImages` but for labels."""

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        size: int,
        resize: int | None = None,
        most: int = 0,
        pixels: Pixels | None = None,
    ):
        self.shards, self.size, self.pixels = shards, size, pixels or Pixels()
        self.short = resize or short_side(size)
        self.rows = chosen_rows(shards, most)
        self.labels = Labels([np.zeros(len(shard), dtype=np.int32) for shard in shards], ["image"], named=False)
        self.unlabelled = 0
        self._begin()


def short_side(size: int) -> int:
    """Returns the length of the shorter side before the center is cut, where nothing says it."""
    return size if size < 64 else round(size * 256 / 224)


def chosen_rows(shards: Sequence[Shard], most: int) -> list[tuple[int, int]]:
    """Returns (shard, row) of all images, or of `most` that are spread evenly over them (0 = all)."""
    rows = [(s, r) for s, shard in enumerate(shards) for r in range(len(shard))]
    return [rows[i * len(rows) // most] for i in range(most)] if 0 < most < len(rows) else rows


def spread(images: LabelledImages, most: int) -> LabelledImages:
    """Returns the like with `most` of the images, spread evenly; those that were given keep all of theirs."""
    found, count = copy.copy(images), len(images.rows)
    found.rows = [images.rows[i * count // most] for i in range(most)] if most < count else images.rows
    return found


@dataclass(frozen=True)
class Alone:
    """Holds a backbone by itself, as an evaluator takes it."""

    backbone: nn.Module

    def modules(self) -> dict[str, nn.Module]:
        """Returns it by its name."""
        return {"backbone": self.backbone}


def backbone_of(task: Modules) -> Backbone:
    """Returns the backbone among what was trained."""
    return task.modules()["backbone"]  # type: ignore[return-value]


@torch.no_grad()
def extract(
    model: Backbone,
    images: LabelledImages,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch: int = 256,
    threads: int = 2,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns float32 [M, C] and int64 [M], on the host. The model must be in evaluation mode."""
    device = next(p.device for _, p in model.named_parameters())
    features, labels = [], []
    for one in images.batches(batch, threads):
        x = one.pixels.to(device).to(torch.float32, memory_format=torch.channels_last).div_(255)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            features.append(model(normalize(x, mean, std)).float().cpu())
        labels.append(one.labels)
    if not features:
        raise RequestError("none of the images for evaluation could be read")
    return torch.cat(features), torch.cat(labels)
