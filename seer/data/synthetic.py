"""Draws the built-in images, ten kinds of shape, so that `make pretrain` has something to learn without a download.

Each image shows four to six shapes of one kind. The *kind* is decided by the contour alone: size of the image,
colors, textures, light, poses and clutter come from a stream that does not know the kind, so `draw(2, 7)` and
`draw(5, 7)` are the same scene with other shapes cut out of it. Hence nearest neighbours on pixels or on colors stay near
chance (`baselines` measures both), and whatever a network's features do better than that, they have learned.

What is surprising:

- The label is there to judge with, never to train with: pretraining reads the `jpg` member and ignores `cls`.
- The kinds differ in what survives cropping, color jitter and blur: corners, curvature, holes, repetition. Two shapes
  that differ only as a whole (a heart and a leaf) would be one kind to a crop that shows a fifth of the image.
- Figure and ground always differ in brightness, in either direction, because the augmentation takes color away.
- One large shape an image was tried first and taught nothing in minutes: two crops then share their colors, textures
  and light, which are easier to tell than a contour, and features learned those. Several shapes, each with colors of its
  own on a ground whose colors change, leave the contour as what two crops have in common.
- Pillow is used here directly: `decode` reads images, this file draws and writes them.
- Sample i is a function of (seed, i) and nothing else, so processes can share the work and any range can be redone.
  Numpy's streams and Pillow's rasteriser are stable but not promised for ever: do not pin hashes of the bytes.

Legend: h, w height and width in pixels; n points of a polygon; N images; D features.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

SIDES = (64, 160)  # shortest and longest side, pixels
QUALITIES = (70, 95)  # of the JPEG
SUPERSAMPLING = 3  # a mask is drawn this much larger and averaged down: Pillow's polygons have hard edges
LUMA = np.array([0.299, 0.587, 0.114])

# What a stream is for, so that no two purposes share one.
SCENE, SHAPE, ORDER, IMAGE = range(4)

# A polygon [n, 2] within the unit disc (or near it) and whether it adds to the figure or cuts a hole; later ones win.
Part = tuple[np.ndarray, bool]

Window = tuple[slice, slice]  # rows and columns of an image
ALL: Window = (slice(None), slice(None))


# ---- the kinds -------------------------------------------------------------------------------------------------------


def _polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)  # [n, 2]


def _circle(radius: float, center: tuple[float, float] = (0.0, 0.0), points: int = 64) -> np.ndarray:
    angle = np.arange(points) * (2 * math.pi / points)
    return _polar(np.full(points, radius), angle) + np.array(center)  # [n, 2]


def _box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])  # [4, 2]


def _disc(rng: np.random.Generator) -> list[Part]:
    return [(_circle(rng.uniform(0.5, 0.95)), True)]


def _rings(rng: np.random.Generator) -> list[Part]:
    edges = 2 * int(rng.integers(2, 4))  # two or three rings, an outer and an inner edge each
    hole = rng.uniform(0.12, 0.25)
    return [(_circle(radius), i % 2 == 0) for i, radius in enumerate(np.linspace(1.0, hole, edges))]


def _triangle(rng: np.random.Generator) -> list[Part]:
    angle = np.arange(3) * (2 * math.pi / 3) + rng.uniform(-0.22, 0.22, 3)
    return [(_polar(np.full(3, 1.05), angle), True)]


def _star(rng: np.random.Generator) -> list[Part]:
    spikes = int(rng.integers(5, 9))
    radius = np.tile([1.05, rng.uniform(0.36, 0.5)], spikes)
    return [(_polar(radius, np.arange(2 * spikes) * (math.pi / spikes)), True)]


def _cross(rng: np.random.Generator) -> list[Part]:
    a = rng.uniform(0.2, 0.34)
    return [(_box(-1, -a, 1, a), True), (_box(-a, -1, a, 1), True)]


def _gear(rng: np.random.Generator) -> list[Part]:
    teeth = int(rng.integers(10, 15))
    root = rng.uniform(0.7, 0.78)
    radius = np.tile([1.0, 1.0, root, root], teeth)
    angle = (np.arange(teeth)[:, None] + np.array([0.05, 0.45, 0.55, 0.95])).ravel() * (2 * math.pi / teeth)
    return [(_polar(radius, angle), True), (_circle(rng.uniform(0.25, 0.45)), False)]


def _lattice(rng: np.random.Generator) -> list[Part]:
    panes = int(rng.integers(2, 5))
    half = 0.8 / panes * rng.uniform(0.56, 0.68)  # half a pane: the rest of its cell is frame
    middle = (np.arange(panes) + 0.5) * (1.6 / panes) - 0.8
    rim = 0.8 + 0.8 / panes - half  # as much frame outside the last pane as between two
    holes = [(_box(x - half, y - half, x + half, y + half), False) for x in middle for y in middle]
    return [(_box(-rim, -rim, rim, rim), True), *holes]


def _stripes(rng: np.random.Generator) -> list[Part]:
    bars = int(rng.integers(4, 7))
    pitch = 1.8 / bars
    half = pitch * rng.uniform(0.22, 0.32)
    ends = rng.uniform(0.7, 1.0, (bars, 2))
    middle = (np.arange(bars) - (bars - 1) / 2) * pitch
    return [(_box(-end[0], y - half, end[1], y + half), True) for y, end in zip(middle, ends, strict=True)]


def _dots(rng: np.random.Generator) -> list[Part]:
    pitch = rng.uniform(0.42, 0.56)
    radius = pitch * rng.uniform(0.28, 0.38)
    rows, columns = np.mgrid[-3:4, -3:4]
    x, y = (columns + rows / 2) * pitch, rows * (pitch * math.sqrt(3) / 2)  # a hexagonal lattice, cut to a disc
    centers = np.stack([x.ravel(), y.ravel()], axis=-1)  # [49, 2]
    return [(_circle(radius, (i, j), 20), True) for i, j in centers if math.hypot(i, j) < 0.95]


def _zigzag(rng: np.random.Generator) -> list[Part]:
    corners = int(rng.integers(5, 8))
    x = np.linspace(-1.05, 1.05, corners)
    y = np.where(np.arange(corners) % 2, 1, -1) * rng.uniform(0.3, 0.42)
    thickness = rng.uniform(0.2, 0.3)
    upper, lower = np.stack([x, y + thickness], -1), np.stack([x, y - thickness], -1)
    return [(np.concatenate([upper, lower[::-1]]), True)]


_CONTOURS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "disc": _disc,
    "rings": _rings,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "gear": _gear,
    "lattice": _lattice,
    "stripes": _stripes,
    "dots": _dots,
    "zigzag": _zigzag,
}

SHAPE_CLASSES: tuple[str, ...] = tuple(_CONTOURS)


# ---- the scene -------------------------------------------------------------------------------------------------------


def _stream(seed: int, *purpose: int) -> np.random.Generator:
    """Returns the generator of (seed, purpose). `spawn_key` keeps (1, 23) and (12, 3) apart; a plain list of
    words need not."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=purpose)))


