"""Shows whole images for finding things: the longest side resized to that of the view, the shape kept, the rest padded.

What is to be learned follows by the same draw: boxes, a mask of classes, and a mask of each thing. Outlines that are polygons are
drawn at the size of the view, never at that of the image. Surprising: masks of things are packed, eight pixels a byte, since a
hundred of them at 800 pixels would be 64 MB an image; padding is the mean color, which is 0 once it is normalized.

Legend: B samples, S side, M things at the most, n things of an image, h w image, r c rows and columns that an image fills.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from seer.core.records import Decoded, ImageArray, Sample
from seer.data.outlines import Outline, Runs, filled
from seer.data.pixels import Pixels
from seer.data.transforms.file_things import boxes_of
from seer.data.transforms.multi_crop import Draw, Draws, MultiCrop
from seer.data.transforms.multi_crop import resize as resized
from seer.data.transforms.one_view import OneView, Placed, write_boxes

VOID = 255  # of a mask: what is no part of the image


class Zoom(MultiCrop):
    """Draws boxes that have the shape of their image: of a share of its area, anywhere in it."""

    def draws(self, keys: np.ndarray, *, painted: bool = False) -> "ZoomDraws":
        """Returns those of n images. uint64 [n]."""
        return ZoomDraws(self, keys, painted)


class ZoomDraws(Draws):
    """Holds the random numbers of n images."""

    def _box(self, i: int, view: int, height: int, width: int) -> tuple[int, int, int, int]:
        root = (self._wide[i][view][0] * self._high[i][view][0]) ** 0.5  # of the share of the area
        h, w = max(1, min(height, round(height * root))), max(1, min(width, round(width * root)))
        y, x = self._corner[i][view]
        return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w


class WholeImage(OneView):
    """Shows whole images, and their targets. instances: so many things of an image at the most have a mask each, and a box; given
    by the task.

    size          side of the view in pixels, to which the longest side of an image is resized
    train         mirrored by chance, parts of the image, and color; else the image as it is
    scale         lowest and highest share of the image's area that is shown; below 1 parts of it are shown larger
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
    mask          the mask of an image is shown with it: uint8 [B, S, S]
    boxes         so many boxes of an image at the most are shown with it; 0 = none
    values        so many numbers of `value.json` beside an image: float32 [B, n]; 0 = none
    """

    crops = Zoom
    instances = 0

    def __init__(
        self,
        size: int = 800,
        train: bool = True,
        scale: Sequence[float] = (1.0, 1.0),
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
        pixels: Pixels | None = None,
    ):
        super().__init__(
            size,
            train,
            size,
            scale,
            flip=flip,
            jitter=jitter,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            grayscale=grayscale,
            blur=blur,
            blur_sigma=blur_sigma,
            mean=mean,
            std=std,
            device=device,
            mask=mask,
            boxes=boxes,
            values=values,
            pixels=pixels,
        )
        self.ground = np.round(np.array(self.mean) * 255).clip(0, 255).astype(np.uint8)

    def layout(self, batch_size: int, *, painted: bool = False) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Returns those of OneView; `image_size` [B, 2], height and width of the image that was shown; and
        `instances`, masks packed line after line."""
        found = super().layout(batch_size, painted=painted)
        found["image_size"] = torch.int64, (batch_size, 2)
        if self.instances:
            found["instances"] = torch.uint8, (batch_size, self.instances, self.size * -(-self.size // 8))
        return found

    def decode(self, sample: Sample, scratch: np.ndarray | None = None) -> Decoded:
        """Returns the image and its targets; `scene`, all that a file says of it, and `outlines` of things that are to have masks.
        Raises Undecodable."""
        found = super().decode(sample, scratch)
        if self.things is None or not self.boxes:
            return found
        scene = self.things.scene(sample, found["image"])
        found["scene"] = np.empty((), dtype=object)
        found["scene"][()] = scene
        if self.instances:
            known = [one for one in scene.things if not one.crowd and one.outline is not None]
            found["boxes"], found["box_label"] = boxes_of(known, found["image"])
            found["outlines"] = np.empty(len(known), dtype=object)
            found["outlines"][:] = [one.outline for one in known]
        return found

    def placed(self, draw: Draw | None, height: int, width: int) -> Placed:
        """Returns which box of the image is shown, and how large."""
        top, left, h, w = (0, 0, height, width) if draw is None else draw.boxes[0].tolist()
        rows, columns = fitted(h, w, self.size)
        return Placed(top, left, h, w, rows, columns, flip=draw is not None and bool(draw.flip[0]))

    def crop(
        self, image: ImageArray, draw: Draw | None, arrays: Mapping[str, np.ndarray], row: int, painted: bool
    ) -> None:
        """Writes the view of an image, and its color or what was drawn for it."""
        at = self.placed(draw, *image.shape[:2])
        part = np.ascontiguousarray(image[at.top : at.top + at.height, at.left : at.left + at.width])
        pixels = torch.from_numpy(part)[None].permute(0, 3, 1, 2)
        shown = resized(pixels, at.rows, at.columns)[0].permute(1, 2, 0).numpy()
        view = arrays[f"views/{self.size}"][row]
        view[:] = self.ground
        view[: at.rows, : at.columns] = shown[:, ::-1] if at.flip else shown
        if self.colored and draw is not None:
            (self._crop.apply_color if painted else self._crop.store_params)(draw, arrays, row)

    def write_targets(self, decoded: Decoded, draw: Draw | None, arrays: Mapping[str, np.ndarray], row: int) -> None:
        """Writes what lies on an image: its mask, its boxes, the masks of its things."""
        height, width, _ = decoded["image"].shape
        arrays["image_size"][row] = height, width
        at = self.placed(draw, height, width)
        if self.mask:
            arrays["mask"][row] = VOID
            arrays["mask"][row, : at.rows, : at.columns] = shown_mask(decoded["mask"], at)
        if not self.boxes:
            return
        edges, kept = shown_boxes(decoded["boxes"], at)
        labels = decoded["box_label"][kept]
        if self.instances:
            masks = [shown_outline(outline, at) for outline in decoded["outlines"][kept]]
            seen = np.array(
                [mask.any() for mask in masks], dtype=bool
            )  # else it is smaller than a pixel, or behind an edge
            masks = [mask for mask in masks if mask.any()][: self.instances]
            edges, labels = edges[seen], labels[seen]
            packed = arrays["instances"][row].reshape(self.instances, self.size, -1)
            packed[:] = 0
            for i, mask in enumerate(masks):
                bits = np.packbits(mask, axis=1)
                packed[i, : at.rows, : bits.shape[1]] = bits
        write_boxes(edges, labels, arrays, row)


def fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """Returns rows and columns of an image whose longest side is resized to `size`."""
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def shown_mask(mask: np.ndarray, at: Placed) -> np.ndarray:
    """Returns what lies under the middle of each pixel that the image fills: [h, w] -> [r, c]."""
    down = at.top + (2 * np.arange(at.rows) + 1) * at.height // (2 * at.rows)
    right = at.left + (2 * np.arange(at.columns) + 1) * at.width // (2 * at.columns)
    found = mask[down[:, None], right]
    return found[:, ::-1] if at.flip else found


def shown_outline(outline: Outline, at: Placed) -> np.ndarray:
    """Returns bool [r, c], the mask of one thing."""
    if isinstance(outline, Runs):
        return shown_mask(outline.mask(), at)
    scale = np.array([at.columns / at.width, at.rows / at.height])
    found = filled([(points - (at.left, at.top)) * scale for points in outline], at.rows, at.columns)
    return found[:, ::-1] if at.flip else found


def shown_boxes(edges: np.ndarray, at: Placed) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes in pixels of the view, cut at what is shown, and which were kept: those of which some area is left.
    float32 [n, 4] -> float32 [m, 4], bool [n]."""
    scale = np.array([at.columns / at.width, at.rows / at.height] * 2)
    moved = (edges - np.array([at.left, at.top] * 2)) * scale
    if at.flip:
        moved[:, [0, 2]] = at.columns - moved[:, [2, 0]]
    moved = moved.clip(0, [at.columns, at.rows] * 2)
    kept = (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
    return moved[kept].astype(np.float32), kept
