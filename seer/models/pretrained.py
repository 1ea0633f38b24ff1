"""Loads a backbone from anywhere: our runs and bundles, RegNetY of torchvision, VISSL (SEER), timm, Hugging
Face; ResNets.

Surprising:
- A file's name says nothing here: widths, depths, group widths and the squeeze ratio are read off the tensors' shapes,
  because published files exist whose names promise another model than they hold. Only the stem's stride is not in any
  shape: a bundle's file describes itself, and 2 is taken for everything else.
- Heads and classifiers are left out; every other key must be there, be expected and have its shape, or nothing is loaded.
- Pickles cannot run code: see `seer.models.foreign_containers`. What tensors are called: `seer.models.families`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seer.core.errors import RequestError
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
from seer.models.families import FAMILIES
from seer.models.foreign_containers import read_checkpoint
from seer.models.key_maps import LIBRARIES, OURS, unwrapped

if TYPE_CHECKING:
    from seer.core.protocols import Backbone

MODEL_FILE = "model.safetensors"  # what timm and Hugging Face call the weights in a model's folder


@dataclass(frozen=True)
class Origin:
    """Says where weights came from: whose names, which container, how many keys of heads were left out, and
    what to heed."""

    library: str
    container: str
    left_out: int = 0
    caution: str | None = None


def load_backbone(path_or_run: str | os.PathLike[str]) -> Backbone:
    """Loads the backbone that a run, a bundle or a weights file holds: float32, on the CPU, in eval mode.

    Takes a run folder (with `bundle/`), a bundle folder, a folder with `model.safetensors` as timm and Hugging Face write
    it, a `.safetensors` file, or a file that torch.save wrote (`.pth`, `.pt`, `.torch`): a state dict in our names or those
    of torchvision, VISSL, timm or Hugging Face, wrapped or not, or a checkpoint of VISSL (the list file of a cut one).

    Raises FileNotFoundError when nothing is there; RequestError, a ValueError, for what is no RegNetY of a known kind;
    ValueError for missing, unexpected or wrong-shaped keys: the first five are named, as the file spells them, and nothing
    is loaded.
    """
    return load_with_origin(path_or_run)[0]


def load_with_origin(path_or_run: str | os.PathLike[str]) -> tuple[Backbone, Origin]:
    """Loads as `load_backbone` does, and returns where the weights came from, too."""
    path = Path(path_or_run)
    if path.is_dir():
        for folder in (path, path / "bundle"):
            if (folder / BUNDLE_WEIGHTS).is_file():
                backbone, card = read_bundle(folder)
                tell_age(folder, card)
                return backbone, Origin(OURS.library, "bundle")
        if not (path / MODEL_FILE).is_file():
            raise FileNotFoundError(
                f"{path} is neither a bundle ({BUNDLE_WEIGHTS} with {DESCRIPTION}) nor a run that holds bundle/. Of a run without one, "
                f"`seer export to=safetensors weights={path} output=…` makes it from the newest checkpoint. A model folder "
                f"of timm or Hugging Face would hold {MODEL_FILE}"
            )
        path = path / MODEL_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a run folder, a bundle folder or a file of weights")
    described: Mapping[str, Any] | None = None
    if path.suffix == ".safetensors":
        tensors, described = read_safetensors(path)
        state, container = dict(tensors), "safetensors"
    else:
        state, container = read_checkpoint(path)
    return _from_state(state, container, described, what=str(path))


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
    state: Mapping[str, Any], container: str, described: Mapping[str, Any] | None, *, what: str
) -> tuple[Backbone, Origin]:
    """Makes the backbone of a state dict. described: what a bundle's file says of itself; its shape is not guessed."""
    if described is not None:
        with torch.device("meta"):
            backbone = zoo.of(architecture_in(described, what=what))
        return fill(backbone, state, what=what), Origin(OURS.library, container)
    plain = {key: unwrapped(key) for key in state}
    family = next((row for row in FAMILIES.values() if row.claims(plain.values())), None)
    if family is None:
        raise RequestError(
            f"{what} holds no {' or '.join(row.title for row in FAMILIES.values())} in names of "
            f"{', '.join(n.library for n in LIBRARIES)}; its first keys: "
            f"{', '.join(map(repr, list(state)[:5])) or 'none'}. Give the weights of one, or a bundle, which says its shape"
        )
    found = family.read(state, plain, what)
    with torch.device("meta"):
        backbone = family.build(found.architecture)
    # Checked under the file's own names, so that the message speaks of keys its owner can find.
    expected = {found.spell(ours): tensor for ours, tensor in backbone.state_dict().items()}
    check_weights(found.trunk, expected, what=f"the weights in {what}")
    return fill(backbone, found.known, what=what), Origin(found.library, container, found.left_out, found.caution)
