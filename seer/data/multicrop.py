"""Multi-crop: a few large and a few small views of one picture, and the colours each will get.

Geometry happens here, on uint8 pixels of one picture; colour, blur and normalisation are only *drawn* here and applied
by `augment` to whole batches on the training device. Every number comes from the sample's own key, so pixels do not
depend on workers, ranks or restarts. The operations and their order are those of SwAV (`facts/seer.md` section 4);
crop boxes follow torchvision's RandomResizedCrop: ten tries, then the largest central box.

Surprising: resizing wants `from_numpy(hwc)[None].permute(0, 3, 1, 2)`; permuting before adding the axis leaves strides
that send torch down a path three times slower. Legend: V views, S side, h w picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from seer.core import rng
from seer.core.errors import RequestError
from seer.core.records import Colour, Picture

TRIES = 10
_ORDERS = np.array(
    [[a, b, c, d] for a in range(4) for b in range(4) for c in range(4) for d in range(4)], dtype=np.uint8
)
_ORDERS = _ORDERS[[len(set(row)) == 4 for row in _ORDERS.tolist()]]  # the 24 orders of four operations


@dataclass(frozen=True)
class Draw:
    """What was drawn for one picture's V views. boxes int64 [V, 4] top, left, height, width; flip bool [V]."""

    boxes: np.ndarray
    flip: np.ndarray
    jitter: np.ndarray  # bool [V]
    order: np.ndarray  # uint8 [V, 4]
    factors: np.ndarray  # float32 [V, 4]
    gray: np.ndarray  # bool [V]
    sigma: np.ndarray  # float32 [V], 0 = sharp


