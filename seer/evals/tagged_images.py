"""Reads images that have any number of classes each, or none, for evaluation of features: the center cut, and which classes it has.

Classes are those that the manifests beside the train images name, in their order; an image whose classes cannot be read, or are
others, is left out, told once, and counted.

Legend: B images of a batch, S side, Y classes.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from seer.core.errors import RequestError
from seer.core.records import Labelled
from seer.data.pixels import Pixels
from seer.data.shards.bad_archives import BadArchives
from seer.data.shards.open import open_shards
from seer.data.shards.shard import Shard
from seer.evals.probe import ProbeImages, options_of, words_of
from seer.evals.target_images import TargetImages


class TaggedImages:
    """Holds images with classes. classes: their names, in the order of the columns of labels. Others as `TargetImages`."""

    def __init__(
        self,
        shards: Sequence[Shard],
        classes: Sequence[str],
        *,
        size: int,
        resize: int | None = None,
        most: int = 0,
        pixels: Pixels | None = None,
    ):
        self.shards, self.classes, self.size = shards, list(classes), size
        self._images = TargetImages(
            shards, ("labels",), size=size, resize=resize, most=most, classes=classes, pixels=pixels
        )

    def __len__(self) -> int:
        return len(self._images)

    @property
    def left_out(self) -> dict[str, int]:
        """Returns how many were left out so far, by reason."""
        return self._images.left_out

    def batches(self, batch: int = 256, threads: int = 2) -> Iterator[Labelled]:
        """Yields uint8 [B, C, S, S] and float32 [B, Y] of 0 and 1, in the order of the rows."""
        for fields in self._images.batches(batch, threads):
            yield Labelled(fields["pixels"], fields["labels"])

    def made(
        self, make: Callable[[torch.Tensor], torch.Tensor], batch: int = 256, threads: int = 2
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what `make` makes of the images, float32 [M, N] on the host, and their classes [M, Y]. Each rank reads all.
        Raises RequestError where none of the images can be read."""
        parts = [(make(one.pixels), one.labels) for one in self.batches(batch, threads)]
        if not parts:
            raise RequestError("none of the images for evaluation could be read")
        made, labels = zip(*parts, strict=True)
        return torch.cat(made), torch.cat(labels)

    def check(self, where: str) -> None:
        """Raises RequestError where none of the first images can be used."""
        self._images.check(where)


def tagged(
    images: ProbeImages, size: int, pixels: Pixels | None = None, bad: BadArchives | None = None
) -> tuple[TaggedImages, TaggedImages]:
    """Opens train and test images, both with the classes of train. Arguments are those of `labelled`. Raises RequestError where no
    manifest names classes, and where the first images of either cannot be used."""
    assert images.train is not None and images.test is not None
    if other := [word for word in words_of(images.labels) if word not in ("auto", "member")]:
        raise RequestError(f"eval.several=true reads `cls` members, so data.labels={other[0]} says nothing")
    options, bad = options_of(images, size, pixels), bad or BadArchives(images.max_bad_archives)
    found, classes = [], list[str]()
    for side, source in (("train", images.train), ("test", images.test)):
        shards = open_shards(source, bad=bad)
        classes = classes or list(dict.fromkeys(name for shard in shards for name in shard.classes or ()))
        if not classes:
            raise RequestError(
                f"eval.several=true: no manifest beside data.{side}={source} names the classes; write them with `seer shard`"
            )
        found.append(TaggedImages(shards, classes, **options))
        found[-1].check(f"data.{side}={source}")
    return found[0], found[1]