def _color(rng: np.random.Generator, luma: float) -> np.ndarray:
    """Returns float64 [3] in [0, 1]: a random hue and strength with exactly this brightness."""
    tint = rng.normal(size=3)
    tint -= tint @ LUMA  # LUMA sums to one: what is left has no brightness of its own
    room = np.where(tint > 0, (1 - luma) / np.abs(tint), luma / np.abs(tint)).min()
    return luma + tint * room * rng.uniform(0.1, 0.95)


def _clouds(rng: np.random.Generator, h: int, w: int, cells: int, channels: int, part: Window = ALL) -> np.ndarray:
    """Returns float32 [h, w, channels] in [-1, 1], or a part of it: smooth noise, `cells` random values along either side."""
    coarse = rng.integers(0, 256, (channels, cells, cells), dtype=np.uint8)
    fine = [Image.fromarray(plane).resize((w, h), Image.Resampling.BICUBIC) for plane in coarse]
    return np.stack([np.asarray(plane)[part].astype(np.float32) for plane in fine], axis=-1) / 127.5 - 1


def _texture(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, part: Window = ALL) -> np.ndarray:
    """Returns float [h, w, 3] around zero, or a part of it: colored clouds or soft waves, and grain. y [h, 1], x [1, w] in
    units of a side."""
    h, w = y.shape[0], x.shape[1]
    if rng.random() < 0.7:
        field = _clouds(rng, h, w, int(rng.integers(3, 14)), 3, part)
    else:
        angle, waves = rng.uniform(0, math.pi), rng.uniform(3, 14)
        phase = 2 * math.pi * waves * (x * math.cos(angle) + y * math.sin(angle))[part]
        field = np.sin(phase + rng.uniform(0, 2 * math.pi)).astype(np.float32)[..., None] * rng.uniform(0, 1, 3)
    grain = rng.standard_normal((h, w, 1), dtype=np.float32)[part]
    return field * rng.uniform(0.02, 0.08) + grain * rng.uniform(0.0, 0.03)  # [h, w, 3]


