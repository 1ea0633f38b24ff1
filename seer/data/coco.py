"""Reads boxes and outlines from a JSON of COCO's form: what lies where on each image, by the image's name.

A box is written beside its image as [left, top, right, bottom, class] in pixels (`boxes.json`); classes are numbered in the order of
their ids, which have gaps in COCO itself. What cannot teach is left out and counted: boxes of no area, crowds (regions, not things),
boxes that lie outside of their image altogether; what reaches beyond the edge is cut at it. Surprising: an image that the file lists
without a box is one with nothing on it, and one that it does not list is unlabelled.

Legend: n boxes of an image.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from seer.core.errors import RequestError, StorageError
from seer.data.label_table import Table
from seer.data.ledger import shown
from seer.data.outlines import Outline, Runs, parsed

Row = list[float]  # left, top, right, bottom, class


@dataclass
class Boxes:
    """Holds the boxes of a file. names: of the classes, in the order of their numbers. of: by the name of an image. left_out:
    annotations by reason: no area, crowd, outside."""

    path: str
    names: tuple[str, ...]
    of: dict[str, list[Row]]
    left_out: Counter[str] = field(default_factory=Counter)
    _table: Table = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._table = Table(self.path, dict.fromkeys(self.of, ""))

    def at(self, place: str) -> list[Row] | None:
        """Returns the boxes of an image by its whole path, or by the path of its tar and its key; None where it is not listed."""
        name = self._table.name_of(place)
        return None if name is None else self.of[name]

    @property
    def digest(self) -> str:
        """Names what is in the file: equal for equal boxes and names."""
        return hashlib.sha256(json.dumps([self.names, self.of], sort_keys=True).encode()).hexdigest()

    def line(self) -> str:
        """Returns in words what is in the file."""
        count = sum(map(len, self.of.values()))
        out = ", ".join(f"{number} {reason}" for reason, number in self.left_out.most_common())
        return (
            f"{count} boxes of {len(self.names)} classes on {len(self.of)} images{f'; left out: {out}' if out else ''}"
        )


@dataclass(frozen=True)
class Thing:
    """Holds one thing on an image. box: left, top, right, bottom as they lie in the file. outline: None where the file has none.
    area: of the outline as the file says, or of the box. crowd: a region of many, at which nobody is to look."""

    box: tuple[float, float, float, float]
    label: int
    outline: Outline | None
    area: float
    crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """Holds what is on one image. size: its width and height, where the file says them."""

    size: tuple[int, int] | None
    things: tuple[Thing, ...] = ()


@dataclass
class Things:
    """Holds things by the name of their image. names: of the classes, in the order of their numbers. left_out: annotations by reason;
    crowds are kept."""

    path: str
    names: tuple[str, ...]
    of: dict[str, Scene]
    left_out: Counter[str] = field(default_factory=Counter)
    _table: Table = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._table = Table(self.path, dict.fromkeys(self.of, ""))

    def at(self, place: str) -> Scene | None:
        """Returns what is on an image by its whole path, or by the path of its tar and its key; None where it is not listed."""
        name = self._table.name_of(place)
        return None if name is None else self.of[name]

    def among(self, classes: Sequence[str]) -> "Things":
        """Returns those of some classes, numbered in their order. Raises RequestError where the file has none of them."""
        numbers = {self.names.index(name): number for number, name in enumerate(classes) if name in self.names}
        if not numbers:
            raise RequestError(
                f"labels={self.path}: its {len(self.names)} classes, like {shown(self.names[0], 50)}, are none of the "
                f"{len(classes)} of the head, like {shown(str(classes[0]), 50)}"
            )
        of, out = {}, Counter(self.left_out)
        for name, scene in self.of.items():
            kept = [replace(one, label=numbers[one.label]) for one in scene.things if one.label in numbers]
            out["of other classes"] += len(scene.things) - len(kept)
            of[name] = Scene(scene.size, tuple(kept))
        return Things(self.path, tuple(map(str, classes)), of, +out)

    @property
    def outlined(self) -> bool:
        """Returns whether any thing has an outline."""
        return any(one.outline is not None for scene in self.of.values() for one in scene.things)

    def line(self) -> str:
        """Returns in words what is in the file."""
        each = [one for scene in self.of.values() for one in scene.things]
        crowds = sum(one.crowd for one in each)
        out = ", ".join(f"{number} {reason}" for reason, number in self.left_out.most_common())
        return (
            f"{len(each) - crowds} things and {crowds} crowds of {len(self.names)} classes on {len(self.of)} images"
            f"{f'; left out: {out}' if out else ''}"
        )


def is_annotations(word: Any) -> bool:
    """Returns whether a word for labels names a file of COCO's form."""
    return isinstance(word, str) and word.lower().endswith(".json") and not word.startswith(("json:", "text:"))


def read_things(path: str) -> Things:
    """Returns the things in a file. Raises RequestError for what is not of that form, and StorageError."""
    names, images, annotations = _annotations(path)
    left_out: Counter[str] = Counter()
    things: dict[str, list[Thing]] = {row["file_name"]: [] for row in images.values()}
    for row, image, number in annotations:
        box, reason = _box(path, row, image, crowds=True)
        outline = None
        if box is not None:
            outline, reason = _outline(path, row, image)
        if reason:
            left_out[reason] += 1
            continue
        left, top, width, height = map(float, row["bbox"])
        area = float(row["area"]) if _number(row.get("area")) else width * height
        whole = (left, top, left + width, top + height)
        things[image["file_name"]].append(Thing(whole, number, outline, area, bool(row.get("iscrowd"))))
    of = {row["file_name"]: Scene(_size_of(row), tuple(things[row["file_name"]])) for row in images.values()}
    return Things(path, names, of, left_out)


