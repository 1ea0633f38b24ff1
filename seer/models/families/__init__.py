"""Lists the families of networks, one row each: a new one is a file in this folder and a line in `FAMILIES`.

No other file of SEER asks what kind of network it holds: zoo, bundles, files of other libraries and exports look here, and
recompute, FSDP, compile and the count of memory ask the network for its blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seer.models.families import library, regnet, resnet
from seer.models.families.family import Family

FAMILIES: dict[str, Family] = {
    row.name: row for row in (regnet.FAMILY, resnet.FAMILY, library.TIMM, library.TORCHVISION)
}
FIRST = regnet.FAMILY.name  # of an architecture that says none, as in bundles of the first version


def register(family: Family) -> None:
    """Adds a family that lies outside SEER, for this process. Raises ValueError for a name that is taken."""
    taken = {name for row in FAMILIES.values() for name in (row.name, *row.zoo)} & {family.name, *family.zoo}
    if taken:
        raise ValueError(
            f"the family {family.name!r} brings names that are taken: {', '.join(sorted(taken))}; rename them"
        )
    FAMILIES[family.name] = family


def of(architecture: Mapping[str, Any]) -> Family:
    """Returns the row of an architecture. Raises ValueError for a family that this version does not know."""
    name = architecture.get("family", FIRST)
    if not isinstance(name, str) or name not in FAMILIES:  # a bundle is a stranger's word: it may be of any type
        raise ValueError(
            f"no family of networks is called {name!r}; this version knows {', '.join(FAMILIES)}: upgrade it"
        )
    return FAMILIES[name]


def of_model(model: Any) -> Family:
    """Returns the row of a network, by the architecture that it tells. Raises ValueError."""
    architecture = getattr(model, "architecture", None)
    if not isinstance(architecture, Mapping):
        raise ValueError(f"{type(model).__name__} tells no architecture: give a network of {', '.join(FAMILIES)}")
    return of(architecture)


def checked(architecture: Any, *, what: str) -> dict[str, Any]:
    """Returns the entries of an architecture that its family builds from. Raises ValueError that names those that lack."""
    architecture = architecture if isinstance(architecture, dict) else {}
    absent = [key for key in of(architecture).keys if key not in architecture]
    if absent:
        raise ValueError(f"the description of {what} lacks architecture.{', architecture.'.join(absent)}")
    row = of(architecture)
    return {
        key: architecture[key] for key in ("family", *row.keys, *row.optional, "in_channels") if key in architecture
    }
