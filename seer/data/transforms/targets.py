"""Reads what is to be learned of an image, from the members of its sample: its class or classes, its mask, its boxes.

A sample without a target that is asked for, or with one that says nothing, is a bad one: it raises Undecodable of kind
`target`, another sample stands in for it, and it is told (`reader`). Masks and boxes are those of the upright image.

Legend: C classes, h w of the image, n boxes of it.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seer.core.errors import RequestError
from seer.core.records import Sample
from seer.data.decode import Undecodable, decode_mask
from seer.data.ledger import shown
from seer.data.shards.shard import Shard

MASKS = ("mask.png", "seg.png")  # endings of the member that is the mask
BOXES = "boxes.json"
VALUE = "value.json"
VOID = 255  # of a mask: pixels that teach nothing
MOST_DIGITS = 18  # of a number in `cls`


class ClassLabel:
    """Gives the class of a sample, a number below `count`. names: of the classes, in the order of their numbers.

    A number in `cls` means the class that the manifest beside its shard names so; where none does, the number is its own
    name. of: the classes of all rows, as names[of[shard][row]] of its own names, negative where a row has none; then `cls`
    is not looked at.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        names: Sequence[str],
        *,
        of: tuple[Sequence[str], Sequence[np.ndarray]] | None = None,
    ):
        if len(set(names)) < len(names) or not names:
            raise RequestError(f"classes={list(names)[:5]}…: at least one name, each once")
        self.count, self._of = len(names), of
        self._numbers = {name: number for number, name in enumerate(names)}
        self._known = [shard.classes for shard in shards]

    def __call__(self, sample: Sample) -> int:
        """Returns the class. Raises Undecodable."""
        if self._of is not None:
            names, rows = self._of
            label = int(rows[sample.ref.shard][sample.ref.row])
            if label < 0:
                raise Undecodable("it has no label", "target")
            return self.number_of(names[label])
        return self.number_of(self.name_of(sample, _member(sample, "cls").decode("utf-8", "replace").strip()))

    def name_of(self, sample: Sample, text: str) -> str:
        """Returns the name of a class by its number in `cls`. Raises Undecodable."""
        if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
            raise Undecodable(f"`cls` is {shown(text, 50)!r}, not the number of a class", "target")
        known, number = self._known[sample.ref.shard], int(text)
        if known is None:
            return str(number)
        if number >= len(known):
            raise Undecodable(f"`cls` is {number}, and the manifest names {len(known)} classes", "target")
        return known[number]

    def number_of(self, name: str) -> int:
        """Returns the number of a class by its name. Raises Undecodable."""
        if name not in self._numbers:
            raise Undecodable(f"its class {shown(name, 50)!r} is none of the {self.count} that are learned", "target")
        return self._numbers[name]


class ClassLabels(ClassLabel):
    """Gives the classes of a sample, of which `cls` may hold several numbers: `3 17`, `3,17` or `[3, 17]`; none
    is fine."""

    def __call__(self, sample: Sample) -> np.ndarray:  # type: ignore[override]
        """Returns float32 [C], 1 for each class. Raises Undecodable."""
        found = np.zeros(self.count, dtype=np.float32)
        text = _member(sample, "cls").decode("utf-8", "replace").strip()
        for word in re.split(r"[\s,]+", re.sub(r"^\[(.*)\]$", r"\1", text, flags=re.DOTALL).strip()):
            if word:
                found[self.number_of(self.name_of(sample, word))] = 1
        return found


class Boxes(NamedTuple):
    """Holds boxes. edges float32 [n, 4]: left, top, right, bottom in pixels; labels int64 [n], -1 where a box
    has none."""

    edges: np.ndarray
    labels: np.ndarray


def mask(sample: Sample, height: int, width: int, classes: int | None = None) -> np.ndarray:
    """Returns uint8 [h, w], the class of each pixel, or VOID. classes: as many are known, None = any. Raises Undecodable, also for a
    mask of another size than the image, and for the number of a class that is not known."""
    data = next((sample.fields[ending] for ending in MASKS if ending in sample.fields), None)
    if data is None:
        raise Undecodable(f"no mask beside it ({' or '.join(MASKS)})", "target")
    found = decode_mask(data)
    if found.shape != (height, width):
        raise Undecodable(
            f"its mask is {found.shape[1]} x {found.shape[0]} pixels, the upright image {width} x {height}", "target"
        )
    highest = int(found.max(where=found != VOID, initial=0))
    if classes is not None and highest >= classes:
        raise Undecodable(
            f"its mask has the class {highest}; the head knows 0 to {classes - 1}, and {VOID} is void", "target"
        )
    return found


def boxes(sample: Sample) -> Boxes:
    """Returns the boxes of `boxes.json`: a list of [left, top, right, bottom] or [left, top, right, bottom, class] in
    pixels. Raises Undecodable."""
    try:
        rows = json.loads(_member(sample, BOXES))
        if not isinstance(rows, list) or any(not isinstance(row, list) or len(row) not in (4, 5) for row in rows):
            raise ValueError("a list of lists of 4 or 5 numbers is expected")
        table = np.array([[*row, -1][:5] for row in rows], dtype=np.float64).reshape(-1, 5)
    except (ValueError, TypeError, RecursionError) as error:
        raise Undecodable(f"{BOXES}: {shown(str(error), 100)}", "target") from error
    if not np.isfinite(table).all() or (table[:, :2] > table[:, 2:4]).any() or (np.abs(table) > 2**31).any():
        raise Undecodable(f"{BOXES}: left <= right and top <= bottom are expected, all finite", "target")
    return Boxes(table[:, :4].astype(np.float32), table[:, 4].astype(np.int64))


def values(sample: Sample, count: int) -> np.ndarray:
    """Returns float32 [count]: the number, or the list of numbers, in `value.json`. Raises Undecodable."""
    try:
        found = np.array(json.loads(_member(sample, VALUE)), dtype=np.float64).reshape(-1)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise Undecodable(f"{VALUE}: {shown(str(error), 100)}", "target") from error
    if len(found) != count or not np.isfinite(found.astype(np.float32)).all():
        raise Undecodable(f"{VALUE}: {len(found)} numbers, {count} finite ones are expected", "target")
    return found.astype(np.float32)


def _member(sample: Sample, ending: str) -> bytes:
    if ending not in sample.fields:
        raise Undecodable(f"no `{ending}` beside it", "target")
    return sample.fields[ending]
