"""Takes places in the plan to decoded samples. What cannot be used is replaced by a row of the same block and
told, never hidden.

The stand-in is chosen by a key (`order.Plan.stand_in`), so a restart and another number of ranks choose the same one;
for one place no row is tried twice. Storage that fails is not a bad image and stops the run. After MOST_BAD bad rows in
a row the run stops too, or after all rows where there are fewer: then it is the data, not an image. An excluded row takes
the same way as a bad one, but is not read, told or counted.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from seer.core import rng
from seer.core.errors import BadDataError
from seer.core.records import Decoded, Skipped
from seer.data.decode import Undecodable
from seer.data.ledger import shown
from seer.data.order import Places, Plan
from seer.data.quarantine import Excluded
from seer.data.shards.folder import file_name
from seer.data.shards.shard import Shard
from seer.data.shards.tar import TarError

Decode = Callable[..., Decoded]  # (sample, scratch=…)
MOST_BAD = 32  # in a row, most of them from anywhere (`order.TRIES`): the limits of the ledger are reached long before
MOST_PROBES = 2000  # for one position, most of them excluded


class Reader:
    """Reads samples. Stateless, and may be called from any thread. exclude: rows that are never read.

    fatal: rows (shard, row) that are bad because decoding them ends a process, and why. reading: told (lane, shard, row,
    False) before each is read, with True before it is decoded.
    """

    def __init__(self, shards: Sequence[Shard], plan: Plan, seed: int, exclude: Excluded | None = None):
        self.shards, self.plan, self.exclude = shards, plan, exclude or Excluded()
        self.fatal: dict[tuple[int, int], str] = {}
        self.reading: Callable[[int, int, int, bool], None] | None = None
        self._key = rng.key(seed, "augment")

    def keys(self, places: Places) -> np.ndarray:
        """Returns the keys of the random draws of the images that are due. uint64 [b]."""
        return rng.sub_keys(self._key, places.epoch, places.shard, places.row, np.zeros_like(places.row))

    def read(
        self, places: Places, i: int, decode: Decode, scratch: np.ndarray | None = None
    ) -> tuple[Decoded, int | None, list[Skipped]]:
        """Returns, for place i, the fields of its sample as `decode` gives them, the key of its draws if
        another one stands in (else it is that of `keys`), and what was skipped on the way. decode, scratch: of
        `protocols.Transform.decode`; scratch is overwritten by the next one. Raises BadDataError, which holds
        what was skipped."""
        skipped: list[Skipped] = []
        lane, position = int(places.lane[i]), int(places.position[i])
        probes = min(MOST_PROBES, self.plan.total)
        for attempt in range(probes):
            if attempt:
                places, i = self.plan.stand_in(lane, position, attempt), 0
            shard, row, epoch = int(places.shard[i]), int(places.row[i]), int(places.epoch[i])
            if (shard, row) in self.exclude:
                continue
            decoded = self._try(lane, shard, row, attempt, skipped, partial(decode, scratch=scratch))
            if decoded is not None:
                key = rng.key(self._key, epoch, shard, row, attempt) if attempt else None
                return decoded, key, skipped
            if len(skipped) == MOST_BAD:
                last = skipped[-1]
                raise BadDataError(
                    f"{MOST_BAD} images in a row cannot be used, the last {shown(last.member)} in {last.shard}: {last.reason}; "
                    "skipped.jsonl in the run folder names them: look at the data before going on",
                    skipped,
                )
        excluded = probes - len(skipped)
        if probes == self.plan.total:
            bad = (
                f"{len(skipped)} are bad, the last {shown(skipped[-1].member)} in {skipped[-1].shard}: {skipped[-1].reason}; "
                if skipped
                else ""
            )
            left_out = f"{len(self.exclude)} images are named by data.exclude or have no label; " if excluded else ""
            raise BadDataError(
                f"none of the {probes} images of data.source can be used: {bad}{left_out}give other data", skipped
            )
        raise BadDataError(
            f"{probes} places tried for one image of lane {lane}, {excluded} of them excluded; "
            f"{len(self.exclude)} images are named by data.exclude or have no label: leave whole shards out of data.source "
            "instead",
            skipped,
        )

    def _try(
        self, lane: int, shard: int, row: int, attempt: int, skipped: list[Skipped], decode: Decode
    ) -> Decoded | None:
        name = f"row {row}"
        try:
            if self.reading:
                self.reading(lane, shard, row, False)
            sample = self.shards[shard].read(shard, row)
            name = sample.key
            if (shard, row) in self.fatal:
                raise Undecodable(self.fatal[shard, row])
            if self.reading:
                self.reading(lane, shard, row, True)
            return decode(sample)
        except (Undecodable, TarError) as error:
            name = file_name(self.shards[shard], row) or name
            skipped.append(Skipped(str(self.shards[shard].path), name, str(error), row, error.kind, attempt))
            return None
