"""Makes batches, in the order of the plan, a few steps ahead by the threads of one reader process (`reader_process`).

The loader keeps no state: it is given the number of images consumed and every batch carries the number behind it.
Batches made ahead and never used cost nothing.
"""

from collections.abc import Iterator
from contextlib import closing

import torch

from seer.core.errors import RequestError
from seer.core.protocols import Transform
from seer.core.records import Batch, Skipped
from seer.data.loading.batch_buffer import BatchBuffer, BatchLayout
from seer.data.loading.batch_builder import BatchBuilder
from seer.data.loading.reader import Reader
from seer.data.loading.reader_process import ReaderProcess

HELD = 3  # batches outside: the step's, the one before it, and one under way to the device


class Loader:
    """Makes the batches of this rank. transform: names the fields of a batch and fills them. batch: samples of
    one step over all ranks. threads: of the reader process; 0 = no process, batches are made when they are
    asked for. prefetch: batches made ahead, fewer (but one) where all would take more than `most_bytes`. pin:
    lock their memory for copies to a GPU. painted: color and blur by the threads, on the host. patience_s: how
    long the reader process may wait for storage."""

    def __init__(
        self,
        reader: Reader,
        transform: Transform,
        *,
        batch: int,
        rank: int = 0,
        ranks: int = 1,
        threads: int = 2,
        prefetch: int = 4,
        most_bytes: float = float("inf"),
        pin: bool = False,
        painted: bool = False,
        patience_s: float = float("inf"),
    ):
        if threads < 0 or prefetch < 1:
            raise RequestError(f"data.threads={threads}, data.prefetch={prefetch}: at least 0, at least 1")
        if batch < ranks or batch % ranks:
            raise RequestError(f"batch {batch} over {ranks} ranks: the batch must be a multiple of the number of ranks")
        self.reader, self.transform, self.batch, self.pin = reader, transform, batch, pin
        self.threads, self.patience_s = threads, patience_s
        self.builder = BatchBuilder(reader, transform, batch=batch, rank=rank, ranks=ranks, painted=painted)
        self.layout = BatchLayout(transform.layout(batch // ranks, painted=painted), batch // ranks)
        self.prefetch = max(1, int(min(prefetch, most_bytes // self.layout.bytes - HELD)))
        self.builder.places(0)  # raises when lanes, batch and ranks do not fit

    def batches(self, consumed: int) -> Iterator[Batch]:
        """Yields batches without end. Raises what a thread raised: BadDataError, StorageError."""
        made = self._ahead(consumed) if self.threads else self._here(consumed)
        with closing(made):  # type: ignore[type-var]
            for buffer, skipped in made:
                consumed += self.batch
                yield Batch(buffer.tensors, skipped, consumed)

    def _here(self, consumed: int) -> Iterator[tuple[BatchBuffer, list[Skipped]]]:
        while True:
            buffer = self.layout.buffer(torch.empty(self.layout.bytes, dtype=torch.uint8, pin_memory=self.pin))
            yield buffer, self.builder.fill(buffer.arrays, self.builder.places(consumed), 0, self.layout.batch_size)
            consumed += self.batch

    def _ahead(self, consumed: int) -> Iterator[tuple[BatchBuffer, list[Skipped]]]:
        blocks = self.prefetch + HELD
        options = {"blocks": blocks, "threads": self.threads, "pin": self.pin, "patience_s": self.patience_s}
        with closing(ReaderProcess(self.builder, self.layout, **options)) as process:  # type: ignore[arg-type]
            while True:
                while process.asked <= self.prefetch and process.free:
                    process.ask(consumed)
                    consumed += self.batch
                yield process.take(copy=process.held >= HELD)
