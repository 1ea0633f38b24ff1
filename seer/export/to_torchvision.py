"""A state dict that torchvision's `RegNet` or `ResNet` loads with strict=True, written as a `.pth`.

Surprising:
- torchvision's builders (`regnet_y_16gf` …) compute widths by another rounding rule than SEER's, so a model of exactly
  our widths is made from `BlockParams` with explicit lists; the result's `block_params` are those lists.
- torchvision's stem has a fixed stride of 2, and its networks end in a classifier that a backbone has not: set
  `model.fc = torch.nn.Identity()` before loading.
- A ResNet's tensors have torchvision's names already.
- The file appears only after it was read back into torchvision and gave the same features.

Legend: N pictures, S side.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seer.export import parity
from seer.models.bundle import plain
from seer.models.pretrained import to_torchvision_names
from seer.models.regnet import RegNet

if TYPE_CHECKING:
    from seer.models.resnet import ResNet


def export(backbone: RegNet | ResNet, card: Mapping[str, Any], output: Path, pictures: Tensor) -> dict[str, Any]:
    """Writes `output` (a `.pth` or `.pt` file, else a folder that gets `torchvision.pth`), checked in torchvision.

    Args:
        backbone: any device; read, not changed.
        card: not stored, since a state dict has no room for it; returned in the result.
        output: file or folder; a file there is replaced.
        pictures: [N, 3, S, S], normalised, for the comparison of features in eval mode.

    Returns `file`, `parity` (largest difference over largest feature), `tolerance`, `pictures`, `block_params` (of a RegNet) or
    `resnet` (depths, groups, width_per_group), `card`.

    Raises ValueError for a stem stride other than 2, for features that differ by more than 1e-5, and for a module that
    is no plain `RegNet` any more.
    """
    if isinstance(backbone, RegNet) and backbone.stem_stride != 2:
        raise ValueError(
            f"stem_stride={backbone.stem_stride}: torchvision's RegNet has a fixed stride-2 stem and would compute "
            "other features from these weights. to=safetensors keeps the stride"
        )
    output = Path(output)
    target = output if output.suffix in (".pth", ".pt") else output / "torchvision.pth"
    wanted = parity.reference(backbone, pictures)
    named = to_torchvision_names(backbone.state_dict()) if isinstance(backbone, RegNet) else backbone.state_dict()
    state = {key: plain(tensor).clone() for key, tensor in named.items()}

    target.parent.mkdir(parents=True, exist_ok=True)
    unchecked = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(unchecked, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        found = parity.features(torchvision_model(backbone, unchecked), pictures)
        difference = parity.relative_difference(found, wanted)
        parity.require(difference, tolerance=parity.TOLERANCE, what="torchvision's model with the exported weights")
        os.replace(unchecked, target)
    finally:
        unchecked.unlink(missing_ok=True)
    return {
        "file": str(target),
        "parity": difference,
        "tolerance": parity.TOLERANCE,
        "pictures": len(pictures),
        **(
            {"block_params": _block_params(backbone)}
            if isinstance(backbone, RegNet)
            else {"resnet": backbone.architecture}
        ),
        "card": dict(card),
    }


def torchvision_model(backbone: RegNet | ResNet, weights: Path) -> nn.Module:
    """torchvision's network of the backbone's shape in eval mode, without classifier, loaded strictly from `weights`."""
    with torch.device("meta"):
        model = _torchvision_regnet(backbone) if isinstance(backbone, RegNet) else _torchvision_resnet(backbone)
    model.fc = nn.Identity()
    state = torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _torchvision_regnet(backbone: RegNet) -> nn.Module:
    from torchvision.models import regnet

    return regnet.RegNet(regnet.BlockParams(**_block_params(backbone)), stem_width=backbone.stem_width)


def _torchvision_resnet(backbone: ResNet) -> nn.Module:
    from torchvision.models import resnet

    shape = {"groups": backbone.groups, "width_per_group": backbone.width_per_group}
    return resnet.ResNet(resnet.Bottleneck, list(backbone.depths), **shape)


def _block_params(backbone: RegNet) -> dict[str, Any]:
    stages = len(backbone.widths)
    return {
        "depths": list(backbone.depths),
        "widths": list(backbone.widths),
        "group_widths": list(backbone.group_widths),
        "bottleneck_multipliers": [1.0] * stages,
        "strides": [2] * stages,
        "se_ratio": backbone.se_ratio,
    }
