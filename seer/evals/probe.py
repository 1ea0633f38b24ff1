"""Opens the labelled images of a config: those that are known, and those that are asked for."""

from typing import Any, Protocol

from seer.core.errors import RequestError
from seer.data.label_words import check_word
from seer.data.pixels import Pixels
from seer.data.shards.open import open_shards
from seer.evals.features import LabelledImages


class ProbeImages(Protocol):
    """Says which images, how they are cut, and where their labels come from; attributes of a config."""

    @property
    def train(self) -> str | list[str] | None: ...
    @property
    def test(self) -> str | list[str] | None: ...
    @property
    def labels(self) -> str | list[str]: ...
    @property
    def size(self) -> int | None: ...
    @property
    def resize(self) -> int | None: ...
    @property
    def most(self) -> int: ...


def labelled(images: ProbeImages, size: int, pixels: Pixels | None = None) -> tuple[LabelledImages, LabelledImages]:
    """Opens train and test images. Classes are matched by name. size: where `images` has none. Two words for labels are those
    of train and of test. pixels: as in training.

    Raises RequestError where there are no labels, or none in common.
    """
    assert images.train is not None and images.test is not None
    words = [images.labels] * 2 if isinstance(images.labels, str) else images.labels
    if len(words) != 2:
        raise RequestError(f"labels={words}: one word, or two: for train images and for test images")
    for word in words:
        check_word(word)
    options: dict[str, Any] = {
        "size": images.size or size,
        "resize": images.resize,
        "most": images.most,
        "pixels": pixels,
    }
    train = LabelledImages(open_shards(images.train), labels=words[0], **options)
    return train, LabelledImages(open_shards(images.test), labels=words[1], like=train, **options)
