"""Writes the README of an exported bundle: what someone who finds the folder needs to know, in words that
Hugging Face reads too.

Surprising: what is not known is said to be unknown, never left out, since the licence of imported weights is what people
most often fail to ask about. Legend: C channels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from seer.models import cost, families
from seer.models.bundle import BUNDLE_WEIGHTS, DESCRIPTION, architecture_in

FILE = "README.md"


def _channels(shape: Mapping[str, Any]) -> str:
    channels = shape.get("in_channels", 3)
    return {3: "RGB", 1: "gray"}.get(channels, f"{channels} channels")


def model_card(described: Mapping[str, Any], *, library: str = "seer", use: str | None = None) -> str:
    """Returns Markdown with a YAML head, from a bundle's description (`seer.models.bundle`). library: that of the head; use: how
    the folder is loaded, Markdown; None: as a bundle is."""
    shape, colors, origin = described["architecture"], described["normalisation"], described["provenance"]
    family = families.of(shape)
    name = shape["name"] or family.title
    licence = origin.get("licence")
    rows = {
        "architecture": f"{name}: {family.describe(shape)}",
        "features": f"{described['feature_dim']} numbers an image, the last stage averaged over its positions",
        "input": f"{_channels(shape)}, {described['input_size']} x {described['input_size']}, values in [0, 1] less mean "
        f"{_list(colors['mean'])}, over std {_list(colors['std'])}",
        "cost": _cost(architecture_in(described, what="the description"), described["input_size"]),
        "data": _data(origin),
        "commit of the training code": origin.get("commit") or "unknown",
        "licence of imported weights": licence or "nothing imported is recorded",
    }
    if origin.get("caution"):
        rows["caution"] = origin["caution"]
    facts = "\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items())
    metrics = "\n".join(f"| {_cell(key)} | {value:.4g} |" for key, value in origin.get("metrics", {}).items())
    judged = f"| metric | value |\n|---|---|\n{metrics}" if metrics else "No metric is recorded."
    return f"""---
library_name: {library}
{_licence(licence)}tags: [image-feature-extraction, self-supervised, {family.name}]
---

# {name}, a vision backbone

| | |
|---|---|
{facts}

## Metrics

{judged}

## Recipe

{_recipe(origin.get("recipe"))}

## Use

{use or _bundle(described)}"""


def _bundle(described: Mapping[str, Any]) -> str:
    return f"""```python
from seer.models.pretrained import load_backbone

backbone = load_backbone("this folder")  # [B, 3, H, W] -> [B, {described["feature_dim"]}]; .forward_stages(x) for maps
```

`{BUNDLE_WEIGHTS}` holds the weights, `{DESCRIPTION}` this description. `seer export weights="this folder" to=torchvision` (or timm)
writes it for other libraries and compares the features there.
"""


def _licence(licence: str | None) -> str:
    """Returns the entries of the head that carry a licence along, which need not be one that the hub has a word for."""
    if not licence:
        return ""
    name = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.")[:64].rstrip("-.")
    return f"license: other\nlicense_name: {name or 'see-below'}\n"


def _cost(architecture: Mapping[str, Any], side: int) -> str:
    found = cost.of(architecture, side)
    return (
        f"{found['parameters']:,} parameters, {found['macs'] / 1e6:,.1f} M multiply-adds an image; predicted: a program of "
        f"{found['fp32_file_bytes'] / 1e6:.2f} MB, in int8 {found['int8_file_bytes'] / 1e6:.2f} MB, and "
        f"{found['live_bytes'] / 1e6:.1f} MB of activations at once"
    )


def _data(origin: Mapping[str, Any]) -> str:
    seen = origin.get("images_seen")
    fingerprint = origin.get("data_fingerprint")
    return f"{f'{seen:,} images seen' if seen else 'unknown'}, fingerprint {fingerprint or 'unknown'}"


def _recipe(recipe: Any) -> str:
    """Returns every setting of the run on a line of its own; `seer pretrain` keeps them as JSON, others may
    keep any text."""
    if not recipe:
        return "No recipe is recorded."
    try:
        settings = json.loads(recipe)
    except (TypeError, ValueError):
        settings = recipe
    if isinstance(settings, dict):
        settings = "\n".join(f"{key}: {json.dumps(value)}" for key, value in settings.items())
    return "\n".join(f"    {line}" for line in str(settings).splitlines())  # indented: no text in it can end the block


def _list(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _cell(value: Any) -> str:
    """Returns one line without a table's own signs, and nothing that Markdown would run as HTML."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
