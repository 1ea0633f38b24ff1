"""Tells which image comes when, as a pure function of integers. The whole state of a run's data is how many
were consumed.

The shards of an epoch, permuted by (seed, epoch), form one line of N rows. The line is cut into L lanes of equal length
(one row apart where L does not divide N); inside a lane, blocks of rows are permuted by a key of their own. A step takes
the same number of rows from every lane; rank r owns L/R neighbouring lanes, so the global batch is the same set for
every number of ranks R that divides L.

Surprising: lanes turn over to their next epoch one by one where L does not divide N, since each counts its own rows;
so every row comes exactly once in every epoch and nothing is dropped. Memory is O(shards), for two epochs at a time.
Source: the tried design of `facts/reliability.md` 4.3.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from seer.core import rng
from seer.core.errors import RequestError

MOST_LANES = 2048  # many lanes mix best, and more mix no better
MOST_RANKS = 1024  # every number of ranks up to this that divides the batch can take part
_CHUNK = 8192  # shards permuted at a time
_AHEAD = 8192  # rows located at a time, of batches to come: numpy's price is per call, not per row
_EPOCHS = 16  # but no further ahead than this, since each epoch has its price, too
_TURNS = np.arange(1, 7, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # round keys of the Feistel network
STAND_IN_TRIES = 8  # stand-ins for one position from its own block at the most


@dataclass(frozen=True)
class Places:
    """Holds n positions and the rows they mean. int64 [n] each."""

    lane: np.ndarray
    position: np.ndarray  # in the lane, counted over all epochs
    epoch: np.ndarray
    shard: np.ndarray
    row: np.ndarray


def choose_lanes(batch: int, images: int) -> int:
    """Returns the number of lanes for a global batch: the most up to MOST_LANES that divide it and are no more
    than the images; where a number of ranks divides the batch but not those, as few more as all such numbers
    divide, should there be as many images."""
    most = largest_divisor(batch, min(images, MOST_LANES))
    shared = math.lcm(*(n for n in range(1, MOST_RANKS + 1) if batch % n == 0))
    return most if most % shared == 0 or shared > images else shared


def largest_divisor(batch: int, most: int) -> int:
    return max(n for n in range(1, min(batch, most) + 1) if batch % n == 0)


class Plan:
    """Orders the rows of all epochs, for shards of the given counts."""

    def __init__(self, counts: Sequence[int], *, seed: int, lanes: int, block: int = 8192):
        self.counts = np.asarray(counts, dtype=np.int64)
        self.total = int(self.counts.sum())
        if not 1 <= lanes <= self.total:
            raise RequestError(f"{lanes} lanes for {self.total} images; data.lanes must be from 1 to the images")
        if block < 1:
            raise RequestError(f"data.block={block}; a block holds at least one image")
        self.lanes, self.block, self.seed = lanes, block, seed
        self.lane_start = np.arange(lanes + 1, dtype=np.int64) * self.total // lanes
        self._lines: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        # What `places` found last, of more than one batch where one follows the other: for whom, from which position on, and
        # the fields of Places [5, lanes, positions].
        self._located: tuple[tuple[int, ...], int, np.ndarray] | None = None

    @property
    def fingerprint(self) -> str:
        """Returns a word that is equal for equal orders: seed, lanes, block, counts."""
        words = f"v1 {self.seed} {self.lanes} {self.block} ".encode() + self.counts.tobytes()
        return hashlib.sha256(words).hexdigest()[:16]

    def places(self, consumed: int, batch: int, rank: int = 0, ranks: int = 1) -> Places:
        """Returns the rows of the next global batch that are this rank's: [batch / ranks], lane by lane.

        consumed and batch count images over all ranks. Raises RequestError unless ranks divides lanes divides batch.
        """
        if self.lanes % ranks or batch % self.lanes or consumed % self.lanes:
            raise RequestError(
                f"{ranks} ranks, {self.lanes} lanes, batch {batch}: ranks must divide data.lanes and data.lanes the batch"
            )
        each, owned, first = batch // self.lanes, self.lanes // ranks, consumed // self.lanes
        whom, known = (each, rank, ranks), self._located  # read once: threads may come here together
        if known is None or known[0] != whom or not known[1] <= first <= known[1] + known[2].shape[2] - each:
            goes_on = known is not None and known[0] == whom and first == known[1] + known[2].shape[2]
            ahead = min(_AHEAD, _EPOCHS * self.total // ranks) // (each * owned) if goes_on else 0
            lane, position = np.meshgrid(
                np.arange(rank * owned, (rank + 1) * owned, dtype=np.int64),
                np.arange(first, first + max(1, ahead) * each, dtype=np.int64),
                indexing="ij",
            )
            found = self._locate(lane.ravel(), position.ravel())
            columns = np.stack([getattr(found, one.name).reshape(lane.shape) for one in fields(Places)])
            known = self._located = whom, first, columns
        at = first - known[1]
        return Places(*known[2][:, :, at : at + each].reshape(5, -1))

    def stand_in(self, lane: int, position: int, attempt: int) -> Places:
        """Returns another row, [1], for a position whose row cannot be used. attempt is from 1 to total - 1.

        The first TRIES come from the block of the position (fewer where it holds fewer), the others from anywhere in the
        epoch, since a block may be bad or excluded as a whole. No row comes twice, and the row that was due never.
        """
        if not 1 <= attempt < self.total:
            raise ValueError(f"attempt {attempt} of {self.total - 1} stand-ins")
        lanes, positions = np.array([lane]), np.array([position])
        epoch, first, size, due = (int(one[0]) for one in self._blocks(lanes, positions))
        tried = [due]
        for one in range(1, min(attempt, STAND_IN_TRIES, size - 1) + 1):
            key = rng.sub_keys(rng.key(self.seed, "stand-in", one), lanes, positions)
            inside = int(rng.uniforms(key, 1)[0, 0] * size)
            while inside in tried:
                inside = (inside + 1) % size
            tried.append(inside)
        begin = int(self.lane_start[lane]) + first
        line = begin + tried[-1] if attempt < len(tried) else self._elsewhere(lane, position, attempt, begin, tried)
        return self._rows(lanes, positions, np.array([epoch]), np.array([line]))

    def _elsewhere(self, lane: int, position: int, attempt: int, begin: int, tried: Sequence[int]) -> int:
        """Returns a place in the line of the epoch, none of those tried before: begin + tried.

        A keyed permutation of the line, in which places that were tried before its tail give way to those of the tail
        that were not: so no list of earlier attempts is needed, and the price is the same for each.
        """
        used = [begin + one for one in tried]
        head = self.total - len(used)
        index = np.array([attempt - len(used), *range(head, self.total)])
        key = rng.sub_keys(rng.key(self.seed, "stand-in from anywhere"), np.array([lane]), np.array([position]))
        place, *tail = permute(index, np.full(len(index), self.total), np.repeat(key, len(index))).tolist()
        gone = [one for one in used if one not in tail]
        return [one for one in tail if one not in used][gone.index(place)] if place in gone else place

    def _locate(self, lane: np.ndarray, position: np.ndarray) -> Places:
        epoch, first, _, inside = self._blocks(lane, position)
        return self._rows(lane, position, epoch, self.lane_start[lane] + first + inside)

    def _blocks(self, lane: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns epochs, first rows of the blocks in their lanes, their sizes, and which row inside is due.
        int64 [n] each."""
        length = self.lane_start[lane + 1] - self.lane_start[lane]
        epoch, offset = position // length, position % length
        block = offset // self.block
        first = block * self.block
        size = np.minimum(self.block, length - first)
        keys = rng.sub_keys(rng.key(self.seed, "block"), epoch, lane, block)
        return epoch, first, size, permute(offset - first, size, keys)

    def _rows(self, lane: np.ndarray, position: np.ndarray, epoch: np.ndarray, line: np.ndarray) -> Places:
        """Returns the shards and rows of places in the line of an epoch."""
        shard, row = np.empty_like(line), np.empty_like(line)
        for one in np.unique(epoch):
            chosen = epoch == one
            shards, ends = self._line(int(one))
            slot = np.searchsorted(ends, line[chosen], side="right")
            shard[chosen] = shards[slot]
            row[chosen] = line[chosen] - (ends[slot] - self.counts[shards[slot]])
        return Places(lane, position, epoch, shard, row)

    def _line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the shards of an epoch in order, and the line index behind each."""
        line = self._lines.get(epoch)
        if line is None:
            for old in [e for e in list(self._lines) if abs(e - epoch) > 1]:
                self._lines.pop(old, None)  # reader threads come here too
            n, key = len(self.counts), rng.key(self.seed, "shards", epoch)
            shards = np.zeros(n, dtype=np.int64)
            # A lone shard, like a folder of images, has its place. The permutation's own arrays are twelve times as large
            # as its result.
            for first in range(0, n if n > 1 else 0, _CHUNK):
                index = np.arange(first, min(first + _CHUNK, n))
                keys = np.full(len(index), key, dtype=np.uint64)
                shards[first : first + _CHUNK] = permute(index, np.full(len(index), n), keys)
            line = self._lines[epoch] = shards, np.cumsum(self.counts[shards])
        return line


def permute(index: np.ndarray, size: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Applies keyed bijections of [0, size): element i goes where permutation keys[i] of size[i] sends
    index[i]. int64 [n].

    A Feistel network of six rounds on the smallest even number of bits that holds size; values that fall outside walk
    on (fewer than four passes on average) until they fall inside, which keeps it a bijection.
    """
    bits = np.maximum(1, np.ceil(np.log2(np.maximum(size, 2).astype(np.float64)) / 2)).astype(np.uint64)
    mask = (np.uint64(1) << bits) - np.uint64(1)
    value = index.astype(np.uint64)
    limit = size.astype(np.uint64)
    todo = np.arange(len(index))
    while len(todo):
        here, ones, key = value[todo], mask[todo], keys[todo]
        low, high = here & ones, here >> bits[todo]
        for turn in _TURNS:
            low, high = high ^ (rng.mix(low + (key + turn)) & ones), low
        value[todo] = here = (high << bits[todo]) | low
        todo = todo[here >= limit[todo]]
    return value.astype(np.int64)


def plan(counts: Sequence[int], *, seed: int, lanes: int, block: int = 8192) -> Plan:
    """Returns a `Plan`, as the public name for it."""
    return Plan(counts, seed=seed, lanes=lanes, block=block)
