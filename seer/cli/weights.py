"""`weights=…` -> a backbone and what is known of it."""

from pathlib import Path
from typing import Any

from seer.core.log import log
from seer.models.bundle import IMAGENET_MEAN, IMAGENET_STD, WEIGHTS, card_of, read_bundle
from seer.models.names import VISSL
from seer.models.pretrained import load_with_origin
from seer.models.regnet import RegNet


def load(path: str) -> tuple[RegNet, dict[str, Any]]:
    """The backbone of a run, a bundle or a file of weights, and its card (ImageNet's normalisation where none is told).

    The licence of foreign weights stands in no file, so the card says that, and what is known of VISSL's.
    """
    for folder in (Path(path), Path(path) / "bundle"):
        if (folder / WEIGHTS).is_file():
            backbone, described = read_bundle(folder)
            return backbone, card_of(described)  # type: ignore[return-value]
    loaded, origin = load_with_origin(path)
    if origin.caution:
        log.warning(f"{path}: {origin.caution}")
    licence = f"imported from {Path(path).name} in names of {origin.library}, which states none"
    if origin.library == VISSL.library:
        licence += "; Meta published its SEER weights for non-commercial use only"
    card = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "input_size": 224, "licence": licence}
    return loaded, card  # type: ignore[return-value]
