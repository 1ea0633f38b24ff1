"""Fills a buffer from places in the plan: read, decode, draw, cut. One thread of the loader does this."""

import threading
from collections.abc import Mapping

import numpy as np

from seer.core.errors import BadDataError
from seer.core.protocols import Transform
from seer.core.records import Skipped
from seer.data.loading.reader import Reader
from seer.data.order import Places

SCRATCH = 8 << 20  # bytes for the pixels of one image; larger ones get memory of their own


class BatchBuilder:
    """Fills batches, from any thread. batch: samples of one step over all ranks. painted: color and blur are
    applied here."""

    def __init__(
        self, reader: Reader, transform: Transform, *, batch: int, rank: int = 0, ranks: int = 1, painted: bool = False
    ):
        self._own = threading.local()
        self.reader, self.transform, self.painted = reader, transform, painted
        self.batch, self.rank, self.ranks = batch, rank, ranks

    def places(self, consumed: int) -> Places:
        return self.reader.plan.places(consumed, self.batch, self.rank, self.ranks)

    def fill(self, arrays: Mapping[str, np.ndarray], places: Places, first: int, last: int) -> list[Skipped]:
        """Writes samples first to last of this rank. arrays: of a `BatchBuffer`. Raises BadDataError, StorageError."""
        if not hasattr(self._own, "scratch"):
            self._own.scratch = np.empty(SCRATCH, np.uint8)
        skipped: list[Skipped] = []
        draws = self.transform.draws(self.reader.keys(places)[first:last], painted=self.painted)
        for i in range(first, last):
            try:
                decoded, other, bad = self.reader.read(places, i, self.transform.decode, self._own.scratch)
            except BadDataError as error:
                error.skipped[:0] = skipped
                raise
            skipped += bad
            if other is None:
                draws.fill(i - first, decoded, arrays, i)
            else:
                self.transform.draws(np.array([other], np.uint64), painted=self.painted).fill(0, decoded, arrays, i)
        return skipped