def _mask(parts: Sequence[Part], h: int, w: int) -> tuple[np.ndarray, Window]:
    """Returns float32 [.., .., 1], how much of each pixel the polygons cover, and the window outside of which that is 0.
    Points are in pixels, x first."""
    large = Image.new("L", (w * SUPERSAMPLING, h * SUPERSAMPLING))
    pen = ImageDraw.Draw(large)
    for points, filled in parts:
        pen.polygon((points * SUPERSAMPLING).ravel().tolist(), fill=255 if filled else 0)
    left, top, right, bottom = large.getbbox() or (0, 0, 0, 0)
    left, top, right, bottom = (
        left // SUPERSAMPLING,
        top // SUPERSAMPLING,
        -(-right // SUPERSAMPLING),
        -(-bottom // SUPERSAMPLING),
    )
    part = (slice(top, bottom), slice(left, right))
    if right <= left:
        return np.zeros((0, 0, 1), np.float32), part
    box = (left * SUPERSAMPLING, top * SUPERSAMPLING, right * SUPERSAMPLING, bottom * SUPERSAMPLING)
    return np.asarray(large.reduce(SUPERSAMPLING, box), np.float32)[..., None] / 255, part


def _clutter(rng: np.random.Generator, h: int, w: int) -> list[Part]:
    """Returns a few small convex crumbs anywhere in the image, three to seven corners each."""
    parts: list[Part] = []
    for _ in range(int(rng.integers(0, 7))):
        corners = int(rng.integers(3, 8))
        angle = np.sort(rng.uniform(0, 2 * math.pi, corners))
        size = rng.uniform(0.02, 0.06) * min(h, w)
        parts.append((_polar(np.full(corners, size), angle) + rng.uniform(0, 1, 2) * (w, h), True))
    return parts


def draw(kind: int, seed: int) -> np.ndarray:
    """Returns one image, uint8 [h, w, 3] RGB, a pure function of (kind, seed); `KINDS[kind]` is its name.

    `seed` is any integer from 0 up. Everything but the contour is a function of `seed` alone, the size included.
    """
    if not 0 <= kind < len(SHAPE_CLASSES):
        raise ValueError(f"kind = {kind}; there are {len(SHAPE_CLASSES)} kinds, choose 0 to {len(SHAPE_CLASSES) - 1}")
    scene, shape = _stream(seed, SCENE), _stream(seed, SHAPE, kind)

    # Size: the geometric mean of the sides, then the aspect ratio.
    side, aspect = scene.uniform(76, 136), math.exp(scene.uniform(-0.35, 0.35))
    h, w = (int(np.clip(round(s), *SIDES)) for s in (side / math.sqrt(aspect), side * math.sqrt(aspect)))
    y, x = np.mgrid[0:h, 0:1][0] / min(h, w), np.mgrid[0:1, 0:w][1] / min(h, w)  # [h, 1], [1, w]

    # Ground: colors that change across the image, so that two crops of it share few of them.
    ground = 0.5 + scene.uniform(0.15, 0.4) * _clouds(scene, h, w, int(scene.integers(2, 5)), 3)  # [h, w, 3]
    ground = ground + _texture(scene, y, x)
    crumbs, part = _mask(_clutter(scene, h, w), h, w)
    lit = ground.astype(np.float64)
    lit[part] += crumbs * scene.uniform(-0.15, 0.15, 3)

    # Figures: one in each cell of a grid, every one with its own pose, color, texture, and lighter or darker than what
    # it lies on.
    rows, columns = ((2, 2), (2, 2), (2, 3), (3, 2))[int(scene.integers(4))]
    cell = min(h / rows, w / columns)
    for row, column in np.ndindex(rows, columns):
        middle = np.array([(column + 0.5) * w / columns, (row + 0.5) * h / rows])  # x first
        radius = scene.uniform(0.36, 0.52) * cell
        center = middle + scene.uniform(-0.15, 0.15, 2) * cell
        turn, axis, stretch = scene.uniform(0, 2 * math.pi), scene.uniform(0, math.pi), scene.uniform(-0.14, 0.14)
        squeeze = np.diag([math.exp(stretch), math.exp(-stretch)])
        pose = _rotation(axis) @ squeeze @ _rotation(turn - axis) * radius  # [2, 2]
        contour = [(points @ pose.T + center, filled) for points, filled in _CONTOURS[SHAPE_CLASSES[kind]](shape)]
        below = float(np.clip(ground[int(center[1].clip(0, h - 1)), int(center[0].clip(0, w - 1))], 0, 1) @ LUMA)
        step = scene.uniform(0.35, 0.6) * (1 if scene.random() < 0.5 else -1)
        luma = below + step if 0.04 < below + step < 0.96 else below - step
        covered, part = _mask(contour, h, w)  # a few times cheaper than to paint the whole image for each figure
        figure = _color(scene, float(np.clip(luma, 0.04, 0.96))) + _texture(scene, y, x, part)
        lit[part] += covered * (figure - lit[part])

    # Patches of shade lie over everything, then light falls from one side.
    shade = scene.uniform(0.05, 0.2) * _clouds(scene, h, w, int(scene.integers(2, 6)), 1)  # [h, w, 1]
    angle = scene.uniform(0, 2 * math.pi)
    slope = ((x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle))[..., None]  # [h, w, 1]
    lit = (lit + shade) * (1 + scene.uniform(0, 0.35) * slope)  # [h, w, 3]
    return np.clip(lit * 255 + 0.5, 0, 255).astype(np.uint8)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])  # [2, 2]


