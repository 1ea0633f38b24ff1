"""Counts what was thrown away, by reason, and stops the run when it is too much.

A run stops when more than `max_bad` of the last WINDOW images were bad (and at least LEAST), or when more than half of
one shard was (and at least LEAST_IN_SHARD). Only the image that was due counts, not a stand-in that failed as well, so
shares are shares of the data and do not depend on where stand-ins happened to look. A row of a shard counts once, though
it may be due twice in the steps of an epoch: a step may go over its end, and lanes of unequal length end it one by one.

Legend: S shards, K kinds of reasons.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from seer.core.errors import BadDataError, RequestError
from seer.core.records import SKIP_REASONS, Skipped
from seer.data.shards.shard import Shard

WINDOW = 100_000  # images
LEAST_SEEN = 100
LEAST_IN_SHARD = 10


def parse_fraction(value: float | str, key: str = "data.max_bad") -> float:
    """Returns 0.01 for 0.01 or "1%". key: the word that it is of. Raises RequestError for what is no share of a whole."""
    text = str(value).strip()
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise RequestError(f"{key}={value}: a share like 1% or 0.01, from 0 to 100%")
    return number


def shown(text: str, most: int = 200) -> str:
    """Returns a stranger's name as one short line: control characters, which may steer a terminal, are written out."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return plain if len(plain) <= most else plain[:most] + "…"


class Ledger:
    """Keeps the counts of the whole run. over_ranks sums an int64 array over all ranks; the default is one process."""

    def __init__(
        self,
        shards: Sequence[Shard],
        max_bad: float | str,
        over_ranks: Callable[[np.ndarray], np.ndarray] | None = None,
        ranks: int = 1,
    ):
        self.by_kind = dict.fromkeys(SKIP_REASONS, 0)  # of all ranks, as of the last check
        self._max, self._over_ranks, self._ranks = parse_fraction(max_bad), over_ranks or (lambda counts: counts), ranks
        self._paths = [str(s.path) for s in shards]
        self._number = {path: n for n, path in enumerate(self._paths)}
        self._rows = np.array([len(s) for s in shards], dtype=np.int64)  # [S]
        self._bad = np.zeros(len(shards), dtype=np.int64)  # [S], this rank, this epoch
        self._rows_bad: set[tuple[int, int]] = set()  # what `_bad` counts; about 150 bytes for each
        self._new = np.zeros(
            len(SKIP_REASONS) + 2, dtype=np.int64
        )  # [K] by kind, then bad ones that were due, then alarms
        self._images, self._consumed = 0, 0  # since the last check; of the whole run
        self._window: deque[tuple[int, int]] = deque()  # (images, bad) of all ranks
        self._in_window = np.zeros(2, dtype=np.int64)

    def restore(self, rows: Iterable[Mapping[str, Any]], step: int, batch: int, *, counts_shards: bool = True) -> None:
        """Goes on at `step` from lines of `skipped.jsonl`. counts_shards: on one rank alone, since shards are
        summed."""
        steps = min(step, -(-WINDOW // batch))
        recent, epoch = np.zeros(steps, dtype=np.int64), self._of_epoch(step * batch)
        for row in rows:
            self.by_kind[row.get("kind", "damaged")] += 1
            if row.get("attempt", 0) or row["step"] >= step:
                continue
            if row["step"] >= step - steps:
                recent[row["step"] - step + steps] += 1
            number = self._number.get(row["shard"])
            if counts_shards and number is not None and self._of_epoch((row["step"] + 1) * batch) == epoch:
                self._count(number, row.get("row", -1))
        self._consumed = step * batch
        for bad in recent.tolist():
            self._push(batch, bad)

    def add(self, images: int, skipped: Sequence[Skipped]) -> None:
        """Counts one step: how many images it took over all ranks, and what this rank skipped."""
        if self._of_epoch(self._consumed) != self._of_epoch(self._consumed + images):  # of the last image of a step
            self._bad[:] = 0
            self._rows_bad.clear()
        self._consumed += images
        self._images += images
        for one in skipped:
            self._new[SKIP_REASONS.index(one.kind)] += 1
            if one.attempt == 0:
                self._new[-2] += 1
                self._count(self._number[one.shard], one.row)

    def check(self) -> None:
        """Raises BadDataError on every rank alike when a limit is passed. All ranks call it at the same step."""
        half = np.maximum(self._rows / 2, LEAST_IN_SHARD - 1) / self._ranks  # one of the ranks has its part of the half
        self._new[-1] = int((self._bad > half).any())
        new = self._over_ranks(self._new.copy())
        self._new[:] = 0
        for kind, count in zip(SKIP_REASONS, new.tolist(), strict=False):
            self.by_kind[kind] += count
        self._push(self._images, int(new[-2]))
        self._images = 0
        images, bad = self._in_window.tolist()
        if bad >= LEAST_SEEN and bad > self._max * images:
            raise BadDataError(
                f"{bad} of the last {images} images are bad ({bad / images:.1%}), more than data.max_bad="
                f"{self._max:.6g}; {self._advice()}"
            )
        if new[-1]:
            total = self._over_ranks(self._bad.copy())
            over = (2 * total > self._rows) & (total >= LEAST_IN_SHARD)
            for shard in np.flatnonzero(over).tolist():  # the same on all ranks
                total[shard] = self._distinct(shard)
            over = (2 * total > self._rows) & (total >= LEAST_IN_SHARD)
            if over.any():
                worst = int(np.argmax(np.where(over, total / self._rows, 0)))
                raise BadDataError(
                    f"{total[worst]} of the {self._rows[worst]} images in {self._paths[worst]} are bad, more than half; "
                    + self._advice()
                )

    def _count(self, shard: int, row: int) -> None:
        """Counts a bad row. row: -1 in the list of a run of long ago, which did not tell it, so that it counts
        each time."""
        if row < 0 or (shard, row) not in self._rows_bad:
            self._rows_bad.add((shard, row))
            self._bad[shard] += 1

    def _distinct(self, shard: int) -> int:
        """Returns how many rows of a shard are bad over all ranks, of which two may have met the same one: 8 bytes a
        row are summed, where the sum of their counts is over the limit alone."""
        rows = np.zeros(int(self._rows[shard]) + 1, dtype=np.int64)
        known = [row for number, row in self._rows_bad if number == shard and 0 <= row < self._rows[shard]]
        rows[known] = 1
        rows[-1] = self._bad[shard] - len(known)  # those whose row is not known
        rows = self._over_ranks(rows)
        return int(min(np.count_nonzero(rows[:-1]) + rows[-1], self._rows[shard]))

    def _advice(self) -> str:
        counts = ", ".join(f"{kind} {count}" for kind, count in self.by_kind.items() if count)
        return (
            f"reasons so far: {counts}. skipped.jsonl in the run folder names each: repair the shard or take it out of "
            "data.source, go on without the named images (data.exclude=RUN/skipped.jsonl), or raise data.max_bad"
        )

    def _of_epoch(self, images: int) -> int:
        return (images - 1) // max(1, int(self._rows.sum()))

    def _push(self, images: int, bad: int) -> None:
        self._window.append((images, bad))
        self._in_window += (images, bad)
        while self._in_window[0] - self._window[0][0] >= WINDOW:
            self._in_window -= self._window.popleft()
