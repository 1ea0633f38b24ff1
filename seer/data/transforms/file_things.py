"""Gives what lies on an image by a file of COCO's form that lists it, where no member of its sample says it.

An image that the file does not list, or lists with another size than the upright image has, is a bad one, and the ledger's.
Crowds are no things to learn: they are left out here, as in COCO's own training, and stay in `scene` for who judges; with
crowds=True they stay among the boxes too, each with the label that `crowd_of` makes of its class.

Legend: n things of an image, h w of it.
"""

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from seer.core.records import ImageArray, Sample
from seer.data.coco import Scene, Thing, Things
from seer.data.decode import Undecodable
from seer.data.shards.original_names import Origins
from seer.data.shards.shard import Shard
from seer.data.transforms.targets import Boxes


def place_of(shard: Shard, key: str) -> str:
    """Returns the whole path of an image, or the path of its tar and its key: what files name images by."""
    return key if key.startswith("/") else f"{os.path.abspath(shard.path)}/{key}"


def crowd_of(label: int) -> int:
    """Returns the label of a crowd of a class, and the class of such a label: 0 and -2, 1 and -3, and so on."""
    return -2 - label


class FileThings:
    """Holds what lies on the images of shards, with the classes of a head. found: of these classes (`Things.among`). crowds: who
    judges has to know of them, too."""

    def __init__(self, shards: Sequence[Shard], found: Things, crowds: bool = False):
        self.crowds = crowds
        self.names, self.left_out = found.names, dict(found.left_out)
        self._found, self._shards, self._origins = found, list(shards), Origins(shards)

    def at(self, shard: int, row: int, key: str) -> Scene | None:
        """Returns what is on an image; None where the file does not list it. Images of shards that `seer shard` made are known by the
        names that they had, while these lie beside the shards."""
        one, origin = self._shards[shard], self._origins.of(shard, row)
        renamed = origin["shard"] != str(one.path)
        return self._found.at(f"{origin['shard']}/{origin['member']}" if renamed else place_of(one, key))

    def scene(self, sample: Sample, image: ImageArray) -> Scene:
        """Returns all that is on an image [h, w, C], crowds as well. Raises Undecodable."""
        scene = self.at(sample.ref.shard, sample.ref.row, sample.key)
        if scene is None:
            raise Undecodable(f"{self._found.path} does not list it", "target")
        height, width = image.shape[:2]
        if scene.size is not None and scene.size != (width, height):
            raise Undecodable(
                f"{self._found.path} says that it has {scene.size[0]} x {scene.size[1]} pixels, and the upright image has "
                f"{width} x {height}",
                "target",
            )
        return scene

    def things(self, sample: Sample, image: ImageArray) -> list[Thing]:
        """Returns what can be learned of an image [h, w, C]: all but crowds. Raises Undecodable."""
        return [one for one in self.scene(sample, image).things if not one.crowd]

    def boxes(self, sample: Sample, image: ImageArray) -> Boxes:
        """Returns the boxes of an image, cut at its edges. Raises Undecodable."""
        if not self.crowds:
            return boxes_of(self.things(sample, image), image)
        things = self.scene(sample, image).things
        return boxes_of([replace(one, label=crowd_of(one.label)) if one.crowd else one for one in things], image)


def boxes_of(things: Sequence[Thing], image: ImageArray) -> Boxes:
    """Returns the boxes of things, cut at the edges of their image: float32 [n, 4], int64 [n]."""
    height, width = image.shape[:2]
    edges = np.array([one.box for one in things], dtype=np.float64).reshape(-1, 4).clip(0, [width, height] * 2)
    return Boxes(edges.astype(np.float32), np.array([one.label for one in things], dtype=np.int64))
