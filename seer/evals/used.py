"""Counts what a figure is of: the images of each class that were read and used, and the test images that are train images.

On the latter a figure tells what is known by heart, and not what was learned. Images are compared by a hash of their bytes,
taken while they are read for the figure, so that it costs no reading. An image that was written anew (resized, of another
quality, without its EXIF) is another one here. The CRCs of an index are no help: they cover names and labels, too, which
differ between copies of one image.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from seer.core.log import log
from seer.data.shards.folder import FolderShard
from seer.data.shards.shard import Shard
from seer.evals.features import LabelledImages
from seer.evals.labels import BROKEN

MOST_TOLD = 1000  # classes whose names and counts stand in a result


def used(train: LabelledImages, test: LabelledImages) -> dict[str, Any]:
    """Returns what was used: the classes of train images; train and test images, in all and of each class; `overlap`; and how
    many had no label, or could not be read, where there are such."""
    each = {"train": train.used(), "test": test.used()}
    told: dict[str, Any] = {"classes": len(each["train"]), **{name: sum(one.values()) for name, one in each.items()}}
    told |= overlap(train, test)
    left_out = {
        "unlabelled": train.unlabelled + test.unlabelled,
        "unreadable": sum(len(one.broken) + one.labels.count(BROKEN) for one in (train, test)),
    }
    return {**told, **{name: count for name, count in left_out.items() if count}, **sizes(**each)}


def counted(images: LabelledImages) -> dict[str, int]:
    """Returns how many images were used whose labels are not looked at, and how many could not be read, where there are such."""
    read = {"train": sum(images.used().values()), "test": 0}
    return {**read, **({"unreadable": len(images.broken)} if images.broken else {})}


def learned(shards: Sequence[Shard], test: LabelledImages) -> int:
    """Returns how many test images are images of shards that a head learns from, and warns where there are any.

    They are told by their places, the same file or the same row of one tar, since images are not read for it: a copy of an
    image is another one here.
    """
    tars = {os.path.realpath(shard.path) for shard in shards if not isinstance(shard, FolderShard)}
    count, files = 0, set[str]()
    for shard, of in zip(test.shards, test.labels.of, strict=True):
        rows = np.flatnonzero(of >= 0)
        if isinstance(shard, FolderShard):
            files.update(_files(shard, rows.tolist()))
        elif os.path.realpath(shard.path) in tars:
            count += len(rows)
    for shard in shards if files else ():
        if isinstance(shard, FolderShard):
            before = len(files)
            files.difference_update(_files(shard, range(len(shard))))
            count += before - len(files)
    if count:
        log.warning(
            f"{count} of the {len(test)} test images ({count / len(test):.1%}) are among those that are learned from: the accuracy "
            "on them tells what is known by heart; take them out of one of the two"
        )
    return count


def _files(shard: FolderShard, rows: Iterable[int]) -> Iterator[str]:
    base = os.path.realpath(shard.base)  # once: a million look-ups of links would take a minute
    return (os.path.normpath(os.path.join(base, shard.name(row))) for row in rows)


def sizes(counts: Mapping[str, int] | None = None, **sides: Mapping[str, int]) -> dict[str, Any]:
    """Returns `per_class`, how many images each class has (of each side); of more than MOST_TOLD classes `class_sizes`, the
    fewest and the most that any has."""
    each = {"": counts} if counts is not None else sides
    name = "per_class"
    found: dict[str, Any] = {side: dict(one) for side, one in each.items()}
    if max(map(len, each.values()), default=0) > MOST_TOLD:
        name = "class_sizes"
        found = {side: [min(one.values()), max(one.values())] for side, one in each.items() if one}
    return {name: found[""] if counts is not None else found}


def overlap(train: LabelledImages, test: LabelledImages) -> dict[str, float]:
    """Returns how many of the test images are train images, and their share of all that were read; nothing where those of a
    side have not been read."""
    known, asked = (np.concatenate([one[one != 0] for one in images.content]) for images in (train, test))
    if not len(known) or not len(asked):
        return {}
    count = int(np.isin(asked, known).sum())
    return {"overlap": count, "overlap_share": count / len(asked)}


def tell_overlap(train: LabelledImages, test: LabelledImages) -> None:
    """Warns where test images are train images."""
    found = overlap(train, test)
    if found.get("overlap"):
        log.warning(
            f"{found['overlap']} of the {sum(test.used().values())} test images ({found['overlap_share']:.1%}) are train "
            "images, too, byte for byte: the figures are partly of what is known by heart; take them out of one of the two"
        )
