"""What is freed on a CPU goes back to the system at once, where memory matters more than a few per cent of time.

The C library keeps blocks of up to 32 MB that were freed for the next that want as much, and between blocks of many sizes it
leaves holes. A training step that recomputes activations frees and asks for more of them: RegNetY-16GF by block then holds 0.77 of
the memory of a plain step where its tensors need 0.45 (LOG.md). Blocks of 4 MB and more straight from the system cost a plain
step a tenth of its time.
"""

import ctypes
import platform

_M_MMAP_THRESHOLD = -3  # malloc.h


def give_back(size: int = 4 << 20) -> bool:
    """Blocks of `size` bytes and more come from the system, and return to it when they are freed. False without glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size))
