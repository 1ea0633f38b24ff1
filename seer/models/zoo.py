"""Names the shapes of all families: RegNetY with explicit widths, and the two ResNets that papers compare with.

Surprising: 800MF, 4GF and 8GF exist twice. The plain names carry the shapes of pycls, ClassyVision and SEER; `_tv` ones
carry torchvision's, which rounds the same five numbers otherwise, so weights move only between equal shapes. And
`regnety_256gf` is SEER's (746 … 10444, 1.27 billion parameters), not ClassyVision's model of the same name.

The rows lie with their families, in `seer/models/families`. Sources: 2003.13678 (200MF to 32GF), 2103.01988 (64GF to 256GF),
2202.08360 (10B). The tests rebuild every plain row from its five numbers and count its parameters.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch

from seer.models import families
from seer.models.families.family import Network

CHANNELS = "in_channels"  # of an image, said where there are not three
STRIDE = "stem_stride"  # of a network by name it is the caller's choice


def names() -> list[str]:
    """Returns every name that `build` knows, small to large, RegNetY before ResNet."""
    return [name for family in families.FAMILIES.values() for name in family.zoo]


def build(
    name: str, *, stem_stride: int = 2, in_channels: int = 3, device: torch.device | str | None = None
) -> Network:
    """Builds the named backbone, freshly initialized: [B, in_channels, H, W] -> [B, C].

    `device="meta"` (or `with torch.device("meta")`) builds the largest one in a fraction of a second without memory;
    follow with `to_empty` and `init_weights`. Raises ValueError for an unknown name, with the nearest known one, and for
    another stem stride than 2 where the network has no such choice.

    name         a row of docs/zoo.md; chosen by model=NAME, or timm:NAME, torchvision:NAME for a network of theirs
    stem_stride  1 or 2; 1 doubles every map of a RegNetY, for images of about 32 pixels
    """
    channels = {} if in_channels == 3 else {CHANNELS: in_channels}
    library, colon, network = str(name).partition(":")
    if colon and library in families.FAMILIES and families.FAMILIES[library].borrowed:
        if stem_stride != 2:
            raise ValueError(f"stem_stride={stem_stride}: the stem of {name} is fixed; take a RegNetY for small images")
        return families.FAMILIES[library].build({"network": network, **channels}, device)
    family = next((row for row in families.FAMILIES.values() if name in row.zoo), None)
    if family is None:
        near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"no model is called {name!r}; the nearest name is {near!r}. seer.models.zoo.names() lists all "
            f"{len(names())}: {', '.join(names())}"
        )
    if STRIDE in family.keys:
        return family.build({**family.zoo[name], STRIDE: stem_stride, **channels}, device)
    if stem_stride != 2:
        raise ValueError(f"stem_stride={stem_stride}: the stem of {name} is fixed; take a RegNetY for small images")
    return family.build({**family.zoo[name], **channels}, device)


def name_of(architecture: Mapping[str, Any]) -> str | None:
    """Returns the zoo's name for a backbone's `architecture`, whatever its stem stride and channels, or None when no row has
    that shape."""
    family = families.of(architecture)
    if family.borrowed:
        return f"{family.name}:{architecture['network']}"
    shape = {key: value for key, value in family.arguments(architecture).items() if key not in (STRIDE, CHANNELS)}
    return next((name for name, row in family.zoo.items() if row == shape), None)


def features_of(name: str) -> int:
    """Returns how many numbers the named backbone makes of an image, without building it."""
    row = next(row for row in families.FAMILIES.values() if name in row.zoo)
    return row.features(row.zoo[name])


def of(architecture: Mapping[str, Any], device: torch.device | str | None = None) -> Network:
    """Builds the backbone that an `architecture` describes, freshly initialized. Raises ValueError for a family
    unknown here."""
    return families.of(architecture).build(architecture, device)
