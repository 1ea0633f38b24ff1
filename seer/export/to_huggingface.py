"""Exports a folder that transformers' `AutoModel.from_pretrained` loads: `model.safetensors`, `config.json`,
`preprocessor_config.json`, and a model card.

Surprising:
- `pooler_output` is the features, [N, D, 1, 1]; `AutoImageProcessor` of the same folder cuts images as `seer evaluate` does,
  but that it rounds sides down, which may move the square by a pixel.
- transformers squeezes to 0.25 and has one group width: what it cannot hold says the family's file in `seer/models/families`.
- The model card has the recipe of the run without its paths, since such a folder is made to be given away (`push`).
- The files appear in the folder only after transformers itself loaded them, every tensor of them, and gave the same features.
- transformers (154 MB with what it brings) is the extra `[huggingface]`, imported here when asked for. Nothing is downloaded.

Legend: N images, S side, D features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seer.core.errors import RequestError
from seer.export import model_card, parity
from seer.export.checked_folder import write_checked
from seer.export.optional import needs
from seer.export.program import colors, shorter_side
from seer.export.push import without_paths
from seer.export.targets import of_library
from seer.models.bundle import PROVENANCE, plain
from seer.models.families.family import HuggingFace, Network
from seer.models.model_folders import MODEL_FILE
from seer.models.zoo import name_of

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
FILES = (MODEL_FILE, CONFIG, PROCESSOR, model_card.FILE)  # all that the folder gets
TOLERANCE = 1e-6
BILINEAR = 2  # PIL's number, antialiased where it makes smaller


def export(backbone: Network, card: Mapping[str, Any], output: Path, images: Tensor) -> dict[str, Any]:
    """Writes the folder `output`, checked in transformers.

    Args:
        backbone: any device; read, not changed.
        card: its normalization and size go into `preprocessor_config.json`, the rest into the model card.
        output: the folder; files of these names there are replaced.
        images: [N, C, S, S], normalized, for the comparison of features in eval mode.

    Returns `file` (the weights), `parity`, `tolerance`, `pictures`, `card`.

    Raises RequestError where transformers is not installed or has no such shape, and ValueError for features that differ by more
    than 1e-6 of their largest value.
    """
    theirs: HuggingFace = of_library("huggingface", backbone)
    output = Path(output)
    if output.suffix in (".pth", ".pt", ".safetensors"):
        raise RequestError(
            f"output={output}: to=huggingface writes a folder with {MODEL_FILE} and {CONFIG}; name a folder"
        )
    needs("huggingface", ("transformers",), install="'seer-pretrain[huggingface]'")
    expected = parity.reference(backbone, images)
    state = {key: plain(tensor).clone() for key, tensor in theirs.rename(backbone.state_dict()).items()}
    texts = {
        CONFIG: _json(theirs.config(backbone) | {"dtype": "float32"}),
        PROCESSOR: _json(_processor(backbone, card)),
        model_card.FILE: _readme(backbone, card),
    }
    difference = write_checked(
        output,
        state,
        texts,
        lambda folder: parity.features(_pooled(transformers_model(folder)), images),
        expected,
        tolerance=TOLERANCE,
        what="transformers' model with the exported weights",
    )
    return {
        "file": str(output / MODEL_FILE),
        "parity": difference,
        "tolerance": TOLERANCE,
        "pictures": len(images),
        "card": dict(card),
    }


def transformers_model(folder: Path) -> nn.Module:
    """Returns what transformers makes of the folder, in eval mode. Raises ValueError for tensors that it misses, does not know,
    or finds of another shape, which it would draw anew and only mention."""
    from transformers import AutoModel
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # one for weights that are there in 20 ms
    try:
        with torch.random.fork_rng(devices=[]):
            model, told = AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    finally:
        if bars:
            logging.enable_progress_bar()
    wrong = {
        key: sorted(map(str, told[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if told[key]
    }
    if wrong:
        raise ValueError(f"transformers does not take these weights as they are: {wrong}; nothing was kept")
    return model.eval()


def _pooled(model: nn.Module) -> Any:
    return lambda images: model(images).pooler_output.flatten(1)


def _processor(backbone: Network, card: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what transformers' image processor is to do. Only its plain one keeps shape and center at every size; that of
    ConvNeXt, which other RegNets name, warps images from 384 on."""
    channels: int = backbone.architecture.get("in_channels", 3)
    side = card.get("input_size") or 224
    of_colors = colors(channels, card)
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": shorter_side(side)},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": of_colors["mean"],
        "image_std": of_colors["std"],
    }


def _readme(backbone: Network, card: Mapping[str, Any]) -> str:
    architecture = backbone.architecture
    described = {
        "architecture": {"name": name_of(architecture), **architecture},
        "feature_dim": backbone.feature_dim,
        "input_size": card.get("input_size") or 224,
        "normalisation": colors(architecture.get("in_channels", 3), card),
        "provenance": {key: card.get(key) for key in PROVENANCE}
        | {"metrics": dict(card.get("metrics") or {}), "recipe": without_paths(card.get("recipe"))},
    }
    use = f"""```python
from transformers import AutoImageProcessor, AutoModel

processor, model = AutoImageProcessor.from_pretrained("this folder"), AutoModel.from_pretrained("this folder").eval()
features = model(**processor(image, return_tensors="pt")).pooler_output.flatten(1)  # [1, {backbone.feature_dim}]
```

`seer.load_backbone("this folder")` reads the same weights.
"""
    return model_card.model_card(described, library="transformers", use=use)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
