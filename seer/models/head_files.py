"""Keeps heads as files beside the backbone of a bundle: `heads/NAME.safetensors` and `heads/NAME.json` each.

Surprising:
- A head is held as the bytes of its two files, so that one which is only carried on into another bundle stays as it is to the
  last byte. Nothing in them depends on when or where they were written.
- A head says on which backbone it stands, by a hash of that one's tensors. The file of a backbone holds a description beside
  its tensors, so its own hash differs from bundle to bundle.

NAME.json, version 1:

    {"format": "seer-head", "version": 1, "kind", "stages": [those it reads; none = averaged features],
     "features": channels of each of these, or [those of the averaged features], "classes": names or null,
     "thresholds": a probability a class, of tags, or null, "outputs", "width": channels inside, or null,
     of mask_rcnn alone "anchors": sides in pixels, one more than stages, and "batch_norm": whether it has any,
     "sha256": of NAME.safetensors, "backbone": hash of the tensors of its backbone, "step": of the training that made it}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from seer.models.heads.detect import DetectHead
from seer.models.heads.linear import LinearHead
from seer.models.heads.map import MapHead
from seer.models.heads.mask_rcnn import MaskRCNNHead
from seer.models.multi_head import Head

HEADS = "heads"  # the folder in a bundle
HEAD_FORMAT, HEAD_VERSION = "seer-head", 1
VECTOR_KINDS = ("classify", "tags", "regress")  # a linear layer; the others have a file of their own
PYRAMIDS = ("detect", "mask_rcnn")  # that read several stages
OWN = ("anchors", "batch_norm")  # entries that mask_rcnn alone has: others keep the bytes that they always had
MOST = 1_000_000  # outputs and channels that a description may name: it is a stranger's word, and memory is made of it


@dataclass(frozen=True)
class HeadCard:
    """Says what a head is. features: channels of each stage, or one number where it reads averaged features. thresholds: the
    probability from which a class of tags is there."""

    kind: str
    stages: tuple[str, ...]
    features: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    width: int | None = None
    anchors: tuple[float, ...] | None = None
    batch_norm: bool | None = None

    def build(self) -> Head:
        """Makes the head, freshly initialized."""
        if self.kind == "mask_rcnn":
            read = dict(zip(self.stages, self.features, strict=True))
            own: dict[str, Any] = {"anchors": self.anchors or (), "batch_norm": bool(self.batch_norm)}
            return MaskRCNNHead(read, self.outputs, self.width or 0, **own)
        if self.kind == "detect":
            return DetectHead(dict(zip(self.stages, self.features, strict=True)), self.outputs, self.width or 0)
        if self.kind == "map":
            return MapHead(self.features[0], self.outputs, self.stages[0], self.width or 0)
        return LinearHead(self.features[0], self.outputs, self.stages[0] if self.stages else None)


@dataclass(frozen=True)
class StoredHead:
    """Holds a head as its files hold it. weights, description: bytes of NAME.safetensors and of NAME.json. backbone: hash of
    the tensors that it stands on."""

    card: HeadCard
    weights: bytes
    description: bytes
    backbone: str

    @property
    def hashes(self) -> dict[str, str]:
        """Returns what `bundle.json` says of it."""
        return {"sha256": digest(self.weights), "description": digest(self.description)}

    def build(self) -> Head:
        """Returns the head with its weights, float32 on the CPU, in evaluation mode."""
        head = self.card.build()
        head.load_state_dict(load(self.weights))
        return head.eval()


def digest(data: bytes) -> str:
    """Returns the sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Returns a sha256 of names, types, shapes and values, whatever file they lie in; as `bundle.plain` makes them."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def stored(card: HeadCard, tensors: Mapping[str, Tensor], *, backbone: str, step: int | None = None) -> StoredHead:
    """Returns a head as files. tensors: as `bundle.plain` makes them. backbone: `hash_of_tensors` of what it stands on."""
    weights = save(dict(tensors), {"format": "pt"})  # one entry: the order of several is another one each time
    own = {key: value for key, value in asdict(card).items() if key not in OWN or value is not None}
    described = {"format": HEAD_FORMAT, "version": HEAD_VERSION, **own}
    described |= {"sha256": digest(weights), "backbone": backbone, "step": step}
    text = json.dumps(described, indent=2, allow_nan=False) + "\n"  # escaped: a name may be no text
    return StoredHead(card, weights, text.encode(), backbone)


