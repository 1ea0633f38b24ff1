"""Gives memory that is freed on a CPU back to the system, where memory matters.

The C library keeps blocks of up to 32 MB that were freed for the next that want as much, and between blocks of many sizes it
leaves holes. A training step that recomputes activations has other sizes in each stage: with the holes of the forward pass
RegNetY-16GF by block holds 0.77 of the memory of a plain step, where its tensors need 0.45. Memory fresh from the system is
dear, too: each of its pages is cleared first. Figures in LOG.md.
"""

import ctypes
import platform
from collections.abc import Sequence

_M_MMAP_THRESHOLD = -3  # malloc.h
_LIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def trim_heap() -> None:
    """Gives back to the system what is free now. Does nothing without glibc."""
    if _LIBC:
        _LIBC.malloc_trim(0)


def mmap_large_blocks(size: int = 4 << 20) -> bool:
    """Makes blocks of `size` bytes and more go back to the system as they are freed, from here on: no holes,
    but a step by block takes 1.7 times as long as a plain one instead of 1.4. Returns False without glibc."""
    return bool(_LIBC and _LIBC.mallopt(_M_MMAP_THRESHOLD, size))


LIBRARIES = 22_000_000  # what a first step leaves with libraries (compiled kernels, workspaces): 17 to 25 MB, measured


# holes beside a step's own tensors, as a share of their peak; where blocks are named, as by block
HOLES = {"none": 0.39, "block": 0.60, "stage": 0.42, "selective": 0.20}
HOLES_AT_ONCE = 0.17


def wasted(step: int, policy: str | Sequence[str], *, at_once: bool = False) -> int:
    """Returns the holes of the C library beside a step's own tensors, which peak at `step` bytes: an allowance fitted to
    measurements (`benchmarks/plan.py`, LOG.md), not derived.

    The holes come out differently in every process, by a tenth of the whole and more. policy: of `remat`. at_once: blocks of
    4 MB go back as they are freed.
    """
    share = HOLES_AT_ONCE if at_once else HOLES[policy] if isinstance(policy, str) else HOLES["block"]
    return round(share * step)
