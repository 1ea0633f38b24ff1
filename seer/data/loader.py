"""Batches, in the order of the plan, made a few steps ahead by threads.

Reading, decoding and resizing release Python's lock, so threads write straight into the batch that the step will use:
nothing is pickled or copied between processes. The loader keeps no state: it is given the number of pictures consumed
and every batch carries the number behind it. Batches made ahead and never used cost nothing.

Legend: B images per rank, v views of one size, S side.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from seer.core.errors import RequestError
from seer.core.records import Batch, Skipped
from seer.data.multicrop import Draw, MultiCrop, collate
from seer.data.order import Places
from seer.data.reader import Reader

CHUNK = 16  # pictures one thread takes at a time


@dataclass
class _Pending:
    places: Places
    crops: list[torch.Tensor]  # uint8 [v, B, 3, S, S] each
    draws: list[Draw | None]
    chunks: list[Future[list[Skipped]]]
    position: int


class _Here(Executor):
    """Runs at once, in the thread that submits."""

    def submit(self, fn, /, *args, **kwargs):
        done: Future = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Loader:
    """batch: pictures of one step over all ranks. threads: how many prepare pictures; 0 = the caller's, when a batch is
    asked for. prefetch: batches made ahead."""

    def __init__(
        self,
        reader: Reader,
        crop: MultiCrop,
        *,
        batch: int,
        rank: int = 0,
        ranks: int = 1,
        threads: int = 2,
        prefetch: int = 4,
        pin: bool = False,
    ):
        if threads < 0 or prefetch < 1:
            raise RequestError(f"data.threads={threads}, data.prefetch={prefetch}: at least 0, at least 1")
        if batch < ranks or batch % ranks:
            raise RequestError(f"batch {batch} over {ranks} ranks: the batch must be a multiple of the number of ranks")
        self.reader, self.crop, self.batch, self.rank, self.ranks = reader, crop, batch, rank, ranks
        self.threads, self.prefetch, self.pin = threads, prefetch, pin
        reader.plan.places(0, batch, rank, ranks)  # raises when lanes, batch and ranks do not fit

    def batches(self, consumed: int) -> Iterator[Batch]:
        """Endless. Raises what a thread raised: BadDataError, StorageError."""
        pending: deque[_Pending] = deque()
        pool: Executor = ThreadPoolExecutor(self.threads, "pictures") if self.threads else _Here()
        try:
            while True:
                while len(pending) <= (self.prefetch if self.threads else 0):
                    pending.append(self._start(pool, consumed))
                    consumed += self.batch
                yield self._finish(pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, pool: Executor, consumed: int) -> _Pending:
        places = self.reader.plan.places(consumed, self.batch, self.rank, self.ranks)
        b = len(places.row)
        crops = [
            torch.empty(v, b, s, s, 3, dtype=torch.uint8, pin_memory=self.pin).permute(0, 1, 4, 2, 3)
            for v, s in zip(self.crop.counts, self.crop.sizes, strict=True)
        ]
        draws: list[Draw | None] = [None] * b
        chunks = [
            pool.submit(self._fill, places, crops, draws, first, min(first + CHUNK, b)) for first in range(0, b, CHUNK)
        ]
        return _Pending(places, crops, draws, chunks, consumed + self.batch)

    def _fill(
        self, places: Places, crops: list[torch.Tensor], draws: list[Draw | None], first: int, last: int
    ) -> list[Skipped]:
        skipped: list[Skipped] = []
        for i in range(first, last):
            picture, key, bad = self.reader.picture(places, i)
            skipped += bad
            draw = self.crop.draw(picture.shape[0], picture.shape[1], key)
            self.crop.cut(picture, draw, crops, i)
            draws[i] = draw
        return skipped

    def _finish(self, pending: _Pending) -> Batch:
        skipped = [one for chunk in pending.chunks for one in chunk.result()]
        draws = [d for d in pending.draws if d is not None]
        crops = [c.flatten(0, 1) for c in pending.crops]  # [v * B, 3, S, S], view-major
        return Batch(crops, collate(draws, self.crop.counts), skipped, pending.position)
