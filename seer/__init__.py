"""SEER trains a vision backbone from images that nobody labelled or selected, and hands it over ready to fine-tune.

    import seer

    backbone = seer.load("runs/mine")      # of a run, a bundle or a file of weights, in eval mode; backbone.preprocess(image)
    run = seer.open("runs/mine")           # a run that is going or over: run.config, run.task, run.shards, run.metrics, run.step
    backbone = seer.load_backbone("file")  # of a bundle or a file of weights alone

Each is imported when it is asked for, and nothing here: torch costs seconds, and `seer --help` should not wait for it.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "load_backbone"]  # `open` is Python's own where a star imports
_HOMES = {
    "load": ("seer.run.loaded", "load"),
    "open": ("seer.run.opened", "open_run"),
    "load_backbone": ("seer.models.pretrained", "load_backbone"),
}


def __getattr__(name: str) -> Any:
    """Returns a name of the public surface. Raises AttributeError for any other."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'seer' has no attribute {name!r}; there are {', '.join(_HOMES)}, and its packages"
        )
    module, own = _HOMES[name]
    return getattr(importlib.import_module(module), own)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
