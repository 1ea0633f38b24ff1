"""Exports a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads: `model.safetensors` and
`config.json`.

Surprising:
- timm builds widths from five numbers under a name and takes no widths, so only rows of the zoo that timm names too can be
  exported; whether timm's model of that name has exactly our tensors is checked, shape by shape, before anything is loaded.
- The config carries the normalization and the size, which `timm.data.resolve_model_data_config(model)` then finds.
- The two files appear in the folder only after timm itself loaded them, strictly, and gave the same features.

Legend: N images, S side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seer.core.errors import RequestError
from seer.export import parity
from seer.export.checked_folder import write_checked
from seer.export.optional import needs
from seer.export.targets import of_library
from seer.models.bundle import IMAGENET_MEAN, IMAGENET_STD, check_weights, plain
from seer.models.families.family import Network, Timm
from seer.models.pretrained import MODEL_FILE
from seer.models.zoo import name_of

CONFIG = "config.json"


def export(backbone: Network, card: Mapping[str, Any], output: Path, images: Tensor) -> dict[str, Any]:
    """Writes the folder `output`, checked in timm.

    Args:
        backbone: any device; read, not changed.
        card: its `mean`, `std` and `input_size` go into the config.
        output: the folder; files of these names there are replaced.
        images: [N, 3, S, S], normalized, for the comparison of features in eval mode.

    Returns `file` (the weights), `timm` (the model's name there), `parity`, `tolerance`, `images`, `card`.

    Raises RequestError where timm is not installed or has no such shape, and ValueError for features that differ by more
    than 1e-5 of their largest value.
    """
    theirs: Timm = of_library("timm", backbone)
    model, name = _empty_timm_model(backbone, theirs)
    output = Path(output)
    if output.suffix in (".pth", ".pt", ".safetensors"):
        raise RequestError(f"output={output}: to=timm writes a folder with {MODEL_FILE} and {CONFIG}; name a folder")
    state = {key: plain(tensor).clone() for key, tensor in theirs.rename(backbone.state_dict()).items()}
    check_weights(state, model.state_dict(), what=f"these weights under timm's names, for its {name},")
    expected = parity.reference(backbone, images)
    difference = write_checked(
        output,
        state,
        {CONFIG: _config(backbone, card, name, theirs)},
        lambda folder: parity.features(timm_model(folder), images),
        expected,
        tolerance=parity.TOLERANCE,
        what=f"timm's {name} with the exported weights",
    )
    return {
        "file": str(output / MODEL_FILE),
        "timm": name,
        "parity": difference,
        "tolerance": parity.TOLERANCE,
        "pictures": len(images),
        "card": dict(card),
    }


def timm_model(folder: Path) -> nn.Module:
    """Returns what timm makes of the folder, in eval mode: [N, 3, S, S] -> [N, C]. torch's default generator is
    left alone."""
    import timm

    with torch.random.fork_rng(devices=[]):
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def _empty_timm_model(backbone: Network, theirs: Timm) -> tuple[nn.Module, str]:
    """Returns (timm's model of this shape on meta, its name). Raises RequestError."""
    name = theirs.names[str(name_of(backbone.architecture))]
    needs("timm", ("timm",), install="timm")
    import timm

    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, in_chans=_channels(backbone)), name


def _channels(backbone: Network) -> int:
    return backbone.architecture.get("in_channels", 3)


def _config(backbone: Network, card: Mapping[str, Any], name: str, theirs: Timm) -> str:
    side, channels = card.get("input_size") or 224, _channels(backbone)
    mean, std = (one if channels == 3 else (sum(one) / 3,) * channels for one in (IMAGENET_MEAN, IMAGENET_STD))
    described = {
        "architecture": name,
        "num_classes": 0,
        "num_features": backbone.feature_dim,
        **({} if channels == 3 else {"model_args": {"in_chans": channels}}),
        "pretrained_cfg": {
            "input_size": [channels, side, side],
            "mean": list(card.get("mean") or mean),
            "std": list(card.get("std") or std),
            "crop_pct": 224 / 256,  # how `seer evaluate` cuts: the shorter side to size * 256 / 224
            "num_classes": 0,
            "first_conv": theirs.first_conv,
            "classifier": theirs.classifier,
        },
    }
    return json.dumps(described, indent=2) + "\n"
