"""Makes the transform and the backbone of a config, which agree on the channels of an image.

Apart from `assemble`, because reading the weights of a run needs them as well.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from seer.core.build import build, find
from seer.core.errors import RequestError
from seer.core.log import log
from seer.core.protocols import Transform
from seer.data import transparency
from seer.data.pixels import USUAL
from seer.data.shards.shard import Shard
from seer.run.config import RunConfig


def transform(config: RunConfig) -> Transform:
    """Makes what turns images into batches. Raises RequestError, also for one that decodes in its own way and is asked for
    other pixels than the usual ones."""
    pixels = config.data.pixels
    if pixels == USUAL:
        return build("augment", config.augment)
    if "pixels" not in inspect.signature(find("augment", config.augment.get("_target_", ""))).parameters:
        raise RequestError(
            f"augment: {config.augment['_target_']} decodes images in its own way, without data.channels, data.ground and "
            "data.max_pixels; leave these as they are"
        )
    return build("augment", config.augment, pixels=pixels)


def tell(config: RunConfig, shards: Sequence[Shard] | None) -> None:
    """Says what images lose on their way into the network. shards: None for the built-in images."""
    pixels = config.data.pixels
    if pixels.channels != 3:
        log.info(
            f"data.channels={pixels.channels}: saturation, hue and grayscale, which are of three colors, are left out; each channel is "
            "normalized by its own number of augment.mean and augment.std"
        )
    if (
        shards is not None
        and "pixels" in inspect.signature(find("augment", config.augment.get("_target_", ""))).parameters
    ):
        transparency.tell(shards, pixels, "data.ground")


def backbone(config: RunConfig) -> Any:
    """Makes the backbone on as many channels as the images have. Raises RequestError."""
    channels = config.data.channels
    return build("model", config.model, device=None, **({} if channels == 3 else {"in_channels": channels}))
