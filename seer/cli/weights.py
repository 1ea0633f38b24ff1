"""`weights=…` -> a backbone and what is known of it."""

from pathlib import Path
from typing import Any

from seer.models.bundle import IMAGENET_MEAN, IMAGENET_STD, WEIGHTS, card_of, read_bundle
from seer.models.pretrained import load_backbone
from seer.models.regnet import RegNet


def load(path: str) -> tuple[RegNet, dict[str, Any]]:
    """The backbone of a run, a bundle or a file of weights, and its card (ImageNet's normalisation where none is told)."""
    for folder in (Path(path), Path(path) / "bundle"):
        if (folder / WEIGHTS).is_file():
            backbone, described = read_bundle(folder)
            return backbone, card_of(described)  # type: ignore[return-value]
    card = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "input_size": 224}
    return load_backbone(path), card  # type: ignore[return-value]
