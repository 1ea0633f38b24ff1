"""The named shapes: RegNetY, one row each, with explicit widths, and the two ResNets that papers compare with.

Surprising: 800MF, 4GF and 8GF exist twice. The plain names carry the shapes of pycls, ClassyVision and SEER; `_tv` ones
carry torchvision's, which rounds the same five numbers otherwise, so weights move only between equal shapes. And
`regnety_256gf` is SEER's (746 … 10444, 1.27 billion parameters), not ClassyVision's model of the same name.

Sources: 2003.13678 (200MF to 32GF), 2103.01988 (64GF to 256GF), 2202.08360 (10B). The tests rebuild every plain row
from its five numbers and count its parameters.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import torch

from seer.models.regnet import RegNet, Shape

if TYPE_CHECKING:
    from seer.core.protocols import Backbone
    from seer.models.resnet import ResNet


def _row(widths: tuple[int, ...], depths: tuple[int, ...], group_width: int) -> Shape:
    return Shape(widths, depths, (group_width,) * len(widths))


ROWS: dict[str, Shape] = {
    # name                      stage widths                depths          group width
    "regnety_200mf": _row((24, 56, 152, 368), (1, 1, 4, 7), 8),
    "regnety_400mf": _row((48, 104, 208, 440), (1, 3, 6, 6), 8),
    "regnety_600mf": _row((48, 112, 256, 608), (1, 3, 7, 4), 16),
    "regnety_800mf": _row((64, 128, 320, 768), (1, 3, 8, 2), 16),
    "regnety_800mf_tv": _row((64, 144, 320, 784), (1, 3, 8, 2), 16),
    "regnety_1_6gf": _row((48, 120, 336, 888), (2, 6, 17, 2), 24),
    "regnety_3_2gf": _row((72, 216, 576, 1512), (2, 5, 13, 1), 24),
    "regnety_4gf": _row((128, 192, 512, 1088), (2, 6, 12, 2), 64),
    "regnety_4gf_tv": _row((128, 256, 512, 1088), (2, 6, 12, 2), 64),
    "regnety_6_4gf": _row((144, 288, 576, 1296), (2, 7, 14, 2), 72),
    "regnety_8gf": _row((168, 448, 896, 2016), (2, 4, 10, 1), 56),
    "regnety_8gf_tv": _row((224, 448, 896, 2016), (2, 4, 10, 1), 56),
    "regnety_12gf": _row((224, 448, 896, 2240), (2, 5, 11, 1), 112),
    "regnety_16gf": _row((224, 448, 1232, 3024), (2, 4, 11, 1), 112),
    "regnety_32gf": _row((232, 696, 1392, 3712), (2, 5, 12, 1), 232),
    "regnety_64gf": _row((328, 984, 1968, 4920), (2, 5, 12, 1), 328),
    "regnety_128gf": _row((528, 1056, 2904, 7392), (2, 7, 17, 1), 264),
    "regnety_256gf": _row((746, 1492, 4103, 10444), (2, 7, 17, 1), 373),
    "regnety_10b": _row((2020, 4040, 11110, 28280), (2, 7, 17, 1), 1010),
}


RESNETS: dict[str, dict[str, Any]] = {
    "resnet_50": {"depths": [3, 4, 6, 3], "groups": 1, "width_per_group": 64},
    "resnext_101_32x8d": {"depths": [3, 4, 23, 3], "groups": 32, "width_per_group": 8},
}


def names() -> list[str]:
    """Every name that `build` knows, small to large, RegNetY before ResNet."""
    return [*ROWS, *RESNETS]


def build(name: str, *, stem_stride: int = 2, device: torch.device | str | None = None) -> Backbone:
    """The named backbone, freshly initialised: [B, 3, H, W] -> [B, C].

    `device="meta"` (or `with torch.device("meta")`) builds the largest one in a fraction of a second without memory;
    follow with `to_empty` and `init_weights`. Raises ValueError for an unknown name, with the nearest known one, and for
    another stem stride than 2 where the network has no such choice.
    """
    if name in RESNETS:
        if stem_stride != 2:
            raise ValueError(
                f"stem_stride={stem_stride}: the stem of {name} is fixed; take a RegNetY for small pictures"
            )
        return of({"family": "resnet", **RESNETS[name]}, device=device)
    shape = ROWS.get(name)
    if shape is None:
        near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"no model is called {name!r}; the nearest name is {near!r}. seer.models.zoo.names() lists all "
            f"{len(names())}: {', '.join(names())}"
        )
    return RegNet(shape.widths, shape.depths, shape.group_widths, stem_stride=stem_stride, device=device)


def name_of(architecture: dict[str, Any]) -> str | None:
    """The zoo's name for a backbone's `architecture`, whatever its stem stride, or None when no row has that shape."""
    if architecture.get("family") == "resnet":
        plain = {key: value for key, value in architecture.items() if key != "family"}
        return next((name for name, shape in RESNETS.items() if shape == plain), None)
    if architecture["se_ratio"] != 0.25 or architecture["stem_width"] != 32:
        return None
    wanted = Shape(*(tuple(architecture[key]) for key in ("widths", "depths", "group_widths")))
    return next((name for name, shape in ROWS.items() if shape == wanted), None)


def of(architecture: dict[str, Any], device: torch.device | str | None = None) -> RegNet | ResNet:
    """The backbone that an `architecture` describes, freshly initialised.

    One without a family is a RegNet's: bundles of the first version say no more.
    """
    family = architecture.get("family", "regnet")
    arguments = {key: value for key, value in architecture.items() if key != "family"}
    if family not in ("regnet", "resnet"):
        raise ValueError(
            f"no family of networks is called {family!r}; this version knows regnet and resnet: upgrade it"
        )
    if family == "regnet":
        return RegNet(**arguments, device=device)
    from seer.models.resnet import ResNet  # torchvision's models take 1.4 s to import

    return ResNet(**arguments, device=device)
