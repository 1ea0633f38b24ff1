"""Keeps some images out of training: so many, or such a share of them, chosen by a seed and by where each lies.

An image that is kept out is never read for training: another of its block stands in for it, as for one that cannot be used, so
an epoch has as many steps as without. The choice depends on nothing but the seed and the places, so it is the same on all ranks
and after a restart.
"""

from collections.abc import Sequence

import numpy as np

from seer.core import rng
from seer.core.errors import RequestError
from seer.data.ledger import parse_fraction


def count_or_share(holdout: float | str) -> float | int:
    """Returns a number of images as an int, and a share of them, 20% or 0.2, as a float. Raises RequestError."""
    try:
        found = holdout if isinstance(holdout, int) else parse_fraction(holdout)
    except RequestError as error:
        raise RequestError(f"holdout={holdout}: a whole number, or a share like 20% or 0.2") from error
    if found < 0:
        raise RequestError(f"holdout={holdout}: at least 0")
    return found


def held_out(holdout: float | str, total: int) -> int:
    """Returns how many of all images are held out; a share is rounded to whole images. Raises RequestError where that
    leaves none, or a share takes none."""
    found = count_or_share(holdout)
    count = found if isinstance(found, int) else round(found * total)
    if found and not count:
        raise RequestError(
            f"holdout={holdout} of {total} images is less than one; give a number of images, like holdout=1"
        )
    if count >= total:
        raise RequestError(f"holdout={holdout} of {total} images leaves none; make it smaller")
    return count


def chosen(counts: Sequence[int], holdout: float | str, seed: int) -> list[tuple[int, int]]:
    """Returns (shard, row) of the images that are held out, in their order. counts: rows of each shard. Raises RequestError."""
    total = sum(counts)
    count = held_out(holdout, total)
    shard = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    row = np.concatenate([np.arange(n, dtype=np.int64) for n in counts]) if total else np.zeros(0, dtype=np.int64)
    drawn = rng.sub_keys(rng.key(seed, "holdout"), shard, row)  # uint64 [N]
    taken = np.sort(np.argsort(drawn, kind="stable")[:count])
    return list(zip(shard[taken].tolist(), row[taken].tolist(), strict=True))
