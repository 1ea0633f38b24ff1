"""Extracts features of labelled images: the shorter side resized, the center cut out, one forward each.

Ranks share the images out (`LabelledImages.group`): blocks of B rows go to them in turn, so a forward has the same images
whatever the number of ranks is, and its bits are the same. Surprising: each rank has all features in the end, and a rank whose
turn has no image runs the network on a blank one, since a sharded network (FSDP) runs on all ranks or on none.

Legend: M images in all, B in one forward, S side, C features, R ranks.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

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
from seer.parallel.collectives import Group, gather_rows, max_over_ranks

# Bytes of cut images that stay in memory for the next time: those of 7,000 images of 48 px take 48 MB, and a third of the
# time of a probe with a small network
KEPT = 256_000_000
PIXELS_A_THREAD = 1 << 17  # of the images of one forward pass on a CPU

center = center  # as others know it


class LabelledImages:
    """Holds labelled images for evaluation. labels: where labels come from, a word of `label_words`.

    size: side of the center cut; resize: length of the shorter side before it, by default size * 256 / 224, or the size
    itself below 64 pixels. most: use so many images at the most, spread evenly over the whole (0 = all). like: those
    whose classes these are matched with by name (`labels.match`). Those without a label are left out.
    content: of each row that was read and could be used, a hash of the bytes of its image; 0 for others. pixels: what images
    are decoded to, as in training. group: of the ranks that share the images; None = this process reads all. Raises
    RequestError when there are no labels.
    """

    group: Group | None = None

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

    def made(
        self, make: Callable[[torch.Tensor], torch.Tensor], batch: int = 256, threads: int = 2
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what `make` makes of the images, uint8 [B, C, S, S] -> float32 [B, N], as [M, N] on the host, and int64 [M].

        The same on all ranks of the group, each of which calls this and reads its share. Raises RequestError where none of the
        images can be read.
        """
        rank, ranks = (0, 1) if self.group is None else (self.group.rank(), self.group.size())
        rows = [self.rows[first : first + batch] for first in range(0, len(self.rows), batch)]
        turns, parts, labels, good = -(-len(rows) // ranks), [], [], []
        with ThreadPoolExecutor(threads, thread_name_prefix="evaluation") as pool:
            for mine in (rows[i] if i < len(rows) else [] for i in range(rank, turns * ranks, ranks)):
                read = list(pool.map(self._one, mine))
                found = [one for one in read if one is not None]
                good += [one is not None for one in read]
                if found:
                    parts.append(make(torch.stack([pixels for pixels, _ in found])))
                    labels += [label for _, label in found]
                elif self.group is not None:
                    blank = torch.zeros(1, self.pixels.channels, self.size, self.size, dtype=torch.uint8)
                    parts.append(make(blank)[:0])
        if not max_over_ranks(len(labels), self.group):
            raise RequestError("none of the images for evaluation could be read")
        return self._gathered(torch.cat(parts), torch.tensor(labels, dtype=torch.int64), good, batch)

    def _gathered(
        self, made: torch.Tensor, labels: torch.Tensor, good: list[bool], batch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what all ranks made, in the order of the rows, with what they found unreadable noted on each."""
        if self.group is None:
            return made, labels
        ranks, blocks = self.group.size(), -(-len(self.rows) // batch)
        places = [
            [place for i in range(rank, blocks, ranks) for place in self.rows[i * batch : (i + 1) * batch]]
            for rank in range(ranks)
        ]
        mine = places[self.group.rank()]
        content = np.array([self.content[s][r] for s, r in mine], dtype=np.uint64).view(np.int64)
        notes = torch.stack([torch.tensor(good, dtype=torch.int64), torch.from_numpy(content)], dim=1)  # [m, 2]
        each = zip(gather_rows(made, self.group), gather_rows(labels, self.group), strict=True)
        position = {place: i for i, place in enumerate(self.rows)}
        where, known = [], [*zip(*each, strict=True)]
        for own, told in zip(places, gather_rows(notes, self.group), strict=True):
            for place, (readable, digest) in zip(own, told.tolist(), strict=True):
                if readable:
                    where.append(position[place])
                    self.content[place[0]][place[1]] = np.array(digest, dtype=np.int64).view(np.uint64)
                else:
                    self._note_broken(place, "another rank could not read it")
        order = torch.tensor(where).argsort()
        return torch.cat(known[0])[order], torch.cat(known[1])[order]

    def _note_broken(self, place: tuple[int, int], why: object) -> None:
        if place not in self.broken:
            log.warning(f"{place_of(self.shards[place[0]], place[1])} is left out: {why}")
        self.broken.add(place)

    def _one(self, place: tuple[int, int]) -> tuple[torch.Tensor, int] | None:
        label = int(self.labels.of[place[0]][place[1]])
        if place in self._cut:
            return self._cut[place], label
        try:
            sample = self.shards[place[0]].read(*place)
            data = image_of(sample)
            image = decode(data, None, self.pixels, shorter=self.short)
        except (Undecodable, TarError) as error:
            self._note_broken(place, error)
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


class Images(Protocol):
    """Holds images for evaluation, of each of which something is known: [B] or [B, Y]. size: the side of an image."""

    size: int

    def made(
        self, make: Callable[[torch.Tensor], torch.Tensor], batch: int = 256, threads: int = 2
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


def at_once(device: torch.device, side: int) -> int:
    """Returns how many images of this side one forward pass takes best: 256 on a GPU. On a CPU so few that activations stay in
    memory that the C library keeps; larger blocks come from the system each time and are cleared page by page: RegNetY-400MF
    took 4.3 ms for an image of 96 pixels in batches of 256 and 2.9 in batches of 32, of 224 pixels 24 in 64 and 14 in 8."""
    pixels = PIXELS_A_THREAD * max(2, torch.get_num_threads())
    return 256 if device.type != "cpu" else max(1, min(256, pixels // side**2))


@torch.no_grad()
def extract(
    model: Backbone,
    images: Images,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch: int | None = None,
    threads: int = 2,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns float32 [M, C] and int64 [M], or float32 [M, Y] of tagged images, on the host. The model must be in evaluation mode.
    batch: images of one forward pass; None: `at_once`."""
    device = next(p.device for _, p in model.named_parameters())
    batch = batch or at_once(device, images.size)

    def features(pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.to(device).to(torch.float32, memory_format=torch.channels_last).div_(255)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(normalize(x, mean, std)).float().cpu()

    return images.made(features, batch, threads)
