"""Exports a state dict that torchvision's own network of the family loads with strict=True, written as a `.pth`.

Surprising:
- What torchvision has of a family, and how the tensors are called there, says the family's file in `seer/models/families`.
- torchvision's networks end in a classifier that a backbone has not: set `model.fc = torch.nn.Identity()` before loading.
- The file's hash lies beside it, in FILE.json, by which `weights=` refuses a damaged one; torchvision does not read it.
- The file appears only after it was read back into torchvision and gave the same features.

Legend: N images, S side.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seer.export import parity
from seer.export.targets import of_library
from seer.models.bundle import plain
from seer.models.families.family import Network, Torchvision
from seer.models.stored_hash import beside, described


def export(backbone: Network, card: Mapping[str, Any], output: Path, images: Tensor) -> dict[str, Any]:
    """Writes `output` (a `.pth` or `.pt` file, else a folder that gets `torchvision.pth`), checked in torchvision.

    Args:
        backbone: any device; read, not changed.
        card: not stored, since a state dict has no room for it; returned in the result.
        output: file or folder; a file there is replaced.
        images: [N, 3, S, S], normalized, for the comparison of features in eval mode.

    Returns `file`, `parity` (largest difference over largest feature), `tolerance`, `images`, `card`, and the shape
    in torchvision's words: `block_params` (of a RegNet) or `resnet` (depths, groups, width_per_group).

    Raises RequestError where torchvision has no such network, ValueError for features that differ by more than 1e-5, and for
    a module that is no plain network of its family any more.
    """
    theirs: Torchvision = of_library("torchvision", backbone)
    output = Path(output)
    target = output if output.suffix in (".pth", ".pt") else output / "torchvision.pth"
    expected = parity.reference(backbone, images)
    state = {key: plain(tensor).clone() for key, tensor in theirs.rename(backbone.state_dict()).items()}

    target.parent.mkdir(parents=True, exist_ok=True)
    unchecked = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    unchecked_hash = beside(unchecked)
    try:
        with open(unchecked, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        found = parity.features(torchvision_model(backbone, unchecked), images)
        difference = parity.relative_difference(found, expected)
        parity.require(difference, tolerance=parity.TOLERANCE, what="torchvision's model with the exported weights")
        unchecked_hash.write_text(described(unchecked, target.name), encoding="utf-8")
        beside(target).unlink(missing_ok=True)  # so a crash leaves weights without a hash, not with another's
        os.replace(unchecked, target)
        os.replace(unchecked_hash, beside(target))
    finally:
        unchecked.unlink(missing_ok=True)
        unchecked_hash.unlink(missing_ok=True)
    return {
        "file": str(target),
        "parity": difference,
        "tolerance": parity.TOLERANCE,
        "pictures": len(images),
        **theirs.shown(backbone),
        "card": dict(card),
    }


def torchvision_model(backbone: Network, weights: Path) -> nn.Module:
    """Returns torchvision's network of the backbone's shape in eval mode, without classifier, loaded strictly
    from `weights`."""
    with torch.device("meta"):
        model = of_library("torchvision", backbone).network(backbone)
    model.fc = nn.Identity()
    state = torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()
