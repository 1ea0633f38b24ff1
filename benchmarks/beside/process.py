"""Reads what Linux says of this process: resident memory, and processor seconds with those of its children."""

import contextlib
import ctypes
import os
import time
from pathlib import Path


def held(name: str) -> int:
    """Returns bytes of a line of /proc/self/status, like VmRSS or VmHWM; 0 where there is none."""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)
    except FileNotFoundError:
        return 0


def forget_peak() -> None:
    """Lets VmHWM begin again at what is resident now."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def trim() -> None:
    """Gives memory that was freed back to the system, so that a peak tells what is used: of glibc, elsewhere nothing happens."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def spent_with_children() -> float:
    """Returns processor seconds so far, of this process and of its running children; theirs in ticks of 10 ms."""
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")
