"""Says what pixels of images become: how many channels, what lies under transparency, how large an image may be."""

from collections.abc import Sequence
from dataclasses import dataclass

from seer.core.errors import RequestError

MOST_PIXELS = 50_000_000
MOST_CHANNELS = 64
GROUNDS = {"black": 0, "gray": 128, "grey": 128, "white": 255}


@dataclass(frozen=True)
class Pixels:
    """Holds the settings of `decode`. ground: gray level that transparent images are laid on. most: pixels of an image.
    channels: 3 for sRGB, 1 for its gray; any other number is that of an image's own bands, which are left as they are."""

    ground: int = 0
    most: int = MOST_PIXELS
    channels: int = 3


USUAL = Pixels()


def pixels(
    ground: str | int | None = None, most: int | None = None, channels: int | None = None, *, prefix: str = ""
) -> Pixels:
    """Makes settings of the words `ground`, `max_pixels` and `channels`. prefix: of these, in errors. Raises RequestError."""
    level = GROUNDS.get(ground) if isinstance(ground, str) else 0 if ground is None else ground
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= 255:
        raise RequestError(f"{prefix}ground={ground}: black, white, gray, or a level from 0 (black) to 255 (white)")
    if channels is not None and not 1 <= channels <= MOST_CHANNELS:
        raise RequestError(f"{prefix}channels={channels}: from 1 to {MOST_CHANNELS}")
    return Pixels(level, MOST_PIXELS if most is None else most, 3 if channels is None else channels)


def by_channel(numbers: Sequence[float], usual: Sequence[float], channels: int) -> Sequence[float]:
    """Returns the numbers that normalize each channel. usual: those of RGB; of other channels each gets their mean where
    nothing else was asked for."""
    asked = not isinstance(numbers, Sequence) or tuple(numbers) != tuple(usual)
    return numbers if asked or channels == len(usual) else (round(sum(usual) / len(usual), 6),) * channels
