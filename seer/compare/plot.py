"""Draws accuracy against parameters and against images seen, as SVG written by hand: no library, and it opens in any browser.

Points carry a number, and a list below says whose they are, since names of runs are too long to stand beside points. A number
goes to the first place around its point that is free of other numbers, points and intervals; where that is far, a line leads there.
Surprising: points whose intervals would lie on one another stand a few pixels apart.

Legend: all lengths in pixels; a box is (left, top, right, bottom).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from seer.compare.subjects import KINDS

Box = tuple[float, float, float, float]
WIDTH, TOP, BOTTOM = 980, 56, 376  # of the whole, and of the panels
PANELS = ((70, 460), (560, 950))  # left and right of each
ROW = 20  # of the list
COLORS = dict(zip(KINDS, ("#777777", "#1f5fa8", "#d1580b", "#7d3c98", "#2a7f3f"), strict=True))
RADIUS = 4.0
APART = 9.0  # of points whose bars would lie on one another
NAME = 34  # letters of a name in the list


@dataclass(frozen=True)
class Point:
    """Holds a network in the plot. images: seen in training, None where that is not known. low, high: of the value's interval,
    equal to it where there is none."""

    name: str
    kind: str
    parameters: int
    images: int | None
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Placed:
    """Holds the number of a point where it is drawn. at: of the point. box: of the number. far: whether a line leads there."""

    number: int
    at: tuple[float, float]
    box: Box
    far: bool


def svg(points: Sequence[Point], figure: str) -> str:
    """Returns the plot of a figure, a share from 0 to 1. Raises ValueError where there is no point."""
    if not points:
        raise ValueError("a plot needs a point")
    bottom, top = _range(points)
    height = BOTTOM + 70 + ROW * (len(points) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(70, 28, f"{figure} against parameters and against images seen; bars are 95 % intervals", size=15),
    ]
    for panel, (name, of) in enumerate((("parameters", _parameters), ("images seen in training", _images))):
        parts += _panel(panel, name, points, of, (bottom, top))
    parts += _list(points, figure, BOTTOM + 70)
    return "\n".join([*parts, "</svg>", ""])


def _parameters(point: Point) -> float | None:
    return float(point.parameters)


def _images(point: Point) -> float | None:
    return None if point.images is None else float(point.images)


def _panel(
    panel: int,
    name: str,
    points: Sequence[Point],
    of: Callable[[Point], float | None],
    shares: tuple[float, float],
) -> Iterator[str]:
    left, right = PANELS[panel]
    place, ticks = _scale([of(point) for point in points], left, right)

    def height(share: float) -> float:
        return BOTTOM - (share - shares[0]) / (shares[1] - shares[0]) * (BOTTOM - TOP)

    yield f'<rect x="{left}" y="{TOP}" width="{right - left}" height="{BOTTOM - TOP}" fill="none" stroke="#999"/>'
    for share in _steps(*shares):
        yield f'<line x1="{left}" x2="{right}" y1="{height(share):.1f}" y2="{height(share):.1f}" stroke="#e5e5e5"/>'
        yield _text(left - 8, height(share) + 4, f"{100 * share:g} %", anchor="end")
    for x, label in ticks:
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 5}" stroke="#999"/>'
        yield _text(x, BOTTOM + 19, label, anchor="middle")
    yield _text((left + right) / 2, BOTTOM + 40, name, anchor="middle")
    bars = [(height(point.high), height(point.low)) for point in points]
    at = [
        (x, height(point.value))
        for x, point in zip(_apart([place(of(one)) for one in points], bars), points, strict=True)
    ]
    for point, (x, y), (high, low) in zip(points, at, bars, strict=True):
        color = COLORS[point.kind]
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{high:.1f}" y2="{low:.1f}" stroke="{color}" stroke-width="1.5"/>'
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="{color}"/>'
    for one in placed(at, bars, (left, TOP, right, BOTTOM)):
        middle = (one.box[0] + one.box[2]) / 2, (one.box[1] + one.box[3]) / 2
        if one.far:
            yield (
                f'<line x1="{one.at[0]:.1f}" y1="{one.at[1]:.1f}" x2="{middle[0]:.1f}" y2="{middle[1]:.1f}" stroke="#aaa" '
                'stroke-width="0.7"/>'
            )
            yield _rect(one.box)
        yield _text(
            middle[0], one.box[3] - 3, str(one.number), anchor="middle", fill=COLORS[points[one.number - 1].kind]
        )


def _apart(across: Sequence[float], bars: Sequence[tuple[float, float]]) -> list[float]:
    """Returns where points stand across, each moved to the nearest place at which its bar, top and bottom, lies on no other."""
    found: list[float] = []
    for x, (high, low) in zip(across, bars, strict=True):
        near = [other for other, (h, b) in zip(found, bars, strict=False) if high - 2 <= b and h <= low + 2]
        shifts = [0, *(sign * APART * n for n in range(1, len(near) + 2) for sign in (1, -1))]
        found.append(next(x + shift for shift in shifts if all(abs(x + shift - other) >= APART for other in near)))
    return found


def placed(at: Sequence[tuple[float, float]], bars: Sequence[tuple[float, float]], panel: Box) -> list[Placed]:
    """Returns where the numbers of points go. at: of the points. bars: top and bottom of their intervals."""
    taken: list[Box] = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in at]
    taken += [(x - 1, high, x + 1, low) for (x, _), (high, low) in zip(at, bars, strict=True)]
    found = []
    for i, (x, y) in enumerate(at):
        wide, tall = 7.0 * len(str(i + 1)) + 3, 13.0
        box, far = (x + 6, y - tall - 2, x + 6 + wide, y - 2), False
        for radius in (12, *range(18, 400, 8)):
            free = [one for one in _around(x, y, wide, tall, radius) if _inside(one, panel) and not _meets(one, taken)]
            if free:
                box, far = free[0], radius > 12
                break
        taken.append(box)
        found.append(Placed(i + 1, (x, y), box, far))
    return found


def _around(x: float, y: float, wide: float, tall: float, radius: float) -> Iterator[Box]:
    for turn in (-45, 45, -135, 135, 0, 180, -90, 90, -20, 20, 160, -160, -70, 70, 110, -110):
        angle = math.radians(turn)
        cx, cy = x + radius * math.cos(angle) * 1.1, y + radius * math.sin(angle)
        yield (cx - wide / 2, cy - tall / 2, cx + wide / 2, cy + tall / 2)


def _inside(box: Box, panel: Box) -> bool:
    return box[0] >= panel[0] + 1 and box[1] >= panel[1] + 1 and box[2] <= panel[2] - 1 and box[3] <= panel[3] - 1


def meet(one: Box, other: Box) -> bool:
    """Returns whether two boxes overlap."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _meets(box: Box, others: Sequence[Box]) -> bool:
    return any(meet(box, other) for other in others)


