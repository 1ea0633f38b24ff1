"""Says what pixels of images become: how many channels, what lies under transparency, how large an image may be."""

from dataclasses import dataclass
from typing import Any

from seer.core.errors import RequestError

MOST_PIXELS = 50_000_000
GROUNDS = {"black": 0, "gray": 128, "grey": 128, "white": 255}


@dataclass(frozen=True)
class Pixels:
    """Holds the settings of `decode`. ground: gray level that transparent images are laid on. most: pixels of an image."""

    ground: int = 0
    most: int = MOST_PIXELS


def pixels(ground: Any = None, most: int | None = None, *, prefix: str = "") -> Pixels:
    """Makes settings of the words `ground` and `max_pixels`. prefix: of these, in errors. Raises RequestError."""
    level = GROUNDS.get(ground, ground) if isinstance(ground, str | int) else 0 if ground is None else ground
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= 255:
        raise RequestError(f"{prefix}ground={ground}: black, white, gray, or a level from 0 (black) to 255 (white)")
    if most is not None and most < 64:
        raise RequestError(f"{prefix}max_pixels={most}: at least 64 pixels")
    return Pixels(level, MOST_PIXELS if most is None else most)
