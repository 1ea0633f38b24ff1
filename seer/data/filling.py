"""From places in the plan to a filled slot: read, decode, draw, cut. What one thread of the loader does."""

import threading

import numpy as np

from seer.core.errors import BadDataError
from seer.core.records import Skipped
from seer.data.multicrop import MultiCrop
from seer.data.order import Places
from seer.data.reader import Reader
from seer.data.slot import Slot

SCRATCH = 8 << 20  # bytes for the pixels of one picture; larger ones get memory of their own


class Filler:
    """May be called from any thread. batch: pictures of one step over all ranks. paint: colour and blur here, too."""

    def __init__(
        self, reader: Reader, crop: MultiCrop, *, batch: int, rank: int = 0, ranks: int = 1, paint: bool = False
    ):
        self._own = threading.local()
        self.reader, self.crop, self.batch, self.rank, self.ranks, self.paint = reader, crop, batch, rank, ranks, paint

    def places(self, consumed: int) -> Places:
        return self.reader.plan.places(consumed, self.batch, self.rank, self.ranks)

    def fill(self, slot: Slot, places: Places, first: int, last: int) -> list[Skipped]:
        """Pictures first to last of this rank. Raises BadDataError, StorageError."""
        if not hasattr(self._own, "scratch"):
            self._own.scratch = np.empty(SCRATCH, np.uint8)
        skipped: list[Skipped] = []
        draws = self.crop.draws(self.reader.keys(places)[first:last])
        for i in range(first, last):
            try:
                picture, other, bad = self.reader.picture(places, i, self._own.scratch)
            except BadDataError as error:
                error.skipped[:0] = skipped
                raise
            skipped += bad
            height, width, _ = picture.shape
            draw = draws.at(i - first, height, width) if other is None else self.crop.draw(height, width, other)
            self.crop.cut(picture, draw, slot.pixels, i)
            if self.paint:
                self.crop.paint(draw, slot.pixels, i)
            slot.write(draw, i)
        return skipped
