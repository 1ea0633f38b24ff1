"""Cuts multi-crops: a few large and a few small views of one image, and draws the color each will get.

Geometry happens here, on uint8 pixels of one image. Color and blur are *drawn* here and applied by `augment` to whole
batches on a GPU, or by `color` to view after view where there is none. Every number comes from the sample's own key, so
pixels do not depend on workers, ranks or restarts. The operations and their order are those of SwAV (`facts/seer.md`
section 4); crop boxes follow torchvision's RandomResizedCrop: ten tries, then the largest central box.

Surprising: an image of height, width and channels is resized three times as fast when its strides say channels_last beyond
doubt, the stride of the axis of one included. Legend: V views, v views of one size, B samples, S side, h w image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from seer.core import rng
from seer.core.errors import RequestError
from seer.core.records import Color, Decoded, ImageArray, Sample
from seer.data.decode import decode
from seer.data.pixels import Pixels, by_channel
from seer.data.shards.shard import image_of
from seer.data.transforms import color

CROP_TRIES = 10
# torch shortens rows first, 2 ns a pixel, and columns then, next to nothing: where so many pixels are saved by columns first
# (0.8 of the time of an image of 430 for a view of 224), a second call of 15 us pays.
_WORTH_TWO = 15_000
_ORDERS = np.array(
    [[a, b, c, d] for a in range(4) for b in range(4) for c in range(4) for d in range(4)], dtype=np.uint8
)
_ORDERS = _ORDERS[[len(set(row)) == 4 for row in _ORDERS.tolist()]]  # the 24 orders of four operations
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_DRAWN = {"jitter": (torch.bool, ()), "order": (torch.uint8, (4,)), "factors": (torch.float32, (4,))}
_DRAWN |= {"gray": (torch.bool, ()), "sigma": (torch.float32, ())}
assert list(_DRAWN) == [f.name for f in fields(Color)]


def _check_lengths(lists: Mapping[str, Sequence[float]], length: int) -> None:
    for name, numbers in lists.items():
        if not isinstance(numbers, Sequence) or len(numbers) != length or not np.isfinite(numbers).all():
            raise RequestError(f"augment.{name}={numbers}: {length} numbers are expected")


@dataclass(frozen=True)
class Draw:
    """Holds what was drawn for one image's V views. boxes int64 [V, 4] top, left, height, width; flip bool [V]."""

    boxes: np.ndarray
    flip: np.ndarray
    jitter: np.ndarray  # bool [V]
    order: np.ndarray  # uint8 [V, 4]
    factors: np.ndarray  # float32 [V, 4]
    gray: np.ndarray  # bool [V]
    sigma: np.ndarray  # float32 [V], 0 = sharp