# ---- the data set ----------------------------------------------------------------------------------------------------


def encode(image: np.ndarray, quality: int) -> bytes:
    """Returns the JPEG file of a uint8 [h, w, 3] image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def samples(count: int, seed: int, first: int = 0) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields samples `first` to `first + count - 1` as (key, members): `("00000123", {"jpg": …, "cls": b"7"})`.

    Every aligned run of `len(KINDS)` samples holds each kind once, in an order of its own. Give training and test sets
    different seeds, or ranges that do not meet.
    """
    for index in range(first, first + count):
        block, place = divmod(index, len(SHAPE_CLASSES))
        kind = int(_stream(seed, ORDER, block).permutation(len(SHAPE_CLASSES))[place])
        stream = _stream(seed, IMAGE, index)
        image = draw(kind, int(stream.integers(2**63)))
        jpg = encode(image, quality=int(stream.integers(QUALITIES[0], QUALITIES[1] + 1)))
        yield f"{index:08d}", {"jpg": jpg, "cls": str(kind).encode()}


# ---- what needs no learning ------------------------------------------------------------------------------------------


def _pixels(image: np.ndarray) -> np.ndarray:
    """Returns float32 [3072] of a uint8 [h, w, 3]: the image squeezed to 32 x 32."""
    small = Image.fromarray(image).resize((32, 32), Image.Resampling.BOX)
    return np.asarray(small, np.float32).ravel() / 255


def _colors(image: np.ndarray) -> np.ndarray:
    """Returns float32 [216] of a uint8 [h, w, 3]: the joint histogram of six levels a channel. The square root
    makes the cosine of two of them their overlap."""
    red, green, blue = np.moveaxis(image.astype(np.int64) * 6 // 256, -1, 0)
    return np.sqrt(np.bincount((red * 36 + green * 6 + blue).ravel(), minlength=216) / red.size).astype(np.float32)


def _nearest(train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int) -> np.ndarray:
    """Returns int64 [M], the vote of the k most similar rows, near ones counting more: train [N, D], labels
    [N], test [M, D]."""
    mean = train.mean(0)
    train, test = train - mean, test - mean  # without this every cosine is near one and the vote is noise
    train = train / np.maximum(np.linalg.norm(train, axis=1, keepdims=True), 1e-12)
    test = test / np.maximum(np.linalg.norm(test, axis=1, keepdims=True), 1e-12)
    similarity = test @ train.T  # [M, N]
    near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]  # [M, k]
    weight = np.exp(np.take_along_axis(similarity, near, axis=1) / 0.07)  # [M, k]
    votes = np.stack([(weight * (labels[near] == c)).sum(1) for c in range(labels.max() + 1)], axis=1)  # [M, classes]
    return votes.argmax(1)


def baselines(
    train: Sequence[tuple[np.ndarray, int]], test: Sequence[tuple[np.ndarray, int]], k: int = 20
) -> dict[str, float]:
    """Returns the accuracy in [0, 1] of nearest neighbours that learned nothing: `knn_pixels` and
    `knn_colour_histogram`.

    Both sets are pairs (uint8 [h, w, 3] image of any size, label). A network that has learned the shapes must do far
    better than either.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k = {k} neighbours out of {len(train)} training images; choose 1 to {len(train)}")
    labels, truth = (np.array([label for _, label in split]) for split in (train, test))  # [N], [M]
    accuracy = {}
    for name, feature in (("knn_pixels", _pixels), ("knn_colour_histogram", _colors)):
        known, asked = (np.stack([feature(image) for image, _ in split]) for split in (train, test))
        accuracy[name] = float((_nearest(known, labels, asked, k) == truth).mean())
    return accuracy
