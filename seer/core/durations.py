"""Turns durations as people write them into optimizer steps, once, at the start.

20   "20"   "50k"   "1.5M"      steps
"600000img"  "600kimg" "1Gimg"  images (rounded up to whole steps)
"100ep"  "0.5ep"  "10epochs"    epochs of the data at hand
"10%"                           of the whole run (not for the run itself)
"8h" "30min" "90s" "2d"         a time, for the run itself alone (`seconds`, `engine.clock`)
"""

import math
import re
from fractions import Fraction

_FORM = re.compile(r"^\s*([0-9]+(?:\.[0-9]*)?(?:e[0-9]{1,2})?)\s*([kMG]?)\s*(img|ep|epochs?|%|)\s*$")
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_TIME = re.compile(r"^\s*([0-9]+(?:\.[0-9]*)?)\s*(s|min|h|d)\s*$")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def seconds(duration: int | float | str) -> float | None:
    """Returns the seconds of a time like 8h, 30min, 90s or 2d; None of any other duration."""
    found = _TIME.match(str(duration))
    return float(Fraction(found[1]) * _SECONDS[found[2]]) if found else None


def share_of(duration: int | float | str) -> Fraction | None:
    """Returns the share of the run that a duration like 3% is, as 3/100; None of any other duration."""
    found = _FORM.match(str(duration))
    return Fraction(found[1]) * _SCALE[found[2]] / 100 if found and found[3] == "%" else None


def steps(duration: int | float | str, *, batch: int, images: int, total: int | None = None) -> int:
    """Returns how many optimizer steps a duration is.

    batch: images of one step over all ranks. images: size of the data, for epochs. total: steps of the run, for "%".
    Raises ValueError for what is none of the forms above, and for a percentage where there is no total.
    """
    found = _FORM.match(str(duration))
    if not found and seconds(duration) is not None:
        raise ValueError(f"duration {duration!r} is a time, which only the length of the run may be (steps=8h)")
    if not found:
        raise ValueError(
            f"duration {duration!r} is not understood; write steps (20000, 50k), images (600kimg), epochs (100ep), "
            "a share of the run (3%), or for the run itself a time (8h, 30min)"
        )
    # exact: 2.01 * 1000 in floating point is no whole number, and 0.07 * 100 rounds up to 8
    number, unit = Fraction(found[1]) * _SCALE[found[2]], found[3]
    if unit == "img":
        return math.ceil(number / batch)
    if unit.startswith("ep"):
        return math.ceil(number * images / batch)
    if unit == "%":
        if total is None:
            raise ValueError(f"duration {duration!r} is a share of the run, so it cannot be the length of the run")
        return math.ceil(number / 100 * total)  # up, so that what comes every 25% comes four times and not five
    if number != int(number):
        raise ValueError(f"duration {duration!r} is not a whole number of steps")
    return int(number)
