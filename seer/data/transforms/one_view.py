"""Cuts one view a sample and what is to be learned of it: its class or classes, its mask, its boxes, all by the
same draw.

To train: a random box of the image, resized, flipped by chance, colored where asked. Else: the shorter side resized, the
center cut out. No pixel of a view lies outside its image, so what a mask says to ignore (255) comes from the mask alone.

Legend: B samples, S side, C classes, M boxes at the most, n boxes of one image, h w image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from seer.core.errors import RequestError
from seer.core.records import Decoded, ImageArray, Sample
from seer.data.decode import decode
from seer.data.pixels import Pixels
from seer.data.shards.shard import image_of
from seer.data.transforms import targets
from seer.data.transforms.file_things import FileThings
from seer.data.transforms.multi_crop import Draw, Draws, MultiCrop
from seer.data.transforms.multi_crop import resize as resized

MOST_BOXES = 10_000


@dataclass(frozen=True)
class Placed:
    """Says where a view lies: a box of the image is resized to rows x columns, the view begins at (down, right)
    in that, and is mirrored then or not."""

    top: int
    left: int
    height: int
    width: int
    rows: int
    columns: int
    down: int = 0
    right: int = 0
    flip: bool = False


class OneView:
    """Cuts one view of each image, and its targets. Raises RequestError for arguments that make none.

    Without jitter, grayscale and blur no color is changed. label (int64 [B]) and labels (float32 [B, C]) are given by the
    program (`targets.ClassLabel`, `targets.ClassLabels`).

    size          side of the view in pixels
    train         random boxes and color; else the center
    resize        shorter side before the center is cut; null = size * 256 / 224, or the size itself below 64
    scale         lowest and highest share of the image's area
    aspect        lowest and highest width / height of a box
    flip          probability of a mirrored view
    jitter        probability that brightness, contrast, saturation and hue are changed
    brightness    factors drawn from [1 - x, 1 + x]
    contrast      the same
    saturation    the same
    hue           shift drawn from [-x, x] turns, at most 0.5
    grayscale     probability
    blur          probability
    blur_sigma    lowest and highest, in pixels of the finished view
    mean          pixels in [0, 1] are normalized by it, a number a channel
    std           and by this
    device        where color and blur are applied: auto, the device that trains, or cpu, the loader's threads
    mask          the mask of an image is cut with it: uint8 [B, S, S]
    boxes         so many boxes of an image at the most are cut with it; 0 = none
    values        so many numbers of `value.json` beside an image: float32 [B, n]; 0 = none
    """

    crops: ClassVar[type[MultiCrop]] = MultiCrop  # what draws boxes of the image
    mask_classes: int | None = None  # a mask with the number of another class is a bad one; None: any number is fine
    things: FileThings | None = (
        None  # what lies on images, where a file says it and not their samples; given by the program
    )

    def __init__(
        self,
        size: int = 224,
        train: bool = True,
        resize: int | None = None,
        scale: Sequence[float] = (0.08, 1.0),
        aspect: Sequence[float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        jitter: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        grayscale: float = 0.0,
        blur: float = 0.0,
        blur_sigma: Sequence[float] = (0.1, 2.0),
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        device: str = "auto",
        mask: bool = False,
        boxes: int = 0,
        values: int = 0,
        label: Callable[[Sample], int] | None = None,
        labels: targets.ClassLabels | None = None,
        pixels: Pixels | None = None,
    ):
        color = {"jitter": jitter, "brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        color |= {"grayscale": grayscale, "blur": blur}
        self._crop = self.crops(
            (size,),
            (1,),
            (scale,),
            aspect,
            flip,
            **color,
            blur_sigma=blur_sigma,
            mean=mean,
            std=std,
            device=device,
            pixels=pixels,
        )
        self.size, self.train, self.short = size, train, resize or (size if size < 64 else round(size * 256 / 224))
        if self.short < size:
            raise RequestError(f"augment.resize={resize}: at least the side of the view, augment.size={size}")
        if not 0 <= boxes <= MOST_BOXES:
            raise RequestError(f"augment.boxes={boxes}: from 0 to {MOST_BOXES} boxes of an image")
        self.mean, self.std, self.device = self._crop.mean, self._crop.std, device
        self.mask, self.boxes, self.values, self.label, self.labels = mask, boxes, values, label, labels
        self.colored = train and max(jitter, grayscale, blur) > 0

    @property
    def input_size(self) -> int:
        """Returns the side of the view."""
        return self.size

    def layout(self, batch_size: int, *, painted: bool = False) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Returns `views/S`, `color/S/…` where there is any to be applied later, and the targets that are asked for."""
        b, found = batch_size, self._crop.layout(batch_size, painted=painted or not self.colored)
        if self.label is not None:
            found["label"] = torch.int64, (b,)
        if self.labels is not None:
            found["labels"] = torch.float32, (b, self.labels.count)
        if self.values:
            found["values"] = torch.float32, (b, self.values)
        if self.mask:
            found["mask"] = torch.uint8, (b, self.size, self.size)
        if self.boxes:
            found["boxes"] = torch.float32, (b, self.boxes, 4)
            found["box_label"] = torch.int64, (b, self.boxes)
            found |= {name: (torch.int64, (b,)) for name in ("box_count", "box_overflow")}
        return found

    def decode(self, sample: Sample, scratch: np.ndarray | None = None) -> Decoded:
        """Returns the image and its targets. Raises Undecodable."""
        if self.mask or self.boxes:  # told in pixels of the whole image
            found = {"image": decode(image_of(sample), scratch, self._crop.pixels)}
        else:
            found = self._crop.decode(sample, scratch)
        if self.label is not None:
            found["label"] = np.asarray(self.label(sample))
        if self.labels is not None:
            found["labels"] = self.labels(sample)
        if self.values:
            found["values"] = targets.values(sample, self.values)
        if self.mask:
            height, width = found["image"].shape[:2]
            found["mask"] = targets.mask(sample, height, width, self.mask_classes)
        if self.boxes:
            found["boxes"], found["box_label"] = (
                targets.boxes(sample) if self.things is None else self.things.boxes(sample, found["image"])
            )
        return found

    def draws(self, keys: np.ndarray, *, painted: bool = False) -> "OneViewDraws":
        """Returns the random numbers of n samples. keys: uint64 [n]."""
        return OneViewDraws(self, self._crop.draws(keys, painted=painted) if self.train else None, painted)

    def placed(self, draw: Draw | None, height: int, width: int) -> Placed:
        """Returns where the view of an image of this size lies. draw: None for the center."""
        if draw is not None:
            top, left, box_height, box_width = draw.boxes[0].tolist()
            return Placed(top, left, box_height, box_width, self.size, self.size, flip=bool(draw.flip[0]))
        rows, columns = center_sides(height, width, self.short, self.size)
        return Placed(0, 0, height, width, rows, columns, (rows - self.size) // 2, (columns - self.size) // 2)

    def crop(
        self, image: ImageArray, draw: Draw | None, arrays: Mapping[str, np.ndarray], row: int, painted: bool
    ) -> None:
        """Writes the view of an image, and its color or what was drawn for it."""
        if draw is None:
            arrays[f"views/{self.size}"][row] = center(image, self.short, self.size).permute(1, 2, 0).numpy()
            return
        self._crop.crop(image, draw, arrays, row)
        if self.colored:
            (self._crop.apply_color if painted else self._crop.store_params)(draw, arrays, row)

    def write_targets(self, decoded: Decoded, draw: Draw | None, arrays: Mapping[str, np.ndarray], row: int) -> None:
        """Writes what lies on an image: its mask, its boxes, cut as its view is."""
        if not self.mask and not self.boxes:
            return
        height, width, _ = decoded["image"].shape
        placed = self.placed(draw, height, width)
        if self.mask:
            arrays["mask"][row] = cut_mask(decoded["mask"], placed, self.size)
        if self.boxes:
            edges, kept = cut_boxes(decoded["boxes"], placed, self.size)
            write_boxes(edges, decoded["box_label"][kept], arrays, row)


class OneViewDraws:
    """Holds the random numbers of n samples."""

    def __init__(self, view: OneView, draws: Draws | None, painted: bool):
        self._view, self._draws, self._painted = view, draws, painted

    def fill(self, i: int, decoded: Decoded, arrays: Mapping[str, np.ndarray], row: int) -> None:
        """Writes the view and the targets of sample i as sample `row` of a batch."""
        view, image = self._view, decoded["image"]
        height, width, _ = image.shape
        draw = None if self._draws is None else self._draws.at(i, height, width)
        view.crop(image, draw, arrays, row, self._painted)
        for name in ("label", "labels", "values"):
            if name in decoded:
                arrays[name][row] = decoded[name]
        view.write_targets(decoded, draw, arrays, row)


def write_boxes(edges: np.ndarray, labels: np.ndarray, arrays: Mapping[str, np.ndarray], row: int) -> None:
    """Writes boxes [n, 4] and their labels [n] as sample `row` of a batch, as many as it has room for, and how many it has not."""
    count = min(len(edges), arrays["boxes"].shape[1])
    arrays["boxes"][row], arrays["box_label"][row] = 0, -1
    arrays["boxes"][row, :count], arrays["box_label"][row, :count] = edges[:count], labels[:count]
    arrays["box_count"][row], arrays["box_overflow"][row] = count, len(edges) - count


def center_sides(height: int, width: int, short: int, size: int) -> tuple[int, int]:
    """Returns height and width of an image whose shorter side was resized, at least those of the view."""
    scale = short / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


def center(image: ImageArray, short: int, size: int) -> torch.Tensor:
    """Returns the central square of `size` after the shorter side was resized to `short`: uint8 [h, w, C] -> [C, S, S]."""
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)
    pixels = resized(pixels, *center_sides(image.shape[0], image.shape[1], short, size))[0]
    top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
    return pixels[:, top : top + size, left : left + size]


def cut_mask(mask: np.ndarray, placed: Placed, size: int) -> np.ndarray:
    """Returns what lies under the middle of each pixel of the view: uint8 [h, w] -> [S, S]."""
    down = placed.top + (2 * (np.arange(size) + placed.down) + 1) * placed.height // (2 * placed.rows)
    right = placed.left + (2 * (np.arange(size) + placed.right) + 1) * placed.width // (2 * placed.columns)
    found = mask[down[:, None], right]
    return found[:, ::-1] if placed.flip else found


def cut_boxes(edges: np.ndarray, placed: Placed, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes in pixels of the view, cut at its edges, and which were kept: those of which some area is left.
    float32 [n, 4] -> float32 [m, 4], bool [n]."""
    scale = np.array([placed.columns / placed.width, placed.rows / placed.height] * 2)
    moved = (edges - np.array([placed.left, placed.top] * 2)) * scale - np.array([placed.right, placed.down] * 2)
    if placed.flip:
        moved[:, [0, 2]] = size - moved[:, [2, 0]]
    moved = moved.clip(0, size)
    kept = (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
    return moved[kept].astype(np.float32), kept
