"""Adds up where the time of a run goes: starting, drawing, reading, the probe, saving, and training, which is the rest."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Spent:
    """Holds seconds by part. before: what passed before this was made, as while torch was imported."""

    def __init__(self, before: float = 0.0):
        self._start = time.monotonic() - before
        self._parts: dict[str, float] = {"starting": before} if before else {}

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Counts the time inside this context for a part."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._parts[part] = self._parts.get(part, 0.0) + time.monotonic() - start

    def until_now(self) -> dict[str, float]:
        """Returns the seconds of each part, and of `training` all that is none of them."""
        rest = time.monotonic() - self._start - sum(self._parts.values())
        return {name: round(seconds, 2) for name, seconds in {**self._parts, "training": max(0.0, rest)}.items()}

    @property
    def total(self) -> float:
        """Returns the seconds since the beginning."""
        return time.monotonic() - self._start
