"""Opens the labelled images of a config: those that are known, and those that are asked for."""

from dataclasses import replace
from typing import Any, Protocol

from seer.core.errors import RequestError
from seer.data.coco import is_annotations
from seer.data.label_words import check_word
from seer.data.pixels import Pixels
from seer.data.shards.bad_archives import BadArchives
from seer.data.shards.open import check_box_classes, open_shards
from seer.data.transforms.whole_image import WholeImage
from seer.evals import coco_metrics
from seer.evals.features import LabelledImages, PlainImages
from seer.evals.target_images import TargetImages


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
    @property
    def max_pixels(self) -> int | None: ...
    @property
    def max_bad_archives(self) -> int: ...


def labelled(
    images: ProbeImages, size: int, pixels: Pixels | None = None, bad: BadArchives | None = None
) -> tuple[LabelledImages, LabelledImages]:
    """Opens train and test images. Classes are matched by name. size: where `images` has none. Two words for labels are those
    of train and of test. pixels: as in training, but for `max_pixels`. bad: how many archives of both may be passed over, and
    receives them; None: as many as `images` says.

    Raises RequestError where there are no labels, or none in common.
    """
    assert images.train is not None and images.test is not None
    words, options, bad = words_of(images.labels), options_of(images, size, pixels), bad or _bad(images)
    train = LabelledImages(open_shards(images.train, bad=bad), labels=words[0], **options)
    return train, LabelledImages(open_shards(images.test, bad=bad), labels=words[1], like=train, **options)


def words_of(labels: str | list[str]) -> list[str]:
    """Returns the words that say where labels come from, of train and of test. Raises RequestError."""
    words = [labels] * 2 if isinstance(labels, str) else labels
    if len(words) != 2:
        raise RequestError(f"labels={words}: one word, or two: for train images and for test images")
    for word in words:
        if not is_annotations(word):
            check_word(word)
    return words


def unlabelled(
    images: ProbeImages, size: int, pixels: Pixels | None = None, bad: BadArchives | None = None
) -> PlainImages:
    """Opens the train images, whose labels are not looked at. Others as `labelled`."""
    assert images.train is not None
    return PlainImages(open_shards(images.train, bad=bad or _bad(images)), **options_of(images, size, pixels))


def held_out(
    images: ProbeImages, task: Any, pixels: Pixels | None = None, side: str = "test", bad: BadArchives | None = None
) -> TargetImages:
    """Opens the images of a side, test or train, with what the heads of a task are to find in them. Others as `labelled`. Raises
    RequestError where the first of them all lack it."""
    source = getattr(images, side)
    assert source is not None
    word = words_of(images.labels)[side == "test"]
    if "instances" in getattr(task, "batch_fields", ()):
        coco_metrics.require()
        if not is_annotations(word):
            raise RequestError(
                f"{side}={source}: what mask_rcnn is to find there is said by a file of COCO's form, and labels={word} is none; "
                "eval.labels=FILE.json while training, data.labels=FILE.json of seer evaluate"
            )
    found = TargetImages(
        open_shards(source, bad=bad or _bad(images)),
        task.targets,
        word=word,
        classes=task.classes,
        values=task.transform.values,
        box_classes=getattr(task, "box_classes", ()),
        mask_classes=getattr(task, "mask_classes", None),
        whole=isinstance(task.transform, WholeImage),
        **options_of(images, task.transform.input_size, pixels),
    )
    if not is_annotations(word):
        check_box_classes(f"{side}={source}", getattr(task, "box_classes", ()), found.shards)
    found.check(f"{side}={source}")
    return found


def options_of(images: ProbeImages, size: int, pixels: Pixels | None) -> dict[str, Any]:
    """Returns size, resize, most and pixels, as images for evaluation take them. Others as `labelled`."""
    if images.max_pixels is not None:
        pixels = replace(pixels or Pixels(), most=images.max_pixels)
    return {"size": images.size or size, "resize": images.resize, "most": images.most, "pixels": pixels}


def _bad(images: ProbeImages) -> BadArchives:
    return BadArchives(images.max_bad_archives)
