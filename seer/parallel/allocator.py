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


LIBRARIES = 22_000_000  # what a first step leaves with libraries (compiled kernels, workspaces): 17 to 25 MB, measured


def wasted(step: int, *, recomputes: bool, at_once: bool = False) -> int:
    """Returns the holes of the C library beside a step's own tensors, which peak at `step` bytes: an allowance by measurement.

    The holes come out differently in every process: 0.23 to 0.49 of the step (RegNetY-200MF to 1.6GF, LOG.md), most where
    blocks are recomputed; blocks that go back at once leave 0.05 to 0.17. `benchmarks/plan.py` measures.
    """
    return round((0.17 if at_once else 0.49 if recomputes else 0.39) * step)
