"""Writes and reads the bundle, a folder in which a backbone explains itself: `backbone.safetensors` beside
`bundle.json`, and a file a head in `heads/` where there are heads (`models/head_files`).

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

Version 2, of a bundle with heads, adds

     "heads": {NAME: {"sha256": of heads/NAME.safetensors, "description": of heads/NAME.json}},
     "lineage": {"file": sha256 of backbone.safetensors, "backbone": hash of its tensors alone,
                 "parent": such a hash of the weights that training began with, or null}

and the copy inside the weights stays of version 1: the file cannot hold its own hash, and moved alone it is a whole backbone
that earlier programs read. A bundle without heads is of version 1, so that these can read it.
"""

from __future__ import annotations

import difflib
import hashlib
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
from safetensors.torch import load, save_file
from torch import Tensor, nn

from seer.core.errors import StorageError
from seer.models import families, zoo
from seer.models.families.family import Network
from seer.models.file_kinds import kind_of
from seer.models.head_files import HEADS, StoredHead, hash_of_tensors, read_head
from seer.models.numbers import check_numbers
from seer.models.stored_hash import TENSORS, check_tensors
from seer.models.zoo import name_of

BUNDLE_FORMAT = "seer-bundle"
VERSION, WITH_HEADS = 1, 2
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
    heads: Mapping[str, StoredHead] | None = None,
    parent: str | None = None,
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
        heads: by name, those that stand on this backbone.
        parent: `hash_of_tensors` of the weights that its training began with.

    Raises ValueError for an unknown or malformed entry of the card, for weights that are not this architecture's, and for a
    head that stands on another backbone; StorageError or OSError for a disk that does not take it.
    """
    architecture = backbone.architecture
    weights = backbone.state_dict() if state_dict is None else state_dict
    with torch.device("meta"):
        check_weights(weights, zoo.of(architecture).state_dict(), what="these weights")
    described = _describe(architecture, backbone.feature_dim, card)
    inside = json.dumps(described, indent=2, allow_nan=False) + "\n"
    tensors = {name: plain(tensor) for name, tensor in weights.items()}
    lineage = _lineage(tensors, heads, parent) if heads else {}

    folder = Path(folder)
    (folder / HEADS if heads else folder).mkdir(parents=True, exist_ok=True)
    suffix = f".{uuid.uuid4().hex}.tmp"
    files = [Path(HEADS, f"{name}{end}") for name in heads or () for end in (".safetensors", ".json")]
    files += [Path(BUNDLE_WEIGHTS), Path(DESCRIPTION)]  # the one that lists the others last
    new = {file: folder / f"{file}{suffix}" for file in files}
    try:
        for name, head in (heads or {}).items():
            new[Path(HEADS, f"{name}.safetensors")].write_bytes(head.weights)
            new[Path(HEADS, f"{name}.json")].write_bytes(head.description)
        write_safetensors(tensors, new[Path(BUNDLE_WEIGHTS)], {BUNDLE_FORMAT: inside})
        if heads:
            lineage["lineage"]["file"] = _sha256(new[Path(BUNDLE_WEIGHTS)])
            inside = json.dumps({**described, "version": WITH_HEADS, **lineage}, indent=2, allow_nan=False) + "\n"
        new[Path(DESCRIPTION)].write_text(inside, encoding="utf-8")
        for path in new.values():
            _flush(path)
        for file, path in new.items():
            os.replace(path, folder / file)
        _drop_heads(folder, heads or {})
        for place in (*([folder / HEADS] if heads else []), folder, folder.parent):
            _flush(place)
    finally:
        for leftover in new.values():
            leftover.unlink(missing_ok=True)
    return folder


def _lineage(tensors: Mapping[str, Tensor], heads: Mapping[str, StoredHead], parent: str | None) -> dict[str, Any]:
    """Returns what a description says of heads. Raises ValueError for one that stands on other tensors."""
    own = hash_of_tensors(tensors)
    for name, head in heads.items():
        if not name.isidentifier():
            raise ValueError(f"a head is called {name!r}: a name of letters, digits and _ is wanted")
        if head.backbone != own:
            raise ValueError(
                f"the head {name} stands on a backbone of hash {head.backbone[:12]}…, this one has {own[:12]}…: its outputs would "
                "change; leave it out"
            )
    listed = {name: head.hashes for name, head in heads.items()}
    return {"heads": listed, "lineage": {"file": None, "backbone": own, "parent": parent}}


def _drop_heads(folder: Path, heads: Mapping[str, StoredHead]) -> None:
    """Removes the files of heads that an older bundle had here and this one has not."""
    kept = {f"{name}{end}" for name in heads for end in (".safetensors", ".json")}
    for path in (folder / HEADS).glob("*"):
        if path.suffix in (".safetensors", ".json") and path.name not in kept:
            path.unlink()
    if not heads and (folder / HEADS).is_dir() and not any((folder / HEADS).iterdir()):
        (folder / HEADS).rmdir()


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read_heads(folder: str | os.PathLike[str]) -> dict[str, StoredHead]:
    """Returns the heads of a bundle by name, in their order; {} for one without. `build()` of each is what `MultiHead` takes.

    Raises FileNotFoundError for a missing file, ValueError for one that is not what `bundle.json` lists, and for heads that
    stand on another backbone than the one beside them.
    """
    folder = Path(folder)
    _must_hold_weights(folder)
    if not (folder / DESCRIPTION).is_file():
        if any((folder / HEADS).glob("*.json")):
            raise FileNotFoundError(f"{folder / DESCRIPTION} is missing, which lists the heads; restore it")
        return {}
    described = _parse((folder / DESCRIPTION).read_text(encoding="utf-8"), what=str(folder / DESCRIPTION))
    listed, lineage = described.get("heads") or {}, described.get("lineage")
    if not listed:
        return {}
    if not isinstance(listed, dict) or not all(
        name.isidentifier() and isinstance(one, dict) for name, one in listed.items()
    ):
        raise ValueError(f"{folder / DESCRIPTION}: its heads are no names with hashes: {listed!r}")
    lineage, file = lineage if isinstance(lineage, dict) else {}, _sha256(folder / BUNDLE_WEIGHTS)
    if lineage.get("file") != file:
        raise ValueError(
            f"{folder / BUNDLE_WEIGHTS} has the sha256 {file[:12]}…, {DESCRIPTION} lists {str(lineage.get('file'))[:12]}… beside its "
            "heads: it was damaged or replaced; restore it, or copy the bundle again"
        )
    found = {name: read_head(folder, name, hashes) for name, hashes in listed.items()}
    for name, head in found.items():
        if head.backbone != lineage.get("backbone"):
            raise ValueError(f"{folder}: the head {name} stands on another backbone than the one beside it")
        _check_head(head, what=f"the weights in {folder / HEADS / name}.safetensors")
    return found


def _check_head(head: StoredHead, *, what: str) -> None:
    """Raises ValueError for tensors that are not those of the head's card."""
    try:
        tensors = load(head.weights)
    except SafetensorError as error:
        raise ValueError(f"{what} are in no safetensors file: {error}") from error
    with torch.device("meta"):
        check_weights(tensors, head.card.build().state_dict(), what=what)
    check_numbers(tensors, what=what)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors to a file, with their hash in its metadata. They are contiguous, on any device, none sharing memory.
    Raises StorageError when the disk does not take them."""
    about = {"format": "pt", TENSORS: hash_of_tensors(tensors), **(metadata or {})}
    try:
        save_file(dict(tensors), path, metadata=about)
    except SafetensorError as error:
        raise StorageError(
            f"weights cannot be written to {path.parent}: {error}; make room and run it again"
        ) from error


def read_bundle(folder: str | os.PathLike[str]) -> tuple[Network, dict[str, Any]]:
    """Returns the backbone (float32, CPU, eval mode) and its description, as in this file's head.

    Raises FileNotFoundError without weights, ValueError for a broken, foreign or newer description and for weights that
    do not fit it (the first five keys named), BadDataError for weights that are not those that were written.
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
    broken file, BadDataError for tensors that are not those it was written with, where it says that."""
    with _opened(path) as opened:  # once: a run that goes on may put another file in its place
        described = _described_in(opened, path)
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        check_tensors(tensors, opened.metadata() or {}, path)
        return tensors, described


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
    if described.get("version") not in (VERSION, WITH_HEADS):
        raise ValueError(
            f"{what} has version {described.get('version')!r}; this program reads {VERSION} and {WITH_HEADS}: upgrade it"
        )
    return described


def _flush(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
