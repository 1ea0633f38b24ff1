"""Turns durations as people write them into optimizer steps, once, at the start.

20   "20"   "50k"   "1.5M"      steps
"600000img"  "600kimg" "1Gimg"  images (rounded up to whole steps)
"100ep"  "0.5ep"  "10epochs"    epochs of the data at hand
"10%"                           of the whole run (not for the run itself)
"""

import math
import re
from fractions import Fraction

_FORM = re.compile(r"^\s*([0-9]+(?:\.[0-9]*)?(?:e[0-9]{1,2})?)\s*([kMG]?)\s*(img|ep|epochs?|%|)\s*$")
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def steps(duration: int | float | str, *, batch: int, images: int, total: int | None = None) -> int:
    """Returns how many optimizer steps a duration is.

    batch: images of one step over all ranks. images: size of the data, for epochs. total: steps of the run, for "%".
    Raises ValueError for what is none of the forms above, and for a percentage where there is no total.
    """
    found = _FORM.match(str(duration))
    if not found:
        raise ValueError(
            f"duration {duration!r} is not understood; write steps (20000, 50k), images (600kimg), epochs (100ep) "
            "or a share of the run (3%)"
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
