"""Processes that this one has forked and that still run."""

from pathlib import Path


def children() -> list[int]:
    """By their process numbers; those that have ended and wait to be asked for count too. Programs that were started, like the
    one which multiprocessing keeps for its resources once a test has used it, have a command line of their own."""
    found = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    return [pid for pid in found if _command(pid) in (_command("self"), b"")]


def _command(process: int | str) -> bytes:
    """Nothing for one that has ended."""
    return Path(f"/proc/{process}/cmdline").read_bytes()
