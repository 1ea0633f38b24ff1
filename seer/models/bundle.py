"""Writes and reads the bundle, a folder in which a backbone explains itself: `backbone.safetensors` beside
`bundle.json`.

Surprising:
- The description lies in both files: as `bundle.json` for people and other tools, and as metadata inside the weights.
  Two files cannot be replaced in one stroke, so each carries the number of its writing; when they differ (a crash
  between the two renames) the copy inside the weights holds. The weights file alone is a whole backbone as well.
- The stem's stride leaves no trace in any tensor's shape; only the description knows it.
- `write_bundle` checks the weights against an empty model of the same architecture first, so a wrapped or surgically
  changed module is refused rather than written as something that never loads.

bundle.json, version 1:

    {"format": "seer-bundle", "version": 1, "written": number of the writing,
     "architecture": {"name": zoo name or null, "widths", "depths", "group_widths", "se_ratio", "stem_width",
                      "stem_stride"; "in_channels" where an image has not three},
                      or {"name", "family", and the entries of that one in seer/models/families},
     "feature_dim", "input_size", "normalisation": {"mean": [C], "std": [C]},
     "ground": gray level under transparent images, where it is not black (0),
     "provenance": {"recipe", "data_fingerprint", "commit", "step", "images_seen", "licence", "caution", "metrics"}}
"""

from __future__ import annotations

import difflib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from seer.core.errors import StorageError
from seer.models import families, zoo
from seer.models.families.family import Network
from seer.models.file_kinds import kind_of
from seer.models.numbers import check_numbers
from seer.models.zoo import name_of

BUNDLE_FORMAT = "seer-bundle"
VERSION = 1
BUNDLE_WEIGHTS = "backbone.safetensors"
DESCRIPTION = "bundle.json"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PROVENANCE = ("recipe", "data_fingerprint", "commit", "step", "images_seen", "licence", "caution", "metrics")
CARD_FIELDS = ("mean", "std", "input_size", "ground", *PROVENANCE)


