"""Describes the networks of timm and torchvision that are taken by name as they are, a family each.

An architecture is the library's name of the network. The network is `models/library_network.py`, imported when one is built.
They go to no other library's code: what was built of it has the names of its features. Bundles and programs hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from seer.models.families.family import Family

if TYPE_CHECKING:
    from seer.models.library_network import LibraryNetwork


def make(library: str, **architecture: Any) -> LibraryNetwork:
    """Returns the network, freshly initialized. Raises RequestError."""
    from seer.models.library_network import LibraryNetwork

    return LibraryNetwork(library, **architecture)


def _features(library: str, architecture: Mapping[str, Any]) -> int:
    return make(library, network=architecture["network"], device="meta").feature_dim


def _row(library: str) -> Family:
    return Family(
        name=library,
        title=f"network of {library}'s",
        make=partial(make, library),
        keys=("network",),
        describe=lambda architecture: f"{library}:{architecture['network']}",
        features=partial(_features, library),
        borrowed=True,
    )


TIMM, TORCHVISION = _row("timm"), _row("torchvision")
