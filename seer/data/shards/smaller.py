"""Makes an image smaller together with what is told in its pixels: masks by the nearest pixel, so that a number stays a
number of a class, boxes by the ratio of the sides.

What has another size than the upright image already is not told in its pixels, and stays as it is.
"""

import json
from collections.abc import Callable

from seer.core.errors import RequestError
from seer.data.decode import Undecodable, decode, nearest, reencoded
from seer.data.ledger import shown
from seer.data.pixels import USUAL, Pixels
from seer.data.shards.names import has_places, image_ending

_BOXES = "boxes.json"
Size = tuple[int, int]  # height, width


def stored(
    fields: dict[str, bytes], max_side: int | None, quality: int | None, where: str, pixels: Pixels = USUAL
) -> dict[str, bytes]:
    """Returns the members of a sample as they are to be stored, the image first. where: it lies, for messages. pixels: what of an image is
    decoded.

    Raises Undecodable, for a mask or boxes that cannot be read as well; RequestError for a member of which is not known how
    it is told in pixels.
    """
    extension = image_ending(fields)
    image = fields[extension]
    kind, data = reencoded(image, max_side, quality, pixels)
    others = {ending: member for ending, member in fields.items() if ending != extension}
    if kind is not None and any(map(has_places, others)):
        height, width, _ = decode(image, None, pixels, longer=max_side).shape
        now = decode(data).shape[:2]
        if (height, width) != now:
            others = {
                e: _fitted(e, m, (height, width), now, f"max_side={max_side}: {where}") for e, m in others.items()
            }
    return {kind or extension: data, **others}


def _fitted(ending: str, member: bytes, before: Size, after: Size, where: str) -> bytes:
    """Returns a member as it belongs to the image of another size. Raises Undecodable, RequestError."""
    if not has_places(ending):
        return member
    make: Callable[[bytes, Size, Size], bytes] | None = None
    if ending == _BOXES:
        make = _boxes
    elif ending.endswith(".png"):
        make = nearest
    if make is None:
        raise RequestError(
            f"{where} has a member {ending}, told in pixels of the image, of which is not known how it is made smaller with it; "
            "leave max_side out"
        )
    return make(member, before, after)


def _boxes(member: bytes, before: Size, after: Size) -> bytes:
    """Returns rows of [left, top, right, bottom, …], each edge in the pixels of the new size. Raises Undecodable."""
    (high, wide), (height, width) = before, after
    try:
        rows = json.loads(member)
        if not isinstance(rows, list) or any(not isinstance(row, list) or len(row) not in (4, 5) for row in rows):
            raise ValueError("a list of lists of 4 or 5 numbers is expected")
        by = (width / wide, height / high, width / wide, height / high)
        return json.dumps([[*(float(x) * f for x, f in zip(row, by, strict=False)), *row[4:]] for row in rows]).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise Undecodable(f"{_BOXES}: {shown(str(error), 100)}", "target") from error
