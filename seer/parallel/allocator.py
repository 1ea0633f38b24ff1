"""What is freed on a CPU goes back to the system, where memory matters.

The C library keeps blocks of up to 32 MB that were freed for the next that want as much, and between blocks of many sizes it
leaves holes. A training step that recomputes activations has other sizes in each stage: with the holes of the forward pass
RegNetY-16GF by block holds 0.77 of the memory of a plain step, where its tensors need 0.45. Memory fresh from the system is
dear, too: each of its pages is cleared first. Figures in LOG.md.
"""

import ctypes
import platform

_M_MMAP_THRESHOLD = -3  # malloc.h
_LIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def give_back() -> None:
    """What is free now. Nothing without glibc."""
    if _LIBC:
        _LIBC.malloc_trim(0)


def give_back_at_once(size: int = 4 << 20) -> bool:
    """From here on, blocks of `size` bytes and more as they are freed: no holes, but a step by block takes 1.7 times as long as a
    plain one instead of 1.4. False without glibc."""
    return bool(_LIBC and _LIBC.mallopt(_M_MMAP_THRESHOLD, size))


def wasted(step: int, *, recomputes: bool, at_once: bool = False) -> int:
    """Returns what a CPU's process holds beyond its tensors, by measurement (LOG.md, `benchmarks/plan.py`): holes between blocks
    of the C library, and what libraries keep. step: bytes of the step's own tensors at their peak; 16 MB come to it however
    small it is."""
    share = 0.2 if at_once else 0.52 if recomputes else 0.4
    return round(share * step) + 16_000_000
