"""Opens the labelled images of a config: those that are known, and those that are asked for."""

from typing import Any, Protocol

from seer.data.shards.open import open_shards
from seer.evals.features import LabelledImages


class ProbeImages(Protocol):
    """Says which images, how they are cut, and where their labels come from; attributes of a config."""

    @property
    def train(self) -> str | list[str] | None: ...
    @property
    def test(self) -> str | list[str] | None: ...
    @property
    def labels(self) -> str: ...
    @property
    def size(self) -> int | None: ...
    @property
    def resize(self) -> int | None: ...
    @property
    def most(self) -> int: ...


def labelled(images: ProbeImages, size: int) -> tuple[LabelledImages, LabelledImages]:
    """Opens train and test images. Classes are matched by name. size: where `images` has none.

    Raises RequestError where there are no labels, or none in common.
    """
    assert images.train is not None and images.test is not None
    options: dict[str, Any] = {"size": images.size or size, "resize": images.resize}
    options |= {"labels": images.labels, "most": images.most}
    train = LabelledImages(open_shards(images.train), **options)
    return train, LabelledImages(open_shards(images.test), like=train, **options)
