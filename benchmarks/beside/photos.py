"""Reads the photographs that a turn of the data path does, the same on both sides."""

from pathlib import Path


def spread(folder: str, many: int) -> list[bytes]:
    """Returns so many JPEGs of what was prepared, evenly over their names: images of a set differ, and neighbors are alike."""
    files = sorted(Path(folder, "jpegs").iterdir())
    many = min(many, len(files))
    return [files[i * len(files) // many].read_bytes() for i in range(many)]
