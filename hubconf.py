"""torch.hub's door: `torch.hub.load(".", "regnety_16gf", source="local", weights="runs/first")`.

An entry for every row of the zoo, freshly initialised without `weights`, and `backbone` for weights of any shape. Surprising:
an entry's name is a promise about the shape, so weights of another shape are refused; `weights` are never downloaded.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from seer.core.errors import RequestError
from seer.models import zoo
from seer.models.pretrained import load_backbone

dependencies = ["torch", "numpy", "safetensors"]


def backbone(weights: str) -> Any:
    """The backbone of a run, a bundle or a file of weights, in eval mode: [B, 3, H, W] -> [B, C]."""
    return load_backbone(weights)


def _build(name: str, weights: str | None = None, stem_stride: int = 2) -> Any:
    if weights is None:
        return zoo.build(name, stem_stride=stem_stride)
    loaded = load_backbone(weights)
    held = zoo.name_of(loaded.architecture)  # type: ignore[attr-defined]
    if held != name:
        raise RequestError(f"{weights} holds {held or 'a shape without a name'}, not {name}: load it by 'backbone'")
    return loaded


def _entry(name: str) -> Callable[..., Any]:
    entry = partial(_build, name)
    entry.__doc__ = (
        f"{name}: [B, 3, H, W] -> [B, {zoo.features_of(name)}]. weights: a run, a bundle or a file, whose stem stride then "
        "holds; without them freshly initialised, in training mode, with stem_stride 1 or 2 (RegNetY)."
    )
    return entry


globals().update({name: _entry(name) for name in zoo.names()})
