"""Looks at a few images before they are used, for drawings on a transparent ground that vanish on the one they are laid on.

Surprising: at most MOST_READ images are read and MOST_DECODED decoded, spread evenly, so that the start of a run costs no
more than a tenth of a second; a set in which few images have transparency may go unnoticed.
"""

from collections.abc import Sequence
from dataclasses import replace

from seer.core.errors import StorageError
from seer.core.log import log
from seer.data.decode import Undecodable, decode
from seer.data.formats import may_be_transparent
from seer.data.pixels import Pixels
from seer.data.shards.shard import Shard, image_of
from seer.data.shards.tar import TarError

MOST_READ = 64
MOST_DECODED = 8


def vanishing(shards: Sequence[Shard], pixels: Pixels) -> tuple[int, int]:
    """Returns of how many images with transparency nothing is seen on the ground, and how many there were among those that
    were looked at."""
    rows = [
        (s, r)
        for s, shard in enumerate(shards)
        for r in range(0, len(shard), max(1, len(shard) * len(shards) // MOST_READ))
    ]
    other = replace(pixels, ground=255 - pixels.ground if pixels.ground != 128 else 0)
    hidden = transparent = 0
    for shard, row in rows[:: max(1, len(rows) // MOST_READ)]:
        if transparent == MOST_DECODED:
            break
        try:
            data = image_of(shards[shard].read(shard, row))
            if not may_be_transparent(data):
                continue
            image, elsewhere = (decode(data, None, one) for one in (pixels, other))
        except (Undecodable, TarError, StorageError):  # told where they are used
            continue
        if (image != elsewhere).any():
            transparent += 1
            hidden += int(image.min() == image.max())
    return hidden, transparent


def tell(shards: Sequence[Shard], pixels: Pixels, word: str) -> None:
    """Warns of images on which nothing is seen. word: the one that sets the ground."""
    if pixels.channels in (1, 3):
        hidden, transparent = vanishing(shards, pixels)
        if hidden:
            log.warning(
                f"{hidden} of {transparent} images with transparency that were looked at show nothing on their ground, which is "
                f"gray level {pixels.ground}: {word}={'white' if pixels.ground < 128 else 'black'} sets another"
            )
