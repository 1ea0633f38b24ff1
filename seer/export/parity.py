"""Measures how far an exported backbone's features are from the original's; every exporter does so on what it wrote.

Surprising: the original is copied to the CPU in float32 first, in eval mode, so that the comparison means the same
wherever the backbone lives, TF32 and autocast stay out of it, and its own mode and device are left alone.

Legend: N images, S side, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from seer.models.families.family import Network
from seer.models.numbers import check_numbers

TOLERANCE = 1e-5


def features(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Returns [N, C] float32 of [N, 3, S, S], normalized float, by a model on the CPU that is in eval mode."""
    with torch.no_grad():
        return model(images.detach().to("cpu", torch.float32))


def reference(backbone: Network, images: Tensor) -> Tensor:
    """Returns the original's own features [N, C], from a float32 copy on the CPU. Raises ValueError without any
    image, and for weights that are no usable numbers."""
    check_numbers(backbone.state_dict(), what="the backbone")
    channels = backbone.architecture.get("in_channels", 3)
    if images.ndim != 4 or images.shape[0] < 1 or images.shape[1] != channels:
        raise ValueError(f"the parity check wants images [N, {channels}, S, S] with N >= 1, got {list(images.shape)}")
    return features(copy.deepcopy(backbone).to("cpu", torch.float32).eval(), images)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Returns the largest absolute difference over the largest absolute wanted value; nan or inf if a value is
    not finite."""
    if found.shape != expected.shape:
        raise ValueError(f"features {list(found.shape)} where {list(expected.shape)} were wanted")
    difference = (found.double() - expected.double()).abs().max().item()
    largest = expected.double().abs().max().item()
    return difference / largest if largest else difference


def require(parity: float, *, tolerance: float, what: str) -> None:
    """Raises ValueError when the parity is above its tolerance or not a number."""
    if not parity <= tolerance:
        raise ValueError(
            f"{what} gives features that differ from the original's by {parity:.3g} of their largest value, above "
            f"{tolerance:.3g}; nothing was kept. Non-finite weights, or a defect in the translation"
        )