def write_bundle(
    folder: str | os.PathLike[str],
    backbone: Network,
    *,
    card: Mapping[str, Any],
    state_dict: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes the bundle, float32 and contiguous, and returns its folder; an older bundle there is replaced.

    Args:
        folder: made when missing.
        backbone: a network of one of the families, on any device.
        card: any of `mean`, `std` (a number a channel of pixels in [0, 1]; ImageNet's when absent), `input_size` (224),
            `ground` (gray level under transparent images, 0),
            `recipe`, `data_fingerprint`, `commit`, `step` and `images_seen` (of the training that made it), `licence`
            (of imported weights), `caution` (what to heed when using them), `metrics` (name -> number).
        state_dict: the whole tensors, where the backbone itself holds only shards of them or none (meta).

    Raises ValueError for an unknown or malformed entry of the card, and for weights that are not this architecture's;
    StorageError or OSError for a disk that does not take it.
    """
    architecture = backbone.architecture
    weights = backbone.state_dict() if state_dict is None else state_dict
    with torch.device("meta"):
        check_weights(weights, zoo.of(architecture).state_dict(), what="these weights")
    described = json.dumps(_describe(architecture, backbone.feature_dim, card), indent=2, allow_nan=False) + "\n"
    tensors = {name: plain(tensor) for name, tensor in weights.items()}

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = f".{uuid.uuid4().hex}.tmp"
    new_weights, new_description = folder / (BUNDLE_WEIGHTS + suffix), folder / (DESCRIPTION + suffix)
    try:
        write_safetensors(tensors, new_weights, {BUNDLE_FORMAT: described})
        new_description.write_text(described, encoding="utf-8")
        _flush(new_weights)
        _flush(new_description)
        os.replace(new_weights, folder / BUNDLE_WEIGHTS)
        os.replace(new_description, folder / DESCRIPTION)
        _flush(folder)
        _flush(folder.parent)
    finally:
        for leftover in (new_weights, new_description):
            leftover.unlink(missing_ok=True)
    return folder


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors to a file. They are contiguous, on any device, none sharing memory. Raises StorageError
    when the disk does not take them."""
    try:
        save_file(dict(tensors), path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise StorageError(
            f"weights cannot be written to {path.parent}: {error}; make room and run it again"
        ) from error


def read_bundle(folder: str | os.PathLike[str]) -> tuple[Network, dict[str, Any]]:
    """Returns the backbone (float32, CPU, eval mode) and its description, as in this file's head.

    Raises FileNotFoundError without weights, ValueError for a broken, foreign or newer description and for weights that
    do not fit it (the first five keys named).
    """
    folder = Path(folder)
    _must_hold_weights(folder)
    weights, described = read_safetensors(folder / BUNDLE_WEIGHTS)
    described = _which(folder, described)
    with torch.device("meta"):
        backbone = zoo.of(architecture_in(described, what=str(folder)))
    return fill(backbone, weights, what=str(folder / BUNDLE_WEIGHTS)), described


def read_description(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns a bundle's description alone, without its tensors. Raises as `read_bundle` does."""
    folder = Path(folder)
    _must_hold_weights(folder)
    with _opened(folder / BUNDLE_WEIGHTS) as opened:
        return _which(folder, _described_in(opened, folder / BUNDLE_WEIGHTS))


def step_of(description: Mapping[str, Any]) -> int | None:
    """Returns the training step that a bundle is of; None where it does not say, as when it was not written by
    a run."""
    provenance = description.get("provenance") or {}
    step = provenance.get("step")
    if step is None:  # bundles of the first version have it among the figures of the run's end
        step = (provenance.get("metrics") or {}).get("steps")
    return int(step) if isinstance(step, int | float) else None


def card_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the card that `write_bundle` was given, out of a bundle's description: to export or write it again."""
    normalization = description["normalisation"]
    card = {"mean": normalization["mean"], "std": normalization["std"], "input_size": description["input_size"]}
    if description.get("ground"):
        card["ground"] = description["ground"]
    kept = {key: description["provenance"].get(key) for key in PROVENANCE}
    return card | kept | {"step": step_of(description)}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Returns tensors by name, and the description inside the file if it is ours. Raises ValueError for a
    broken file."""
    with _opened(path) as opened:  # once: a run that goes on may put another file in its place
        described = _described_in(opened, path)
        return {name: opened.get_tensor(name) for name in opened.keys()}, described


def architecture_in(description: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """Returns the architecture that a description names. Raises ValueError for one that lacks entries, and for
    a family unknown here."""
    return families.checked(description.get("architecture"), what=what)


def check_weights(given: Mapping[str, Any], expected: Mapping[str, Tensor], *, what: str) -> None:
    """Raises one ValueError that names the first five missing, unexpected or wrong keys; nothing is changed.

    A key is wrong when it is no dense tensor, has another shape, or holds integers where numbers are wanted.
    """
    problems = [f"missing {key} {list(expected[key].shape)}" for key in expected if key not in given]
    for key, value in given.items():
        if key not in expected:
            problems.append(f"unexpected {key}")
        elif not isinstance(value, Tensor) or value.layout != torch.strided:
            problems.append(f"{key} is no dense tensor but a {type(value).__name__}")
        elif value.shape != expected[key].shape:
            problems.append(f"{key} is {list(value.shape)}, wanted {list(expected[key].shape)}")
        elif value.is_floating_point() != expected[key].is_floating_point():
            problems.append(f"{key} is {value.dtype}, wanted {expected[key].dtype}")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{what} do not fit the architecture, nothing was loaded: {'; '.join(problems[:5])}{more}")


def fill(backbone: Network, weights: Mapping[str, Tensor], *, what: str, checked: bool = False) -> Network:
    """Copies the weights into a backbone on meta, as float32 on the CPU, and returns it in eval mode.

    Copies, because the given tensors may be a window onto a file that someone overwrites later. checked: that keys, shapes
    and numbers are right is known already. Raises as `check_weights` and `check_numbers` do.
    """
    if not checked:
        check_weights(weights, backbone.state_dict(), what=f"the weights in {what}")
        check_numbers(weights, what=f"the weights in {what}")
    backbone.to_empty(device="cpu")
    backbone.load_state_dict(dict(weights), strict=True)
    return backbone.eval()


def plain(tensor: Tensor) -> Tensor:
    """Returns the tensor as files want it: detached, on the CPU, contiguous, float32 unless it counts.

    Raises ValueError for a tensor without its values: on meta, or a shard of it (DTensor).
    """
    if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        kind = "meta tensor" if tensor.is_meta else type(tensor).__name__
        raise ValueError(f"a {kind} of shape {list(tensor.shape)} holds no whole values: gather the state dict first")
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


def _describe(architecture: dict[str, Any], feature_dim: int, card: Mapping[str, Any]) -> dict[str, Any]:
    for key in card:
        if key not in CARD_FIELDS:
            near = difflib.get_close_matches(str(key), CARD_FIELDS, n=1, cutoff=0.0)[0]
            raise ValueError(f"a card has no entry {key!r}, perhaps {near!r}; it may hold {', '.join(CARD_FIELDS)}")
    colors, channels = {}, architecture.get("in_channels", 3)
    for key, rgb in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        usual = rgb if channels == 3 else (sum(rgb) / 3,) * channels
        colors[key] = [float(value) for value in (usual if card.get(key) is None else card[key])]
        if len(colors[key]) != channels:
            raise ValueError(f"the card's {key} is {colors[key]}: wanted {channels} numbers, one a channel")
    metrics = dict(card.get("metrics") or {})
    unsound = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if unsound:
        raise ValueError(f"the card's metrics hold non-finite numbers, which JSON cannot: {unsound}; leave them out")
    return {
        "format": BUNDLE_FORMAT,
        "version": VERSION,
        "written": uuid.uuid4().hex,
        "architecture": {"name": name_of(architecture), **architecture},
        "feature_dim": feature_dim,
        "input_size": 224 if card.get("input_size") is None else int(card["input_size"]),
        "normalisation": colors,
        **({"ground": int(card["ground"])} if card.get("ground") else {}),
        "provenance": {key: card.get(key) for key in PROVENANCE} | {"metrics": metrics},
    }


def _must_hold_weights(folder: Path) -> None:
    if not (folder / BUNDLE_WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {BUNDLE_WEIGHTS}; a bundle is a folder with {BUNDLE_WEIGHTS} and {DESCRIPTION}"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a safetensors file, as a context. Raises ValueError for a broken one."""
    try:
        with safe_open(path, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        kind = kind_of(path)
        told = f"but {kind}" if kind else f"or a cut one: {error}. Fetch or save it again"
        raise ValueError(f"{path} is no safetensors file, {told}") from error


def _described_in(opened: Any, path: Path) -> dict[str, Any] | None:
    """Returns the description in the metadata of a weights file, if it has one of ours."""
    text = (opened.metadata() or {}).get(BUNDLE_FORMAT)
    return None if text is None else _parse(text, what=f"the metadata of {path}")


def _which(folder: Path, inside: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the description that holds: that in the weights, unless `bundle.json` is of the same writing, or
    the only one."""
    beside = None
    if (folder / DESCRIPTION).is_file():
        text = (folder / DESCRIPTION).read_text(encoding="utf-8")
        beside = _parse(text, what=str(folder / DESCRIPTION))
    if inside is not None and (beside is None or beside.get("written") != inside.get("written")):
        return inside
    if beside is None:
        raise ValueError(
            f"{folder} has no {DESCRIPTION}; load {folder / BUNDLE_WEIGHTS} itself to infer the shape from the weights"
        )
    return beside


def _parse(text: str, *, what: str) -> dict[str, Any]:
    try:
        described = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{what} is no JSON: {error}") from error
    if not isinstance(described, dict) or described.get("format") != BUNDLE_FORMAT:
        raise ValueError(f"{what} describes no bundle: its format is not {BUNDLE_FORMAT!r}")
    if described.get("version") != VERSION:
        raise ValueError(f"{what} has version {described.get('version')!r}; this program reads {VERSION}: upgrade it")
    return described


def _flush(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
