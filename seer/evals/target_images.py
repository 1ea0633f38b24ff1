"""Reads held-out images with what heads are to find in them: the center cut, and targets cut by the same rule.

What is asked for is told in the view: a box that the cut leaves no area of is none, a mask is that of the view. An image whose
target is missing or says nothing is left out, told once, and counted, as in training.

Legend: B images of a batch, S side, M boxes at the most.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from seer.core.errors import RequestError
from seer.core.log import log
from seer.core.records import Sample
from seer.data.coco import Scene, is_annotations, read_things
from seer.data.decode import Undecodable
from seer.data.pixels import Pixels
from seer.data.shards.shard import Shard
from seer.data.shards.tar import TarError
from seer.data.transforms.file_things import FileThings
from seer.data.transforms.one_view import OneView
from seer.data.transforms.targets import ClassLabels
from seer.data.transforms.whole_image import WholeImage
from seer.evals import labels
from seer.evals.features import chosen_rows, short_side
from seer.evals.labels import Labels
from seer.evals.shared_answers import gather_values
from seer.parallel.collectives import Group

FIRST = 16  # images that are tried before anything is made
MOST_BOXES = 1000  # of an image; more are counted and left out


class TargetImages:
    """Holds images with targets: those of `targets`, fields of a batch. classes: of the head, in the order of its scores.

    size, resize, most, pixels: as `LabelledImages`. word: where labels come from, for `label`, or a file of COCO's form, for boxes
    of `box_classes`. mask_classes: of masks, how many are known. values: so many numbers an image. whole: images are shown whole
    (`whole_image`), and not cut. rows: (shard, row) of the images, where they are not all. called: by results. scenes: all that the
    file says of an image that was read, by (shard, row). left_out: by reason, of what was read so far. group: of the ranks that
    share the images; None = this process reads all. Raises RequestError where there are no labels.
    """

    group: Group | None = None

    def __init__(
        self,
        shards: Sequence[Shard],
        targets: Sequence[str],
        *,
        size: int,
        resize: int | None = None,
        word: str = "auto",
        most: int = 0,
        classes: Sequence[str] = (),
        values: int = 0,
        box_classes: Sequence[str] = (),
        mask_classes: int | None = None,
        whole: bool = False,
        pixels: Pixels | None = None,
        rows: Sequence[tuple[int, int]] | None = None,
        called: str = "train",
    ):
        self.called = called
        self.shards, self.targets, self.size, self.classes = shards, tuple(targets), size, tuple(classes)
        self.rows = chosen_rows(shards, most) if rows is None else list(rows)
        self.left_out = dict[str, int]()
        self.labels = _labels(shards, self.rows, word, classes) if "label" in targets else None
        boxed = any(name in targets for name in ("boxes", "instances"))
        given: dict[str, Any] = {"mask": "mask" in targets, "boxes": MOST_BOXES if boxed else 0, "pixels": pixels}
        given["values"] = values if "values" in targets else 0
        self.view = WholeImage(size, train=False, **given) if whole else _center(size, resize, given)
        self.view.mask_classes = mask_classes
        self.view.label = self._label if "label" in targets else None
        self.view.labels = ClassLabels(shards, classes) if "labels" in targets else None
        if is_annotations(word):
            if not box_classes:
                raise RequestError(
                    f"labels={word} says where things lie, and no head here finds any; another word for labels"
                )
            self.view.things = FileThings(shards, read_things(word).among(box_classes), crowds=True)
        self.scenes = dict[tuple[int, int], Scene]()
        self._told = dict[tuple[int, int], str]()  # why which row was left out

    def __len__(self) -> int:
        return len(self.rows)

    def check(self, where: str) -> None:
        """Raises RequestError where none of the first images can be used, as where all lack their targets. where: for people."""
        for place in self.rows[:FIRST]:
            try:
                self.view.decode(self.shards[place[0]].read(*place))
                return
            except (Undecodable, TarError) as error:
                problem = str(error)
        if self.rows:
            raise RequestError(
                f"{where}: none of the first {len(self.rows[:FIRST])} images can be used to judge heads by "
                f"{', '.join(self.targets)}; the last one: {problem}"
            )

    def batches(self, batch: int = 256, threads: int = 2) -> Iterator[dict[str, torch.Tensor]]:
        """Yields `pixels` uint8 [B, C, S, S], `place` (shard and row) [B, 2] and the targets, in the order of the rows: of all of
        them, also where ranks share them."""
        with ThreadPoolExecutor(threads, thread_name_prefix="evaluation") as pool:
            for first in range(0, len(self.rows), batch):
                if (found := self._block(pool, first, batch)) is not None:
                    yield found

    def blocks(self, batch: int, threads: int) -> Iterator[tuple[int, dict[str, torch.Tensor] | None]]:
        """Yields the number of the first row and fields as `batches`, of the blocks whose turn is this rank's. None: none of that block
        can be used, or there is none: all ranks have as many turns. One process without a group is told of no such."""
        rank, ranks = (0, 1) if self.group is None else (self.group.rank(), self.group.size())
        turns = -(-len(self.rows) // (batch * ranks))
        with ThreadPoolExecutor(threads, thread_name_prefix="evaluation") as pool:
            for first in range(rank * batch, turns * ranks * batch, ranks * batch):
                found = self._block(pool, first, batch)
                if found is not None or self.group is not None:
                    yield first, found

    def blank(self) -> torch.Tensor:
        """Returns one image of zeros, uint8 [1, C, S, S]."""
        (shape,) = (
            shape for name, (_, shape) in self.view.layout(1, painted=True).items() if name.startswith("views/")
        )
        return torch.zeros(shape, dtype=torch.uint8)

    def share_left_out(self) -> None:
        """Notes what other ranks left out. Waits for all of the group."""
        for each in gather_values(sorted(self._told.items()), self.group):
            for (shard, row), kind in each:
                self._leave_out((shard, row), kind, "another rank could not use it")

    def _block(self, pool: ThreadPoolExecutor, first: int, batch: int) -> dict[str, torch.Tensor] | None:
        found = [one for one in pool.map(self._one, self.rows[first : first + batch]) if one is not None]
        if not found:
            return None
        whole = {name: torch.from_numpy(np.concatenate([one[name] for one in found])) for name in found[0]}
        return {"pixels": whole.pop(f"views/{self.size}").permute(0, 3, 1, 2), **whole}

    def _leave_out(self, place: tuple[int, int], kind: str, why: object) -> None:
        if place not in self._told:
            self._told[place] = kind
            self.left_out[kind] = self.left_out.get(kind, 0) + 1
            log.warning(f"{self.shards[place[0]].path} row {place[1]} is left out: {why}")

    def _one(self, place: tuple[int, int]) -> Mapping[str, np.ndarray] | None:
        shard = self.shards[place[0]]
        try:
            decoded = self.view.decode(shard.read(*place))
        except (Undecodable, TarError) as error:
            self._leave_out(place, getattr(error, "kind", "tar"), error)
            return None
        made: dict[str, np.ndarray] = {"place": np.array([place])}
        if "scene" in decoded:
            self.scenes[place] = decoded["scene"].item()
        for name, (kind, shape) in self.view.layout(1, painted=True).items():
            shape = (shape[0], *shape[2:], shape[1]) if name.startswith("views/") else shape
            made[name] = torch.zeros(shape, dtype=kind).numpy()
        self.view.draws(np.zeros(1, dtype=np.uint64), painted=True).fill(0, decoded, made, 0)
        return made

    def _label(self, sample: Sample) -> int:
        """Returns the number of the class, from the count of classes on for one that the head does not know."""
        assert self.labels is not None
        found = int(self.labels.of[sample.ref.shard][sample.ref.row])
        if found < 0:
            raise Undecodable("it has no label", "target")
        return found


def _center(size: int, resize: int | None, given: Mapping[str, Any]) -> OneView:
    """Returns the view that cuts the center. What is decoded is as large as the shorter side, and no larger."""
    short = resize or short_side(size)
    return OneView(size, train=False, resize=resize, scale=(min(1.0, (size / short) ** 2 * (1 + 1e-9)), 1.0), **given)


def _labels(shards: Sequence[Shard], rows: Sequence[tuple[int, int]], word: str, classes: Sequence[str]) -> Labels:
    """Returns the labels as numbers of `classes`, followed by classes that these lack. Raises RequestError."""
    found = labels.find(shards, rows, word, classes)
    known = Labels([], list(classes), named=found.named or not all(name.isdigit() for name in classes))
    return labels.match(known, found)
