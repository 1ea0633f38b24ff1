"""Makes standard streams whole that a parent has closed (`seer … 2>&-`).

Surprising: a closed number is given to the next file that is opened. What a C library then says to standard error would be
written into a checkpoint.
"""

import os
import sys


def complete() -> tuple[str, ...]:
    """Opens the null device for each standard stream that is closed, and returns their names."""
    closed = []
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            file = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
            assert file == number
            os.set_inheritable(file, True)
            closed.append(name)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    return tuple(closed)
