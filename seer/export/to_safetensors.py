"""Exports a bundle folder: `backbone.safetensors`, `bundle.json` and a model card, our own format, with
everything kept.

Surprising: the bundle is written in one stroke and then read back from the disk through `load_backbone`, the same road
that every later user takes; when that gives other features, it is removed again.

Legend: N images, S side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from seer.export import model_card, parity
from seer.models.bundle import BUNDLE_WEIGHTS, DESCRIPTION, write_bundle
from seer.models.families.family import Network
from seer.models.pretrained import load_backbone


def export(backbone: Network, card: Mapping[str, Any], output: Path, images: Tensor) -> dict[str, Any]:
    """Writes the bundle folder `output` and checks the features of what it reads back.

    Args:
        backbone: any device; read, not changed.
        card: see `seer.models.bundle.write_bundle`.
        output: the folder; a bundle there is replaced.
        images: [N, 3, S, S], normalized, for the comparison of features in eval mode.

    Returns `file` (the weights), `bundle` (the folder, with `README.md`), `parity`, `tolerance`, `images`, `card`.

    Raises ValueError for a malformed card, and for features that differ by more than 1e-5 of their largest value.
    """
    expected = parity.reference(backbone, images)
    folder = write_bundle(output, backbone, card=card)
    difference = parity.relative_difference(parity.features(load_backbone(folder), images), expected)
    try:
        parity.require(difference, tolerance=parity.TOLERANCE, what="the bundle read back")
    except ValueError:
        (folder / BUNDLE_WEIGHTS).unlink()
        (folder / DESCRIPTION).unlink()
        raise
    described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    (folder / model_card.FILE).write_text(model_card.model_card(described), encoding="utf-8")
    return {
        "file": str(folder / BUNDLE_WEIGHTS),
        "bundle": str(folder),
        "parity": difference,
        "tolerance": parity.TOLERANCE,
        "pictures": len(images),
        "card": dict(card),
    }