def _scale(
    values: Sequence[float | None], left: float, right: float
) -> tuple[Callable[[float | None], float], list[tuple[float, str]]]:
    """Returns where values lie on a logarithmic axis, and its ticks. 0 has a place of its own at the left, what is not known at the
    right."""
    some = [value for value in values if value]
    low = math.floor(math.log10(min(some))) if some else 0
    high = max(low + 1, math.ceil(math.log10(max(some)))) if some else 1
    first = left + (66 if 0 in values else 24)
    last = right - (90 if None in values else 24)

    def place(value: float | None) -> float:
        if value is None:
            return right - 34
        return left + 24 if not value else first + (math.log10(value) - low) / (high - low) * (last - first)

    every = max(1, math.ceil((high - low) / 6))
    ticks = [(place(10.0**n), _short(10**n)) for n in range(low, high + 1, every)] if some else []
    ticks += [(place(0), "0")] if 0 in values else []
    return place, ticks + ([(place(None), "unknown")] if None in values else [])


def _short(number: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:g} {unit}"
    return f"{number:g}"


def _range(points: Sequence[Point]) -> tuple[float, float]:
    """Returns the shares between which the panels lie."""
    low, high = min(point.low for point in points), max(point.high for point in points)
    room = max(0.02, 0.12 * (high - low))
    return max(0.0, low - room), min(1.0, high + room) if high + room < 1.0 else 1.0 + room / 4


def _steps(low: float, high: float) -> list[float]:
    step = next(step for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / step <= 8)
    return [n * step for n in range(math.ceil(low / step), math.floor(min(high, 1.0) / step + 1e-9) + 1)]


def _list(points: Sequence[Point], figure: str, top: float) -> Iterator[str]:
    columns = (70, 100, 360, 480, 600, 760)
    for x, word in zip(columns, ("", "network", "trained", "parameters", "images seen", figure), strict=True):
        yield _text(x, top, word, fill="#555")
    for i, point in enumerate(points):
        y = top + ROW * (i + 1)
        name = point.name if len(point.name) <= NAME else f"{point.name[: NAME // 2 - 1]}…{point.name[-NAME // 2 :]}"
        seen = "unknown" if point.images is None else f"{point.images:,}"
        value = f"{100 * point.value:.1f} %"
        if point.low < point.high:
            value += f" ({100 * point.low:.1f} to {100 * point.high:.1f})"
        words = (str(i + 1), name, point.kind, f"{point.parameters / 1e6:.2f} M", seen, value)
        yield f'<circle cx="{columns[0] - 10}" cy="{y - 4}" r="{RADIUS}" fill="{COLORS[point.kind]}"/>'
        for x, word in zip(columns, words, strict=True):
            yield _text(x, y, word)


def _text(x: float, y: float, words: str, anchor: str = "start", fill: str = "#111", size: int = 12) -> str:
    style = f'text-anchor="{anchor}" fill="{fill}" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def _rect(box: Box) -> str:
    x, y, right, bottom = box
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{right - x:.1f}" height="{bottom - y:.1f}" fill="white" opacity="0.8"/>'
    )
