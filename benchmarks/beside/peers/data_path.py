"""From JPEG bytes to normalized float crops: SwAV's augmentation, lightly's, torchvision's on tensors.

SwAV's is rebuilt here from the paper's description (arXiv 2006.09882, section 4 and appendix; color distortion as in SimCLR):
random resized crop, flip, color jitter of strength 0.8/0.8/0.8/0.2 in 4 of 5 views, gray in 1 of 5, Pillow's Gaussian blur of
radius 0.1 to 2 in every second one; each view by itself, on Pillow images.
"""

import io
import random
from collections.abc import Callable
from typing import Any

import torch
from lightly.transforms import SwaVTransform
from photos import spread
from PIL import Image, ImageFilter
from torchvision import transforms as T
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALES = ((0.14, 1.0), (0.05, 0.14))


def by_pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def blurred(image: Image.Image) -> Image.Image:
    if random.random() >= 0.5:
        return image
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def swav(sizes: list[int], counts: list[int]) -> Callable[[bytes], object]:
    jitter = T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8)
    views = []
    for size, count, scale in zip(sizes, counts, SCALES, strict=True):
        geometry = [T.RandomResizedCrop(size, scale=scale), T.RandomHorizontalFlip()]
        color = [jitter, T.RandomGrayscale(0.2), T.Lambda(blurred), T.ToTensor(), T.Normalize(MEAN, STD)]
        views += [T.Compose([*geometry, *color])] * count

    def cut(data: bytes) -> object:
        image = by_pillow(data)
        return [view(image) for view in views]

    return cut


def lightly(sizes: list[int], counts: list[int]) -> Callable[[bytes], object]:
    transform = SwaVTransform(crop_sizes=tuple(sizes), crop_counts=tuple(counts))
    return lambda data: transform(by_pillow(data))


def on_tensors(sizes: list[int], counts: list[int]) -> Callable[[bytes], object]:
    """torchvision v2 on uint8 tensors as its decoder makes them."""
    views = []
    for size, count, scale in zip(sizes, counts, SCALES, strict=True):
        geometry = [v2.RandomResizedCrop(size, scale=scale, antialias=True), v2.RandomHorizontalFlip()]
        jitter = v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8)
        blur = v2.RandomApply([v2.GaussianBlur(size // 20 * 2 + 1, (0.1, 2.0))], p=0.5)
        finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        views += [v2.Compose([*geometry, jitter, v2.RandomGrayscale(0.2), blur, *finish])] * count

    def cut(data: bytes) -> object:
        image = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return [view(image) for view in views]

    return cut


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    photos = spread(given["folder"], given["photos"])
    random.seed(0)

    def turns(cut: Callable[[bytes], object]) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            for data in photos:
                cut(data)
            return {"amount": len(photos)}

        return run

    parties = {"SwAV's (torchvision, Pillow)": swav, "lightly": lightly, "torchvision v2": on_tensors}
    return {name: turns(one(given["sizes"], given["counts"])) for name, one in parties.items()}
