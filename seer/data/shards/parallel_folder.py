"""Pairs the images of a folder or a list with the files of a second folder that has the same names: masks, mostly.

`data.fields={mask: masks/}` makes `masks/a/1.png` the mask of `images/a/1.jpg`; `{mask: masks/*_mask.png}` that of
`masks/a/1_mask.png`. Which endings there are is learned from a thousand images spread over all, and so is, of a list, how many
of the first folders in its paths the second folder does not repeat.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np

from seer.core.errors import RequestError
from seer.core.log import log
from seer.data.shards.names import COMPANIONS

_ENDINGS = ("png", "json", "txt", "jpg", "jpeg", "webp", "PNG", "JPG")
_TRIED = 1000  # images that are looked at when the folder is opened


class ParallelFolder:
    """Holds where the files of one field lie. name: of the field. place: the folder, with a slash behind, or FOLDER/*SUFFIX.
    base: of the images. stem: gives the path of an image, from there and without its ending. listed: base may be above what
    the second folder repeats. Raises RequestError where no image has a file there, or where the folder lies among the images.
    """

    def __init__(self, name: str, place: str, base: str, stem: Callable[[int], str], count: int, listed: bool):
        self._field, self._place = name, place
        folder, _, suffix = os.path.expanduser(place).rpartition("/")
        self._folder = os.path.abspath(folder or "/")
        self._suffixes: Sequence[str] = (suffix.removeprefix("*"),) if suffix else [f".{ending}" for ending in _ENDINGS]
        if not os.path.isdir(self._folder):
            raise RequestError(f"data.fields={{{name}: {place}}}: {self._folder} is no folder")
        real, above = os.path.realpath(self._folder), os.path.realpath(base)
        if not listed and os.path.commonpath([real, above]) == above:
            raise RequestError(
                f"data.fields={{{name}: {place}}}: {self._folder} lies in the images' own folder {base}, so what is in it would "
                "be taken for images too; give the folder of the images alone, or move it out"
            )
        rows = np.unique(np.linspace(0, count - 1, min(count, _TRIED)).astype(int)).tolist() if count else []
        self._leave_out = self._learn([stem(row) for row in rows], listed)

    def _learn(self, stems: Sequence[str], listed: bool) -> int:
        """Returns how many of the first folders in the path of an image are none of this folder; keeps the suffixes there are."""
        most, depth = (max((stem.count("/") for stem in stems), default=0) if listed else 0), 0
        found: list[tuple[str, ...]] = []
        for out in range(most + 1):
            tried = [tuple(s for s in self._suffixes if os.path.isfile(self._path(stem, out, s))) for stem in stems]
            if sum(map(bool, tried)) > sum(map(bool, found)):
                found, depth = tried, out
        lacking = [stem for stem, some in zip(stems, found or [()] * len(stems), strict=True) if not some]
        if stems and len(lacking) == len(stems):
            example = self._path(stems[0], 0, self._suffixes[0])
            raise RequestError(
                f"data.fields={{{self._field}: {self._place}}}: of {len(stems)} images that were looked at none has a file there; "
                f"looked for {example} and others of {', '.join(self._suffixes)}; FOLDER/*_mask.png says what names end in"
            )
        if lacking:
            log.warning(
                f"data.fields: {len(lacking)} of {len(stems)} images that were looked at have no {self._field} in "
                f"{self._folder}, the first {lacking[0][:200]!r}"
            )
        self._suffixes = [suffix for suffix in self._suffixes if any(suffix in some for some in found)]
        return depth

    def _path(self, stem: str, out: int, suffix: str) -> str:
        parts = stem.lstrip("/").split("/")
        return os.path.join(self._folder, *parts[min(out, len(parts) - 1) :]) + suffix

    def candidates(self, stem: str) -> list[tuple[str, str]]:
        """Returns (what it is called in a sample, path) of the files that may belong to an image; at most one is read."""
        return [(self._called(suffix), self._path(stem, self._leave_out, suffix)) for suffix in self._suffixes]

    def _called(self, suffix: str) -> str:
        whole = f"{self._field}.{suffix.rpartition('.')[2].lower()}"
        return whole if whole in COMPANIONS else self._field
