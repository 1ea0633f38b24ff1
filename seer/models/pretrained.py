"""Loads a backbone from anywhere: our runs and bundles, RegNetY of torchvision, VISSL (SEER), timm, Hugging
Face; ResNets; checkpoints of those who trained with them.

Surprising:
- A file's name says nothing here: what it is its first bytes say, and widths, depths, group widths and the squeeze ratio are
  read off the tensors' shapes, because published files exist whose names promise another model than they hold. Only the stem's
  stride is not in any shape: a bundle's file describes itself, and 2 is taken for everything else.
- Heads and classifiers are left out, and other networks beside the one that is taken; what was chosen is told. Every other key
  must be there, be expected and have its shape and usable numbers, or nothing is loaded.
- Pickles cannot run code: see `seer.models.foreign_containers`. Where in a file the backbone lies: `seer.models.candidates`. What
  tensors are called: `seer.models.families`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seer.core.log import log
from seer.models import zoo
from seer.models.bundle import (
    BUNDLE_WEIGHTS,
    DESCRIPTION,
    architecture_in,
    check_weights,
    fill,
    read_bundle,
    read_safetensors,
    step_of,
)
from seer.models.candidates import Candidate, backbone_in
from seer.models.file_kinds import is_safetensors, is_torch_zip
from seer.models.foreign_containers import check_stored, read_checkpoint
from seer.models.key_maps import OURS
from seer.models.model_folders import INDEX, LAYOUTS, MODEL_FILE, file_in, read_parts, unread_in
from seer.models.numbers import check_numbers
from seer.models.stored_hash import check_beside

if TYPE_CHECKING:
    from seer.models.families.family import Network

__all__ = ["MODEL_FILE", "Origin", "load_backbone", "load_with_origin", "tell_age"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Origin:
    """Says where weights came from: whose names, which container, how many entries beside the backbone were left out,
    and what to heed. taken: where in the file it lay, "" for the whole of it. others: backbones there that were not taken."""

    library: str
    container: str
    left_out: int = 0
    caution: str | None = None
    taken: str = ""
    others: tuple[str, ...] = ()


def load_backbone(path_or_run: str | os.PathLike[str]) -> Network:
    """Loads the backbone that a run, a bundle or a weights file holds: float32, on the CPU, in eval mode.

    Takes a run folder (with `bundle/`), a bundle folder, a folder as timm and Hugging Face write it (`model.safetensors`,
    `pytorch_model.bin`, or an index and its parts), a file of safetensors, or one that torch.save wrote (`.pth`, `.pt`,
    `.ckpt`, `.torch`, …): a state dict in our names or those of torchvision, VISSL, timm or Hugging Face, wrapped, behind a
    prefix or not, alone or in a checkpoint of another trainer, or a checkpoint of VISSL (the list file of a cut one).

    Raises FileNotFoundError when nothing is there; RequestError, a ValueError, for what is no network of a known kind, for
    several that may be meant, and for numbers that cannot be used; ValueError for missing, unexpected or wrong-shaped keys:
    the first five are named, as the file spells them, and nothing is loaded; BadDataError for a file of `seer export` whose
    hash is another than it was written with.
    """
    return load_with_origin(path_or_run)[0]


def load_with_origin(path_or_run: str | os.PathLike[str]) -> tuple[Network, Origin]:
    """Loads as `load_backbone` does, and returns where the weights came from, too; what was chosen is told."""
    path = Path(path_or_run)
    if path.is_dir():
        for folder in (path, path / "bundle"):
            if (folder / BUNDLE_WEIGHTS).is_file():
                backbone, card = read_bundle(folder)
                tell_age(folder, card)
                return backbone, Origin(OURS.library, "bundle")
        path = _file_in(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: give a run folder, a bundle folder or a file of weights{_if_of_a_hub(path)}"
        )
    state, container, described = _read(path)
    return _from_state(path, state, container, described)


def _file_in(folder: Path) -> Path:
    """Returns the file of weights, or the index of its parts, in a model folder. Raises FileNotFoundError."""
    file, others = file_in(folder)
    if file is None:
        unread = unread_in(folder)
        raise FileNotFoundError(
            f"{folder} is neither a bundle ({BUNDLE_WEIGHTS} with {DESCRIPTION}) nor a run that holds bundle/. Of a run without one, "
            f"`seer export to=safetensors weights={folder} output=…` makes it from the newest checkpoint. A model folder "
            f"of timm or Hugging Face would hold {' or '.join(LAYOUTS)}"
            + (f"; {', '.join(unread)}, of another framework, is not read" if unread else "")
        )
    if others:
        log.info(f"{folder}: {file.name} is read, not {', '.join(others)}")
    return file


def _if_of_a_hub(path: Path) -> str:
    if not _HUB_NAME.fullmatch(str(path)) or path.suffix in (".pth", ".pt", ".torch", ".safetensors", ".bin", ".ckpt"):
        return ""
    return (
        f". If this is a name of Hugging Face's hub: nothing is downloaded here; `hf download {path} --local-dir FOLDER`, and "
        "give that folder"
    )


def _read(path: Path) -> tuple[Mapping[Any, Any], str, Mapping[str, Any] | None]:
    """Returns (state dict, container, a bundle's description of itself) of a file, whatever its name."""
    if path.name.endswith(INDEX):
        return read_parts(path, lambda part: _read(part)[0]), "parts", None
    if is_safetensors(path) or (path.suffix == ".safetensors" and not is_torch_zip(path)):
        tensors, described = read_safetensors(path)
        return tensors, "safetensors", described
    check_beside(path)
    state, container = read_checkpoint(path)
    return state, container, None


def tensors_in(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Returns the state dict of a file of weights under its own names, without asking what network it is of.

    Raises FileNotFoundError, and what `load_backbone` raises for a file that is none.
    """
    place = Path(path)
    place = _file_in(place) if place.is_dir() else place
    if not place.is_file():
        raise FileNotFoundError(f"{place} does not exist: give a file of weights")
    state: Mapping[Any, Any] = _read(place)[0]
    for name in ("state_dict", "model"):  # as trainers wrap it
        if isinstance(inner := state.get(name), Mapping):
            state = inner
    return {str(name): value for name, value in state.items()}


def tell_age(bundle: Path, described: Mapping[str, Any]) -> None:
    """Warns when the run that a bundle lies in has a newer checkpoint, which is not read here."""
    step, names = step_of(described), [path.name for path in (bundle.parent / "checkpoints").glob("step-*")]
    newest = max((int(name[5:]) for name in names if name[5:].isdecimal()), default=0)
    if step is not None and newest > step:
        log.warning(
            f"{bundle} is of step {step}, the run's newest checkpoint of step {newest}: "
            f"`seer export to=safetensors weights={bundle.parent} output=…` takes that"
        )


def _from_state(
    path: Path, state: Mapping[Any, Any], container: str, described: Mapping[str, Any] | None
) -> tuple[Network, Origin]:
    """Makes the backbone of a state dict. described: what a bundle's file says of itself; its shape is not guessed."""
    what = str(path)
    if described is not None:
        with torch.device("meta"):
            backbone = zoo.of(architecture_in(described, what=what))
        return fill(backbone, state, what=what), Origin(OURS.library, container)
    candidate, others = backbone_in(state, what=what)
    check_stored(path, candidate.state)
    family = candidate.family
    found = family.read(candidate.state, candidate.plain, what)
    with torch.device("meta"):
        backbone = family.build(found.architecture)
    # Checked under the file's own names, so that the message speaks of keys its owner can find.
    expected = {found.spell(ours): tensor for ours, tensor in backbone.state_dict().items()}
    check_weights(found.trunk, expected, what=f"the weights in {what}")
    check_numbers(found.trunk, what=f"the weights in {what}")
    origin = Origin(
        found.library,
        container,
        left_out=candidate.left + found.left_out,
        caution=found.caution,
        taken=candidate.place if candidate.entries or candidate.prefix else "",
        others=tuple(other.place for other in others),
    )
    _tell(what, candidate, origin)
    return fill(backbone, found.known, what=what, checked=True), origin


def _tell(what: str, candidate: Candidate, origin: Origin) -> None:
    """Tells what was chosen and left out, where there was a choice."""
    place = f" from {origin.taken}" if origin.taken else ""
    left = f"; {origin.left_out} entries beside it are left out (heads, other networks)" if origin.left_out else ""
    if origin.others:
        log.warning(
            f"{what}: the {candidate.family.title}{place} is taken{left}; not taken: {', '.join(origin.others)}. To take "
            "another, save its state dict alone"
        )
    elif place or left:
        log.info(f"{what}: a {candidate.family.title} in names of {origin.library} is read{place}{left}")
