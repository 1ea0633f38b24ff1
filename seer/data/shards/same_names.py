"""Finds names that are two here and one elsewhere: a disk that ignores case, or that keeps letters with accents in one of
their two spellings (macOS, Windows, mounted shares), unpacks both to one file and loses the first."""

import unicodedata
from collections.abc import Callable

import numpy as np


def folded(name: str) -> str:
    """Returns what all names have in common that such a disk takes for one."""
    return (
        name.lower() if name.isascii() else unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
    )


class SameNames:
    """Counts names, each of which comes once, that fold to one that was there before. Costs a string a name, and
    about a tenth of the time of a walk over headers (0.7 us of 7)."""

    def __init__(self) -> None:
        self.count, self.first = 0, ("", "")
        self._seen: dict[str, str] = {}

    def add(self, name: str) -> None:
        other = self._seen.setdefault(folded(name), name)
        if other is not name:
            self.first = self.first if self.count else (other, name)
            self.count += 1


def among(count: int, name: Callable[[int], str]) -> SameNames:
    """Counts the names of so many rows, holding 8 bytes a name."""
    hashes = np.fromiter((hash(folded(name(row))) for row in range(count)), dtype=np.int64, count=count)
    order = np.argsort(hashes, kind="stable")
    some = np.zeros(count, dtype=bool)
    twice = np.diff(hashes[order]) == 0
    some[order[:-1][twice]] = some[order[1:][twice]] = True
    found = SameNames()
    for row in np.flatnonzero(some).tolist():
        found.add(name(row))
    return found


def is_plain(names: bytes) -> bool:
    """Returns whether no two of some names, joined to one block, can fold to one: ASCII without capital letters."""
    return names.isascii() and names == names.lower()
