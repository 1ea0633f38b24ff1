"""Makes masks of outlines as COCO's files have them: polygons, or run lengths in a list or packed into text.

A pixel belongs to a polygon if its middle lies inside: by the even-odd rule in one polygon, and several polygons of a thing add up.
So a polygon can be drawn at any size, without a mask of the whole image first. pycocotools rounds edges to fifths of a pixel
instead; the two differ at the border alone. Run lengths go down the columns, background first.

Legend: k points of a polygon, h w of a mask.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Polygons = list[np.ndarray]  # float64 [k, 2] each: x and y in pixels
LEAST_POINTS = 3
MOST_PIXELS = 2**28  # of a mask by run lengths: a stranger's number, and memory is made of it


class Runs(NamedTuple):
    """Holds a mask by run lengths. counts: int64, of background and thing by turns, down the columns."""

    height: int
    width: int
    counts: np.ndarray

    def mask(self) -> np.ndarray:
        """Returns bool [h, w]."""
        thing = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(thing, self.counts).reshape(self.width, self.height).T


Outline = Polygons | Runs


def parsed(segmentation: Any) -> Outline:
    """Returns the outline in a file. Polygons of fewer than three points enclose nothing and are left out. Raises ValueError for
    what is none."""
    if isinstance(segmentation, list):
        return [
            polygon
            for polygon in (_polygon(one) for one in segmentation)
            if len(polygon) >= LEAST_POINTS and (polygon.min(0) < polygon.max(0)).all()
        ]
    if not isinstance(segmentation, dict):
        raise ValueError("a list of polygons, or an object of size and counts, is expected")
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n <= MOST_PIXELS for n in size)):
        raise ValueError("size is not [height, width]")
    if isinstance(counts, str):
        counts = unpacked(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("counts are no run lengths")
    if sum(counts) != size[0] * size[1] or size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"counts add up to {sum(counts)}, the mask has {size[1]} x {size[0]} pixels")
    return Runs(size[0], size[1], np.array(counts, dtype=np.int64))


def _polygon(numbers: Any) -> np.ndarray:
    """Returns float64 [k, 2]. Raises ValueError."""
    if not isinstance(numbers, list) or len(numbers) % 2:
        raise ValueError("a polygon is no list of x and y by turns")
    try:
        points = np.array(numbers, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("a polygon is no list of numbers") from error
    if not np.isfinite(points).all() or (np.abs(points) > 2**31).any():
        raise ValueError("a polygon has numbers that are not finite")
    return points


def unpacked(text: str) -> list[int]:
    """Returns the run lengths in a text as COCO packs them: 5 bits a character from 48 on, the sixth says that more follow, and from
    the fourth number on each is the difference to the last but one. Raises ValueError."""
    counts: list[int] = []
    value = shift = 0
    for character in text.encode("utf-8"):
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError("counts are no run lengths in text")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value |= -1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("counts end in the middle of a number")
    return counts


def filled(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Returns bool [h, w]: the pixels whose middle lies in any of the polygons, of which parts may lie outside."""
    found = np.zeros((height, width), dtype=bool)
    for polygon in polygons:
        low, high = polygon.min(0), polygon.max(0)
        left, top = (int(n) for n in np.clip(np.floor(low), 0, (width, height)))
        right, bottom = (int(n) for n in np.clip(np.ceil(high), 0, (width, height)))
        if right > left and bottom > top:
            found[top:bottom, left:right] |= _even_odd(polygon - (left, top), bottom - top, right - left)
    return found


def _even_odd(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns bool [h, w] of one polygon: each edge turns the pixels to its right, in the rows whose middle it crosses."""
    x, y = points.T
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    first, last = (
        np.clip(np.ceil(one(y, y_next) - 0.5), 0, height).astype(np.int64) for one in (np.minimum, np.maximum)
    )
    count = last - first
    edge = np.repeat(np.arange(len(x)), count)
    row = np.arange(len(edge)) - np.repeat(count.cumsum() - count, count) + first[edge]
    slope = (x_next - x)[edge] / (y_next - y)[edge]
    crossed = x[edge] + (row + 0.5 - y[edge]) * slope
    column = np.clip(np.floor(crossed + 0.5), 0, width).astype(np.int64)
    turns = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    return (turns.cumsum(1) % 2 == 1)[:, :width]
