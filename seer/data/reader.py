"""Places in the plan to pictures. What cannot be used is replaced by a row of the same block and told, never hidden.

The stand-in is chosen by a key (`order.Plan.stand_in`), so a restart and another number of ranks choose the same one;
storage that fails is not a bad picture and stops the run. After `order.TRIES` bad rows in a row the run stops too: then
it is the data, not a picture. An excluded row takes the same way as a bad one, but is not read, told or counted.
"""

from collections.abc import Sequence

from seer.core import rng
from seer.core.errors import BadDataError
from seer.core.records import Picture, Skipped
from seer.data.decode import Undecodable, decode
from seer.data.ledger import shown
from seer.data.order import TRIES, Places, Plan
from seer.data.quarantine import Excluded
from seer.data.shards import Shard, picture_of
from seer.data.tar import TarError

MOST_PROBES = 2000  # for one position, most of them excluded


class Reader:
    """Stateless, and may be called from any thread. exclude: rows that are never read."""

    def __init__(self, shards: Sequence[Shard], plan: Plan, seed: int, exclude: Excluded | None = None):
        self.shards, self.plan, self.exclude = shards, plan, exclude or Excluded()
        self._key = rng.key(seed, "augment")

    def picture(self, places: Places, i: int) -> tuple[Picture, int, list[Skipped]]:
        """Place i: its pixels (uint8 [h, w, 3]), the key of its random draws, and what was skipped on the way."""
        skipped: list[Skipped] = []
        lane, position = int(places.lane[i]), int(places.position[i])
        for attempt in range(MOST_PROBES):
            if attempt:
                places, i = self.plan.stand_in(lane, position, attempt), 0
            shard, row, epoch = int(places.shard[i]), int(places.row[i]), int(places.epoch[i])
            if (shard, row) in self.exclude:
                continue
            picture = self._try(shard, row, attempt, skipped)
            if picture is not None:
                key = rng.key(self._key, epoch, shard, row, attempt)
                return picture, key, skipped
            if len(skipped) > TRIES:
                last = skipped[-1]
                raise BadDataError(
                    f"{len(skipped)} pictures in a row cannot be used, the last {shown(last.member)} in {last.shard}: "
                    f"{last.reason}; look at the data before going on"
                )
        raise BadDataError(
            f"{MOST_PROBES} places tried for one picture of lane {lane}, {MOST_PROBES - len(skipped)} of them excluded; "
            f"data.exclude names {len(self.exclude)} pictures: leave whole shards out of data.source instead"
        )

    def _try(self, shard: int, row: int, attempt: int, skipped: list[Skipped]) -> Picture | None:
        name = f"row {row}"
        try:
            sample = self.shards[shard].read(shard, row)
            name = sample.key
            return decode(picture_of(sample))
        except (Undecodable, TarError) as error:
            skipped.append(Skipped(str(self.shards[shard].path), name, str(error), row, error.kind, attempt))
            return None
