"""Places in the plan to pictures. What cannot be used is replaced by a row of the same block and told, never hidden.

The stand-in is chosen by a key (`order.Plan.stand_in`), so a restart and another number of ranks choose the same one;
storage that fails is not a bad picture and stops the run. After `order.TRIES` bad rows in a row the run stops too: then
it is the data, not a picture.
"""

from collections.abc import Sequence

from seer.core import rng
from seer.core.errors import BadDataError
from seer.core.records import Picture, Skipped
from seer.data.decode import Undecodable, decode
from seer.data.order import TRIES, Places, Plan
from seer.data.shards import Shard, picture_of
from seer.data.tar import TarError


class Reader:
    """Stateless, and may be called from any thread."""

    def __init__(self, shards: Sequence[Shard], plan: Plan, seed: int):
        self.shards, self.plan = shards, plan
        self._key = rng.key(seed, "augment")

    def picture(self, places: Places, i: int) -> tuple[Picture, int, list[Skipped]]:
        """Place i: its pixels (uint8 [h, w, 3]), the key of its random draws, and what was skipped on the way."""
        skipped: list[Skipped] = []
        lane, position = int(places.lane[i]), int(places.position[i])
        for attempt in range(TRIES + 1):
            if attempt:
                places, i = self.plan.stand_in(lane, position, attempt), 0
            shard, row, epoch = int(places.shard[i]), int(places.row[i]), int(places.epoch[i])
            picture = self._try(shard, row, skipped)
            if picture is not None:
                key = rng.key(self._key, epoch, shard, row, attempt)
                return picture, key, skipped
        last = skipped[-1]
        raise BadDataError(
            f"{TRIES + 1} pictures in a row cannot be used, the last {last.member} in {last.shard}: {last.reason}; "
            "look at the data before going on"
        )

    def _try(self, shard: int, row: int, skipped: list[Skipped]) -> Picture | None:
        name = f"row {row}"
        try:
            sample = self.shards[shard].read(shard, row)
            name = sample.key
            return decode(picture_of(sample))
        except (Undecodable, TarError) as error:
            skipped.append(Skipped(str(self.shards[shard].path), name, str(error), row))
            return None
