"""Draws the built-in images into shards, in as many processes as there are cores.

Sample i is a function of the seed and i alone, so who draws it makes no difference to a single byte. A run that was killed
meanwhile goes on with the shards that are not whole.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from seer.data import synthetic as sample
from seer.data.shards.journaled_pool import Entry, locked, run_pieces
from seer.data.shards.writer import (
    JOURNAL,
    SHARDS_MANIFEST,
    Member,
    shard_count,
    shard_path,
    shard_rows,
    write_manifest,
    write_shard,
)

PER_SHARD = 1000


def draw_shards(folder: Path, counts: dict[str, int], seed: int, processes: int) -> None:
    """Writes shards of so many images into a folder for each part, numbered on from one part to the next; a part that is whole
    stays as it is. Raises StorageError."""
    pieces, first = [], 0  # (part, number of the shard, shards of the part, first image, images)
    for part, total in counts.items():
        number_of = shard_count(total, PER_SHARD)
        if total and not (folder / part / SHARDS_MANIFEST).exists():
            for number in range(number_of):
                begin, end = shard_rows(number, number_of, total)
                pieces.append((part, number, number_of, first + begin, end - begin))
        first += total
    if not pieces:
        return

    def work(piece: int, tick: Callable[[], None]) -> Entry:
        part, number, number_of, begin, count = pieces[piece]
        return write_shard(shard_path(folder / part, number, number_of), _ticking(count, seed, begin, tick))

    for part in {part for part, *_ in pieces}:
        (folder / part).mkdir(parents=True, exist_ok=True)
    request = f"seed {seed}: {', '.join(f'{part} {total}' for part, total in counts.items())}"
    with locked(folder / JOURNAL) as journal, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # "multi-threaded, use of fork() may lead to deadlocks"
        entries = run_pieces(work, len(pieces), journal, request, processes=processes, progress=lambda images: None)
        for part in dict.fromkeys(part for part, *_ in pieces):
            own = [entry for entry, piece in zip(entries, pieces, strict=True) if piece[0] == part]
            write_manifest(folder / part, own, {"classes": list(sample.SHAPE_CLASSES)})
        (folder / JOURNAL).unlink()


def _ticking(count: int, seed: int, first: int, tick: Callable[[], None]) -> Iterator[Member]:
    for one in sample.samples(count, seed, first):
        tick()  # which ends this process when its parent gives up
        yield one