def read_head(folder: Path, name: str, hashes: Mapping[str, Any]) -> StoredHead:
    """Returns a head of a bundle. hashes: what `bundle.json` says of it. Raises FileNotFoundError where a file is missing,
    ValueError where it is not the one that was written, or describes no head; its tensors are not looked at."""
    data = {}
    for key, file in (("sha256", f"{name}.safetensors"), ("description", f"{name}.json")):
        path = folder / HEADS / file
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing, a head that {folder} lists; restore it, or copy the bundle again"
            )
        data[key] = path.read_bytes()
        if digest(data[key]) != hashes.get(key):
            raise ValueError(
                f"{path} has the sha256 {digest(data[key])[:12]}…, {folder} lists {str(hashes.get(key))[:12]}…: it was damaged "
                "or replaced; restore it, or copy the bundle again"
            )
    what = str(folder / HEADS / f"{name}.json")
    described = _parse(data["description"], what=what)
    card = card_in(described, what=what)
    return StoredHead(card, data["sha256"], data["description"], str(described.get("backbone")))


def card_in(described: Mapping[str, Any], *, what: str) -> HeadCard:
    """Returns the card that a description holds. Raises ValueError for one that makes no head."""
    kind, stages, features = described.get("kind"), described.get("stages"), described.get("features")
    classes, thresholds = described.get("classes"), described.get("thresholds")
    outputs, width, anchors = described.get("outputs"), described.get("width"), described.get("anchors")

    def listed(value: Any, one: Callable[[Any], bool]) -> bool:
        return isinstance(value, list) and all(map(one, value))

    wrong = {
        "kind": kind not in (*VECTOR_KINDS, "map", *PYRAMIDS),
        "stages": not listed(stages, lambda s: isinstance(s, str) and s.isidentifier()),
        "features": not listed(features, _counts) or not features or len(features) != max(1, len(stages or ())),
        "outputs": not _counts(outputs),
        "classes": classes is not None
        and not (listed(classes, lambda s: isinstance(s, str)) and len(classes) == outputs),
        "thresholds": thresholds is not None
        and not (
            listed(thresholds, lambda t: isinstance(t, int | float) and 0 <= t <= 1) and len(thresholds) == outputs
        ),
        "width": kind in ("map", *PYRAMIDS) and not _counts(width),
        "anchors": kind == "mask_rcnn"
        and not (
            listed(anchors, lambda a: isinstance(a, int | float) and 0 < a <= MOST)
            and len(anchors or ()) == len(stages or ()) + 1
        ),
        "batch_norm": kind == "mask_rcnn" and not isinstance(described.get("batch_norm"), bool),
    }
    wrong["stages"] |= (kind in ("map", *PYRAMIDS) and not stages) or (kind not in PYRAMIDS and len(stages or ()) > 1)
    if found := [key for key, one in wrong.items() if one]:
        raise ValueError(f"{what}: {found[0]}={described.get(found[0])!r} describes no head of this program")
    assert isinstance(kind, str) and stages is not None and features is not None and outputs is not None
    names = None if classes is None else tuple(classes)
    cuts = None if thresholds is None else tuple(thresholds)
    card = HeadCard(kind, tuple(stages), tuple(features), outputs, names, cuts, width)
    if kind != "mask_rcnn":
        return card
    return replace(card, anchors=tuple(anchors or ()), batch_norm=described["batch_norm"])


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST


def _parse(data: bytes, *, what: str) -> dict[str, Any]:
    try:
        described = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{what} is no JSON: {error}") from error
    if not isinstance(described, dict) or described.get("format") != HEAD_FORMAT:
        raise ValueError(f"{what} describes no head: its format is not {HEAD_FORMAT!r}")
    if described.get("version") != HEAD_VERSION:
        raise ValueError(
            f"{what} has version {described.get('version')!r}; this program reads {HEAD_VERSION}: upgrade it"
        )
    return described
