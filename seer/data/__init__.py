"""Takes samples from tar shards to batches of views; the position of a run is one integer.

`open_shards`, `write_shards`, `Plan` and `MultiCrop` are had from here, too; each is imported when it is asked for.
"""

import importlib
from typing import Any

_HOMES = {
    "open_shards": "seer.data.shards.open",
    "write_shards": "seer.data.shards.writer",
    "Plan": "seer.data.order",
    "MultiCrop": "seer.data.transforms.multi_crop",
}


def __getattr__(name: str) -> Any:
    """Returns a name of the public surface. Raises AttributeError for any other."""
    if name not in _HOMES:
        raise AttributeError(f"module 'seer.data' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