def read_coco(path: str) -> Boxes:
    """Returns the boxes in a file. Raises RequestError for what is not of that form, and StorageError."""
    names, images, annotations = _annotations(path)
    of: dict[str, list[Row]] = {row["file_name"]: [] for row in images.values()}
    left_out: Counter[str] = Counter()
    for row, image, number in annotations:
        box, reason = _box(path, row, image)
        if box is None:
            left_out[reason] += 1
        else:
            of[image["file_name"]].append([*box, number])
    return Boxes(path, names, of, left_out)


Annotation = tuple[Mapping[str, Any], Mapping[str, Any], int]  # itself, its image, the number of its class


def _annotations(path: str) -> tuple[tuple[str, ...], dict[int, Mapping[str, Any]], Iterator[Annotation]]:
    """Returns names of classes, images by id, and annotations. Raises RequestError, also while these are gone through."""
    content = _content(path)
    classes = sorted(_rows(path, content, "categories"), key=lambda row: _whole(path, row, "id"))
    numbers = {row["id"]: number for number, row in enumerate(classes)}
    names = tuple(str(row.get("name", row["id"])) for row in classes)
    if not names or len(numbers) < len(classes) or len(set(names)) < len(names):
        raise RequestError(f"labels={path}: {len(classes)} categories; at least one, each id and name once")
    images: dict[int, Mapping[str, Any]] = {}
    for row in _rows(path, content, "images"):
        if not isinstance(row.get("file_name"), str) or images.setdefault(_whole(path, row, "id"), row) is not row:
            raise RequestError(
                f"labels={path}: image {shown(str(row.get('id')), 50)} has no file_name, or its id comes twice"
            )
    different = len({row["file_name"] for row in images.values()})
    if different < len(images):
        raise RequestError(f"labels={path}: {len(images)} images, and {different} different file names; each once")

    def each() -> Iterator[Annotation]:
        for row in _rows(path, content, "annotations"):
            image, number = images.get(row.get("image_id", -1)), numbers.get(row.get("category_id", -1))
            if image is None or number is None:
                raise RequestError(
                    f"labels={path}: annotation {shown(str(row.get('id')), 50)} is of image {shown(str(row.get('image_id')), 50)} and "
                    f"category {shown(str(row.get('category_id')), 50)}; one of them is not in the file"
                )
            yield row, image, number

    return names, images, each()


def _box(
    path: str, row: Mapping[str, Any], image: Mapping[str, Any], crowds: bool = False
) -> tuple[list[float] | None, str]:
    """Returns left, top, right and bottom of an annotation, or None and why it is left out. crowds: they are not."""
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_number(value) for value in box):
        raise RequestError(
            f"labels={path}: annotation {shown(str(row.get('id')), 50)}: bbox is {shown(json.dumps(box), 80)}, not [left, top, "
            "width, height]"
        )
    left, top, width, height = map(float, box)
    if row.get("iscrowd") and not crowds:
        return None, "crowds"
    if width <= 0 or height <= 0:
        return None, "of no area"
    right, bottom = left + width, top + height
    if _number(image.get("width")) and _number(image.get("height")):
        left, right = max(0.0, left), min(float(image["width"]), right)
        top, bottom = max(0.0, top), min(float(image["height"]), bottom)
    if right <= left or bottom <= top:
        return None, "outside their image"
    return [left, top, right, bottom], ""


def _outline(path: str, row: Mapping[str, Any], image: Mapping[str, Any]) -> tuple[Outline | None, str]:
    """Returns the outline of an annotation, None where it has none, and why it is left out, where it is."""
    segmentation = row.get("segmentation")
    if not segmentation:
        return None, ""
    try:
        found = parsed(segmentation)
    except ValueError as error:
        raise RequestError(
            f"labels={path}: annotation {shown(str(row.get('id')), 50)}: segmentation: {error}"
        ) from error
    if isinstance(found, Runs):
        size = _size_of(image)
        return found, "masks of another size" if size is not None and size != (found.width, found.height) else ""
    return found, "" if found else "outlines of no area"


def _size_of(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    return (width, height) if type(width) is int and type(height) is int else None


def _content(path: str) -> Mapping[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except FileNotFoundError as error:
        raise RequestError(f"labels={path} does not exist; check the path") from error
    except OSError as error:
        raise StorageError(f"labels={path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"labels={path} is no JSON: {shown(str(error), 100)}") from error
    if not isinstance(content, dict):
        raise RequestError(
            f"labels={path}: an object with images, annotations and categories is expected, as COCO's files are"
        )
    return content


def _rows(path: str, content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    rows = content.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestError(
            f"labels={path}: {name} is missing or no list of objects; COCO's files have images, annotations, categories"
        )
    return rows


def _whole(path: str, row: Mapping[str, Any], key: str) -> int:
    if type(row.get(key)) is not int:
        raise RequestError(f"labels={path}: {key} is {shown(str(row.get(key)), 50)}, not a whole number")
    return row[key]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
