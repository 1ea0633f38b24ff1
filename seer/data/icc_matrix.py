"""Turns pixels by the curves and the matrix of an ICC profile, five times as fast as littlecms does.

Nearly all profiles of photographs are a curve for each channel and a matrix: pixels -> linear light -> XYZ of the profile
connection space (ICC.1:2001-04, sections 6.3.1.2 and 6.5; parametric curves ICC.1:2004-10, section 10.15). Three calls on whole
rows do that: a table of 256 numbers of 16 bits, a matrix that saturates, a table of 65,536 levels. Whether it is right of
a given profile is not decided here: `color_profiles` compares it with littlecms.

Legend: h w image, 3 channels.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

_ROWS = 64  # turned at a time: what is on the way stays in the cache, and strips of `decode` are multiples
_WHITE = 65535
_WIDE_TABLES = int(cv2.__version__.split(".")[0]) >= 5  # of 65,536 entries, which cv2.LUT reads twice as fast as numpy
_PARAMETERS = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}  # of a parametric curve, by its kind
Curve = Callable[[np.ndarray], np.ndarray]  # float64 in [0, 1] -> the same shape, of linear light


@dataclass(frozen=True)
class Space:
    """Holds what a profile says of its RGB: a curve a channel, and columns XYZ of red, green, blue, float64 [3, 3]."""

    curves: tuple[Curve, Curve, Curve]
    columns: np.ndarray


@dataclass(frozen=True)
class Turn:
    """Turns pixels of one space into another. light: uint16 [1, 256, 3]; matrix: float32 [3, 3]; levels: uint8 [65536]."""

    light: np.ndarray
    matrix: np.ndarray
    levels: np.ndarray

    def __call__(self, image: np.ndarray) -> None:
        """Turns uint8 [h, w, 3], whose rows lie one after another, in place."""
        for top in range(0, len(image), _ROWS):
            part = image[top : top + _ROWS]
            light: np.ndarray = cv2.transform(cv2.LUT(part, self.light), self.matrix)
            if _WIDE_TABLES:
                cv2.LUT(light, self.levels, dst=part)
            else:
                np.take(self.levels, light, out=part, mode="clip")


def read(profile: bytes) -> Space | None:
    """Returns the space of a profile, or None for one that tells none: of other pixels, or broken."""
    if profile[16:24] != b"RGB XYZ ":
        return None
    try:
        count = struct.unpack_from(">I", profile, 128)[0]
        entries = (struct.unpack_from(">4sII", profile, 132 + 12 * i) for i in range(min(count, 100)))
        tags = {name: profile[at : at + size] for name, at, size in entries}
        red, green, blue = (_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC"))
        columns = np.array([_xyz(tags[name]) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]).T
    except (KeyError, ValueError, struct.error):
        return None
    return Space((red, green, blue), columns)


def turn(source: Space, target: Space) -> Turn | None:
    """Returns what turns pixels of a space into those of another whose three curves are one and rise; None where a matrix has no
    inverse or a curve is no number."""
    grays = np.linspace(0, 1, 256)
    with np.errstate(all="ignore"):
        light = np.stack([curve(grays) for curve in source.curves], axis=-1)  # [256, 3]
    edges = target.curves[0]((np.arange(255) + 0.5) / 255)  # of linear light, where one level ends
    try:
        matrix = np.linalg.solve(target.columns, source.columns)
    except np.linalg.LinAlgError:
        return None
    if not (np.isfinite(light).all() and np.isfinite(matrix).all()):
        return None
    levels = np.searchsorted(edges, np.arange(_WHITE + 1) / _WHITE).astype(np.uint8)
    return Turn((light.clip(0, 1) * _WHITE).round().astype(np.uint16)[None], matrix.astype(np.float32), levels)


def _fixed(data: bytes, at: int, count: int) -> np.ndarray:
    return np.array(struct.unpack_from(f">{count}i", data, at)) / 65536


def _xyz(data: bytes) -> np.ndarray:
    if data[:4] != b"XYZ ":
        raise ValueError("not the XYZ of a color")
    return _fixed(data, 8, 3)


def _curve(data: bytes) -> Curve:
    if data[:4] == b"para":
        return _parametric(data)
    if data[:4] != b"curv":
        raise ValueError("not a curve")
    count = struct.unpack_from(">I", data, 8)[0]
    if count == 0:
        return lambda x: x
    if count == 1:
        gamma = struct.unpack_from(">H", data, 12)[0] / 256
        return lambda x: x**gamma
    table = np.frombuffer(data, ">u2", count, 12) / _WHITE
    return lambda x: np.interp(x, np.linspace(0, 1, count), table)


def _parametric(data: bytes) -> Curve:
    kind = struct.unpack_from(">H", data, 8)[0]
    if kind not in _PARAMETERS:
        raise ValueError(f"a parametric curve of kind {kind}")
    gamma, *rest = _fixed(data, 12, _PARAMETERS[kind]).tolist()
    # (a x + b)^gamma + more from `start` on, below it slope x + offset
    a, b = rest[:2] if kind > 0 else (1.0, 0.0)
    more = rest[2] if kind == 2 else rest[4] if kind == 4 else 0.0
    slope, start = rest[2:4] if kind > 2 else (0.0, -np.inf)
    offset = rest[5] if kind == 4 else 0.0

    def curve(x: np.ndarray) -> np.ndarray:
        return np.where(x >= start, np.maximum(a * x + b, 0) ** gamma + more, slope * x + offset)

    return curve