class MultiCrop:
    """Cuts views of several sizes. Raises RequestError for arguments that make none.

    sizes         sides of the views in pixels, the largest first
    counts        how many views there are of each size
    scales        lowest and highest share of the image's area, of each size
    aspect        lowest and highest width / height of a box
    flip          probability of a mirrored view
    jitter        probability that brightness, contrast, saturation and hue are changed
    brightness    factors drawn from [1 - x, 1 + x]
    contrast      the same
    saturation    the same; left out where images have not three channels, as are hue and grayscale
    hue           shift drawn from [-x, x] turns, at most 0.5
    grayscale     probability
    blur          probability
    blur_sigma    lowest and highest, in pixels of the finished view
    mean          pixels in [0, 1] are normalized by it, a number a channel
    std           and by this
    device        where color and blur are applied: auto, the device that trains, or cpu, the loader's threads
    pixels        of `data`, given by the program
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
        device: str = "auto",
        pixels: Pixels | None = None,
    ):
        self.pixels = pixels or Pixels()
        mean, std = by_channel(mean, _MEAN, self.channels), by_channel(std, _STD, self.channels)
        if not len(sizes) == len(counts) == len(scales) or not sizes:
            raise RequestError(
                f"augment: {len(sizes)} sizes, {len(counts)} counts, {len(scales)} scales; give one each"
            )
        if min(sizes) < 8 or min(counts) < 1 or list(sizes) != sorted(set(sizes), reverse=True):
            raise RequestError(
                f"augment.sizes={list(sizes)}: sides of at least 8, each once, largest first, counts > 0"
            )
        pairs = {"aspect": aspect, "blur_sigma": blur_sigma, **{f"scales[{i}]": pair for i, pair in enumerate(scales)}}
        _check_lengths(pairs, 2)
        _check_lengths({"mean": mean, "std": std}, self.channels)
        if min(std) <= 0:
            raise RequestError(f"augment.std={list(std)}: pixels are divided by these, so they lie above 0")
        for low, high in scales:
            if not 0 < low <= high <= 1:
                raise RequestError(f"augment.scales: {low}..{high} is not a share of the image's area in (0, 1]")
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
        if device not in ("auto", "cpu"):
            raise RequestError(f"augment.device={device}: auto (the device that trains) or cpu (the loader's threads)")
        self.device, self.sizes, self.counts = device, tuple(sizes), tuple(counts)
        self.views, self.suffices = sum(counts), _suffices(sizes, scales)
        self.mean, self.std, self.blur_sigma = tuple(mean), tuple(std), tuple(blur_sigma)
        self.flip, self.jitter, self.gray, self.blur = flip, jitter, grayscale, blur
        if self.channels != 3:
            saturation = hue = self.gray = 0.0
        self.strength = np.array([brightness, contrast, saturation, hue])
        self.scales = np.repeat(np.array(scales, dtype=np.float64), counts, axis=0)  # [V, 2]
        self.aspect = np.log(np.array(aspect, dtype=np.float64))

    @property
    def channels(self) -> int:
        """Returns how many an image has."""
        return self.pixels.channels

    @property
    def input_size(self) -> int:
        """Returns the side of the large views."""
        return self.sizes[0]

    def layout(self, batch_size: int, *, painted: bool = False) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Returns `views/S` [v*B, C, S, S] of each size and, unless painted, `color/S/NAME` [v*B, ...], view-major."""
        found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for size, count in zip(self.sizes, self.counts, strict=True):
            n = count * batch_size
            found[f"views/{size}"] = torch.uint8, (n, self.channels, size, size)
            if not painted:
                found |= {f"color/{size}/{name}": (kind, (n, *rest)) for name, (kind, rest) in _DRAWN.items()}
        return found

    def decode(self, sample: Sample, scratch: np.ndarray | None = None) -> Decoded:
        """Returns the image alone. Raises Undecodable."""
        return {"image": decode(image_of(sample), scratch, self.pixels, shorter=self.suffices)}

    def draw(self, height: int, width: int, key: int) -> Draw:
        """Returns all random numbers of one image. A function of its size and its key alone."""
        return self.draws(np.array([key], dtype=np.uint64)).at(0, height, width)

    def draws(self, keys: np.ndarray, *, painted: bool = False) -> "Draws":
        """Returns those of n images whose sizes are not known yet, in one go. uint64 [n]."""
        return Draws(self, keys, painted)

    def crop(self, image: ImageArray, draw: Draw, arrays: Mapping[str, np.ndarray], row: int) -> None:
        """Writes one image's views as sample `row` of a batch. arrays: `views/S` uint8 [v*B, S, S, C] of each size."""
        whole, (down, right, channels) = torch.from_numpy(image), (*image.strides[:2], self.channels)
        boxes = iter(zip(draw.boxes.tolist(), draw.flip.tolist(), strict=True))
        for size, count in zip(self.sizes, self.counts, strict=True):
            views = arrays[f"views/{size}"]
            for place in range(row, len(views), len(views) // count):
                (top, left, height, width), flip = next(boxes)
                strides, first = (image.nbytes, 1, down, right), top * down + left * right
                pixels = whole.as_strided((1, channels, height, width), strides, first)
                view = resize(pixels, size).numpy()[0].transpose(1, 2, 0)
                if flip:
                    cv2.flip(view, 1, dst=views[place])  # three times as fast as a copy of a mirrored array
                else:
                    views[place] = view

    def apply_color(self, draw: Draw, arrays: Mapping[str, np.ndarray], row: int) -> None:
        """Applies color and blur to what `crop` wrote, in place."""
        i = 0
        for size, count in zip(self.sizes, self.counts, strict=True):
            views = arrays[f"views/{size}"]
            for place in range(row, len(views), len(views) // count):
                view = views[place]  # [S, S, C]
                if draw.jitter[i]:
                    color.jitter(view, draw.order[i].tolist(), draw.factors[i].tolist())
                if draw.gray[i]:
                    color.gray(view)
                if draw.sigma[i] > 0:
                    color.blur(view, float(draw.sigma[i]))
                i += 1

    def store_params(self, draw: Draw, arrays: Mapping[str, np.ndarray], row: int) -> None:
        """Writes what was drawn for color and blur, to be applied later. arrays: `color/S/NAME` [v*B, ...]."""
        first = 0
        for size, count in zip(self.sizes, self.counts, strict=True):
            for name in _DRAWN:
                array = arrays[f"color/{size}/{name}"]
                array[row :: len(array) // count] = getattr(draw, name)[first : first + count]
            first += count

    def central_box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the largest box in the middle whose aspect is allowed: top, left, height, width."""
        least, most = np.exp(self.aspect)
        if width < least * height:
            w, h = width, round(width / least)
        elif width > most * height:
            w, h = round(height * most), height
        else:
            w, h = width, height
        return (height - h) // 2, (width - w) // 2, h, w


def _suffices(sizes: Sequence[int], scales: Sequence[Sequence[float]]) -> int:
    """Returns the shorter side of an image whose smallest boxes are as wide as their views."""
    return max(math.ceil(side / math.sqrt(least)) for side, (least, _) in zip(sizes, scales, strict=True))


class Draws:
    """Holds the random numbers of n images, all but the boxes, which need the images' sizes.

    Drawn together because numpy's price is by the call: an image's own would take a tenth of the time of its crops.
    """

    def __init__(self, crop: MultiCrop, keys: np.ndarray, painted: bool = False):
        n, v = len(keys), crop.views
        own = rng.sub_keys(keys.repeat(v), np.tile(np.arange(v), n))
        u = rng.uniforms(own, 2 * CROP_TRIES + 13).reshape(n, v, -1)  # [n, V, 33]
        share = crop.scales[:, :1] + (crop.scales[:, 1:] - crop.scales[:, :1]) * u[..., :CROP_TRIES]  # of the area
        ratio = np.exp(crop.aspect[0] + (crop.aspect[1] - crop.aspect[0]) * u[..., CROP_TRIES : 2 * CROP_TRIES])
        # sides of every try, for an image of one pixel's area; and where in the room that is left the box begins
        self._wide, self._high = np.sqrt(share * ratio).tolist(), np.sqrt(share / ratio).tolist()  # [n][V][10]
        self._corner = u[..., 2 * CROP_TRIES : 2 * CROP_TRIES + 2].tolist()
        u = u[..., 2 * CROP_TRIES + 2 :]
        factors = 1 + crop.strength * (2 * u[..., 2:6] - 1)
        factors[..., :3] = np.maximum(factors[..., :3], 0)
        factors[..., 3] -= 1
        low, high = crop.blur_sigma
        self._crop, self._painted = crop, painted
        self._flip, self._jitter, self._gray = u[..., 0] < crop.flip, u[..., 1] < crop.jitter, u[..., 7] < crop.gray
        self._order = _ORDERS[(u[..., 6] * 24).astype(np.int64)]
        self._factors = factors.astype(np.float32)
        self._sigma = np.where(u[..., 8] < crop.blur, low + (high - low) * u[..., 9], 0).astype(np.float32)

    def at(self, i: int, height: int, width: int) -> Draw:
        """Returns the draw of image i, which has this size."""
        return Draw(
            boxes=np.array([self._box(i, view, height, width) for view in range(self._crop.views)], dtype=np.int64),
            flip=self._flip[i],
            jitter=self._jitter[i],
            order=self._order[i],
            factors=self._factors[i],
            gray=self._gray[i],
            sigma=self._sigma[i],
        )

    def fill(self, i: int, decoded: Decoded, arrays: Mapping[str, np.ndarray], row: int) -> None:
        """Writes the views of image i as sample `row` of a batch, and its color, or what was drawn for it."""
        image = decoded["image"]
        draw = self.at(i, image.shape[0], image.shape[1])
        self._crop.crop(image, draw, arrays, row)
        if self._painted:
            self._crop.apply_color(draw, arrays, row)
        else:
            self._crop.store_params(draw, arrays, row)

    def _box(self, i: int, view: int, height: int, width: int) -> tuple[int, int, int, int]:
        root = math.sqrt(height * width)
        for wide, high in zip(self._wide[i][view], self._high[i][view], strict=True):
            w, h = round(root * wide), round(root * high)
            if 1 <= w <= width and 1 <= h <= height:
                y, x = self._corner[i][view]
                return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
        return self._crop.central_box(height, width)


def resize(pixels: torch.Tensor, height: int, width: int | None = None) -> torch.Tensor:
    """Resizes bilinearly with antialiasing, equal to Pillow's within rounding. uint8 [1, C, h, w] channels_last
    -> [1, C, S, S]."""
    size = (height, width or height)
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    if (pixels.shape[-2] - height) * size[1] > _WORTH_TWO:
        pixels = _interpolate(pixels, (height, pixels.shape[-1]))
    return _interpolate(pixels, size)


def _interpolate(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
