"""Reads boxes from a JSON of COCO's form: what lies where on each image, by the image's name.

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seer.core.errors import RequestError, StorageError
from seer.data.label_table import Table
from seer.data.ledger import shown

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


def read_coco(path: str) -> Boxes:
    """Returns the boxes in a file. Raises RequestError for what is not of that form, and StorageError."""
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
    of: dict[str, list[Row]] = {row["file_name"]: [] for row in images.values()}
    if len(of) < len(images):
        raise RequestError(f"labels={path}: {len(images)} images, and {len(of)} different file names; each once")
    left_out: Counter[str] = Counter()
    for row in _rows(path, content, "annotations"):
        image, number = images.get(row.get("image_id", -1)), numbers.get(row.get("category_id", -1))
        if image is None or number is None:
            raise RequestError(
                f"labels={path}: annotation {shown(str(row.get('id')), 50)} is of image {shown(str(row.get('image_id')), 50)} and "
                f"category {shown(str(row.get('category_id')), 50)}; one of them is not in the file"
            )
        box, reason = _box(path, row, image)
        if box is None:
            left_out[reason] += 1
        else:
            of[image["file_name"]].append([*box, number])
    return Boxes(path, names, of, left_out)


def _box(path: str, row: Mapping[str, Any], image: Mapping[str, Any]) -> tuple[list[float] | None, str]:
    """Returns left, top, right and bottom of an annotation, or None and why it is left out."""
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_number(value) for value in box):
        raise RequestError(
            f"labels={path}: annotation {shown(str(row.get('id')), 50)}: bbox is {shown(json.dumps(box), 80)}, not [left, top, "
            "width, height]"
        )
    left, top, width, height = map(float, box)
    if row.get("iscrowd"):
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