class MultiCrop:
    """sizes, counts and scales go together, the largest size first: sides in pixels, views of each, area shares.

    brightness, contrast, saturation: factors drawn from [1 - x, 1 + x]; hue: shift drawn from [-x, x] turns, at most
    0.5. jitter, grayscale, blur, flip: probabilities. blur_sigma in pixels of the finished view. mean and std normalise
    pixels in [0, 1]. Raises RequestError for anything else.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (224, 96),
        counts: Sequence[int] = (2, 4),
        scales: Sequence[Sequence[float]] = ((0.14, 1.0), (0.05, 0.14)),
        aspect: Sequence[float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        jitter: float = 0.8,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        grayscale: float = 0.2,
        blur: float = 0.5,
        blur_sigma: Sequence[float] = (0.1, 2.0),
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ):
        if not len(sizes) == len(counts) == len(scales) or not sizes:
            raise RequestError(
                f"augment: {len(sizes)} sizes, {len(counts)} counts, {len(scales)} scales; give one each"
            )
        if min(sizes) < 8 or min(counts) < 1 or list(sizes) != sorted(set(sizes), reverse=True):
            raise RequestError(
                f"augment.sizes={list(sizes)}: sides of at least 8, each once, largest first, counts > 0"
            )
        if sum(counts) < 2:
            raise RequestError("augment.counts: SwAV predicts one view from another, so it needs two views or more")
        for low, high in scales:
            if not 0 < low <= high <= 1:
                raise RequestError(f"augment.scales: {low}..{high} is not a share of the picture's area in (0, 1]")
        if not 0 < aspect[0] <= aspect[1]:
            raise RequestError(f"augment.aspect={list(aspect)}: lowest and highest width/height, both above 0")
        for name, p in (("flip", flip), ("jitter", jitter), ("grayscale", grayscale), ("blur", blur)):
            if not 0 <= p <= 1:
                raise RequestError(f"augment.{name}={p} is not a probability")
        if not 0 <= hue <= 0.5 or min(brightness, contrast, saturation) < 0:
            raise RequestError(
                "augment: hue lies in 0..0.5 turns; brightness, contrast and saturation are not negative"
            )
        if not 0 < blur_sigma[0] <= blur_sigma[1]:
            raise RequestError(f"augment.blur_sigma={list(blur_sigma)}: lowest and highest sigma in pixels, above 0")
        self.sizes, self.counts = tuple(sizes), tuple(counts)
        self.views = sum(counts)
        self.mean, self.std, self.blur_sigma = tuple(mean), tuple(std), tuple(blur_sigma)
        self._flip, self._jitter, self._gray, self._blur = flip, jitter, grayscale, blur
        self._strength = np.array([brightness, contrast, saturation, hue])
        self._scales = np.repeat(np.array(scales, dtype=np.float64), counts, axis=0)  # [V, 2]
        self._aspect = np.log(np.array(aspect, dtype=np.float64))

    def draw(self, height: int, width: int, key: int) -> Draw:
        """All random numbers of one picture. A function of its size and its key alone."""
        v = self.views
        u = rng.uniforms(rng.sub_keys(key, np.arange(v)), 2 * TRIES + 13)  # [V, 33]
        boxes = self._boxes(height, width, u[:, : 2 * TRIES], u[:, 2 * TRIES : 2 * TRIES + 2])
        u = u[:, 2 * TRIES + 2 :]
        factors = 1 + self._strength * (2 * u[:, 2:6] - 1)
        factors[:, :3] = np.maximum(factors[:, :3], 0)
        factors[:, 3] -= 1
        low, high = self.blur_sigma
        return Draw(
            boxes=boxes,
            flip=u[:, 0] < self._flip,
            jitter=u[:, 1] < self._jitter,
            order=_ORDERS[(u[:, 6] * 24).astype(np.int64)],
            factors=factors.astype(np.float32),
            gray=u[:, 7] < self._gray,
            sigma=np.where(u[:, 8] < self._blur, low + (high - low) * u[:, 9], 0).astype(np.float32).reshape(v),
        )

    def cut(self, picture: Picture, draw: Draw, out: Sequence[torch.Tensor], b: int) -> None:
        """Write one picture's views as picture b of a batch. out: per resolution uint8 [v, B, 3, S, S], channels_last."""
        pixels = torch.from_numpy(np.ascontiguousarray(picture))
        first = 0
        for views, size, count in zip(out, self.sizes, self.counts, strict=True):
            for i in range(count):
                top, left, height, width = draw.boxes[first + i].tolist()
                crop = pixels[top : top + height, left : left + width].contiguous()[None].permute(0, 3, 1, 2)
                view = resize(crop, size)[0]  # [3, S, S]
                views[i, b].copy_(view.flip(-1) if draw.flip[first + i] else view)
            first += count

    def _boxes(self, height: int, width: int, tries: np.ndarray, corner: np.ndarray) -> np.ndarray:
        low, high = self._scales[:, :1], self._scales[:, 1:]
        area = height * width * (low + (high - low) * tries[:, :TRIES])  # [V, 10]
        ratio = np.exp(self._aspect[0] + (self._aspect[1] - self._aspect[0]) * tries[:, TRIES:])
        w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (w >= 1) & (h >= 1) & (w <= width) & (h <= height)
        pick, views = fits.argmax(axis=1), np.arange(len(fits))
        w, h = w[views, pick], h[views, pick]
        top, left = np.floor(corner[:, 0] * (height - h + 1)), np.floor(corner[:, 1] * (width - w + 1))
        boxes = np.stack([top, left, h, w], axis=1).astype(np.int64)
        boxes[~fits.any(axis=1)] = self._central_box(height, width)
        return boxes

    def _central_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        least, most = np.exp(self._aspect)
        if width < least * height:
            w, h = width, round(width / least)
        elif width > most * height:
            w, h = round(height * most), height
        else:
            w, h = width, height
        return (height - h) // 2, (width - w) // 2, h, w


def resize(pixels: torch.Tensor, height: int, width: int | None = None) -> torch.Tensor:
    """Bilinear with antialiasing, equal to Pillow's within rounding. uint8 [1, 3, h, w] channels_last -> [1, 3, S, S]."""
    size = (height, width or height)
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)


def collate(draws: Sequence[Draw], counts: Sequence[int]) -> list[Colour]:
    """Colours of B pictures, one record a resolution, view-major like the crops: view 0 of all pictures, view 1 of ..."""
    colours, first = [], 0
    for count in counts:
        rows = {
            name: torch.from_numpy(
                np.concatenate([np.stack([getattr(d, name)[first + i] for d in draws]) for i in range(count)])
            )
            for name in ("jitter", "order", "factors", "gray", "sigma")
        }
        colours.append(Colour(**rows))
        first += count
    return colours
