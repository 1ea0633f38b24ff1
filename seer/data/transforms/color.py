"""Applies color and blur to one view on the host, in place and in uint8: what `augment.finish` does to batches
on a GPU.

A CPU is six times as fast at this by OpenCV's kernels as by tensor operations in float32. Each step is rounded to uint8, as
Pillow rounds it in the recipe of SwAV; the float pass rounds once, so the two differ by less than one level in the mean
(tests/data/test_color.py holds both against Pillow and torchvision). OpenCV is used for arithmetic only, here and for mirrored
views in `multi_crop`: it never opens an image.

Legend: S side.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from seer.core.records import ImageArray

cv2.setNumThreads(0)  # the loader has threads of its own

_GRAY = np.array([0.299, 0.587, 0.114])
_GRAYS = np.tile(_GRAY, (3, 1))  # [3, 3]: every channel becomes the gray
_LEVELS = np.arange(256, dtype=np.float64)


def jitter(view: ImageArray, order: Sequence[int], factors: Sequence[float]) -> None:
    """Applies color to uint8 [S, S, C], in place; saturation and hue where there are three channels alone.

    order and factors as in `records.Color`: brightness 0, contrast 1, saturation 2, hue 3."""
    for operation in order:
        factor = factors[operation]
        if operation == 0:
            cv2.convertScaleAbs(view, view, alpha=factor)
        elif operation == 1:
            mean = float(_GRAY @ cv2.mean(view)[:3]) if view.shape[2] == 3 else float(view.mean())
            levels = np.rint(_LEVELS * factor + mean * (1 - factor)).clip(0, 255).astype(np.uint8)
            cv2.LUT(view, levels, view)
        elif view.shape[2] != 3:
            continue
        elif operation == 2:
            cv2.transform(view, factor * np.eye(3) + (1 - factor) * _GRAYS, view)
        else:
            hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
            hsv[..., 0] += np.uint8(round(factor * 256) % 256)  # 256 levels a turn, and uint8 turns over by itself
            cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, view)


def gray(view: ImageArray) -> None:
    cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, view)


def blur(view: ImageArray, sigma: float) -> None:
    """Blurs in place, by a true Gaussian of `sigma` pixels that looks three of them to each side, edges repeated."""
    cv2.GaussianBlur(view, (0, 0), sigma, view, borderType=cv2.BORDER_REPLICATE)
