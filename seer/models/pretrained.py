"""Loading a backbone from anywhere: our runs and bundles, RegNetY of torchvision, VISSL (SEER), timm, Hugging Face; ResNets.

Surprising:
- A file's name says nothing here: widths, depths, group widths and the squeeze ratio are read off the tensors' shapes,
  because published files exist whose names promise another model than they hold. Only the stem's stride is not in any
  shape: it comes from a bundle's description, and is 2 for everything else.
- Heads and classifiers are left out; every other key must be there, be expected and have its shape, or nothing is loaded.
- Pickles cannot run code: see `seer.models.checkpoints`. What tensors are called: `seer.models.names`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seer.core.errors import RequestError
from seer.core.log import log
from seer.models import zoo
from seer.models.bundle import (
    DESCRIPTION,
    WEIGHTS,
    check_weights,
    fill,
    read_bundle,
    read_safetensors,
    stem_stride_of,
    step_of,
)
from seer.models.checkpoints import read_checkpoint
from seer.models.names import LIBRARIES, OURS, RESNET_HEADS, TORCHVISION, Names, is_resnet, recognise, unwrapped
from seer.models.regnet import RegNet
from seer.models.shapes import architecture_of, resnet_architecture_of

if TYPE_CHECKING:
    from seer.core.protocols import Backbone

MODEL_FILE = "model.safetensors"  # what timm and Hugging Face call the weights in a model's folder


@dataclass(frozen=True)
class Origin:
    """Where weights came from: whose names, which container, how many keys of heads were left out, and what to heed."""

    library: str
    container: str
    left_out: int = 0
    caution: str | None = None


def load_backbone(path_or_run: str | os.PathLike[str]) -> Backbone:
    """The backbone that a run, a bundle or a weights file holds: float32, on the CPU, in eval mode.

    Takes a run folder (with `bundle/`), a bundle folder, a folder with `model.safetensors` as timm and Hugging Face write
    it, a `.safetensors` file, or a file that torch.save wrote (`.pth`, `.pt`, `.torch`): a state dict in our names or those
    of torchvision, VISSL, timm or Hugging Face, wrapped or not, or a checkpoint of VISSL (the list file of a cut one).

    Raises FileNotFoundError when nothing is there; RequestError, a ValueError, for what is no RegNetY of a known kind;
    ValueError for missing, unexpected or wrong-shaped keys: the first five are named, as the file spells them, and nothing
    is loaded.
    """
    return load_with_origin(path_or_run)[0]


def load_with_origin(path_or_run: str | os.PathLike[str]) -> tuple[Backbone, Origin]:
    """As `load_backbone`, and where the weights came from."""
    path = Path(path_or_run)
    if path.is_dir():
        for folder in (path, path / "bundle"):
            if (folder / WEIGHTS).is_file():
                backbone, card = read_bundle(folder)
                tell_age(folder, card)
                return backbone, Origin(OURS.library, "bundle")
        if not (path / MODEL_FILE).is_file():
            raise FileNotFoundError(
                f"{path} is neither a bundle ({WEIGHTS} with {DESCRIPTION}) nor a run that holds bundle/. Of a run without one, "
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
    return _from_state(state, container, stem_stride=stem_stride_of(described, what=str(path)), what=str(path))


def tell_age(bundle: Path, described: Mapping[str, Any]) -> None:
    """Warns when the run that a bundle lies in has a newer checkpoint, which is not read here."""
    step, names = step_of(described), [path.name for path in (bundle.parent / "checkpoints").glob("step-*")]
    newest = max((int(name[5:]) for name in names if name[5:].isdecimal()), default=0)
    if step is not None and newest > step:
        log.warning(
            f"{bundle} is of step {step}, the run's newest checkpoint of step {newest}: "
            f"`seer export to=safetensors weights={bundle.parent} output=…` takes that"
        )


def to_names(names: Names, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under another library's names; the tensors are the same objects.

    Raises RequestError for keys that are no RegNet's of ours, the first five named.
    """
    return _renamed(state_dict, names.from_ours, what=OURS.library)


def from_names(names: Names, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Another library's RegNetY state dict under our names, without its heads; the tensors are the same objects.

    Raises RequestError for keys that are no RegNetY's of theirs, the first five named.
    """
    trunk = {key: tensor for key, tensor in state_dict.items() if not names.heads.fullmatch(key)}
    return _renamed(trunk, names.to_ours, what=names.library)


def to_torchvision_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`to_names` for torchvision: keys of `torchvision.models.regnet.RegNet` without its classifier `fc`."""
    return to_names(TORCHVISION, state_dict)


def from_torchvision_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`from_names` for torchvision: its classifier `fc` is left out."""
    return from_names(TORCHVISION, state_dict)


def _renamed(state_dict: Mapping[str, Tensor], name: Callable[[str], str | None], *, what: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state_dict.items():
        if new := name(key):
            renamed[new] = tensor
        else:
            unknown.append(key)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise RequestError(
            f"these keys are no RegNetY's in names of {what}: {', '.join(map(repr, unknown[:5]))}{more}. Give a plain "
            "RegNetY's state dict"
        )
    return renamed


def _from_state(state: Mapping[str, Any], container: str, *, stem_stride: int, what: str) -> tuple[Backbone, Origin]:
    plain = {key: unwrapped(key) for key in state}
    if is_resnet(plain.values()):
        return _resnet_from_state(state, plain, container, what=what)
    names = recognise(plain.values())
    if names is None:
        raise RequestError(
            f"{what} holds no RegNetY in names of {', '.join(n.library for n in LIBRARIES)}; its first keys: "
            f"{', '.join(map(repr, list(state)[:5])) or 'none'}. Give the weights of a RegNetY"
        )
    trunk = {key: value for key, value in state.items() if not names.heads.fullmatch(plain[key])}
    spelled: dict[str, str] = {}  # ours -> as the file says it
    for key in trunk:
        if not (ours := names.to_ours(plain[key])):
            continue
        if ours in spelled:
            raise RequestError(f"{what} holds one tensor twice, as {spelled[ours]!r} and {key!r}: remove one of them")
        spelled[ours] = key
    if not any(".se." in ours for ours in spelled):
        raise RequestError(
            f"{what} is a RegNet of {names.library} without squeeze-and-excitation (RegNetX); only RegNetY is supported"
        )
    known = {ours: trunk[key] for ours, key in spelled.items()}
    with torch.device("meta"):
        backbone = RegNet(**architecture_of(known, entries=len(trunk), what=what), stem_stride=stem_stride)
    # Checked under the file's own names, so that the message speaks of keys its owner can find.
    wrapper = _in_front(spelled.values(), plain)
    wanted = {
        spelled.get(ours) or f"{wrapper}{names.from_ours(ours)}": tensor
        for ours, tensor in backbone.state_dict().items()
    }
    check_weights(trunk, wanted, what=f"the weights in {what}")
    left_out = len(state) - len(trunk)
    caution = None
    if any(".clf." in key for key in state):  # a head of VISSL; other libraries have none of that name
        caution = (
            "VISSL's supervised RegNets were trained on BGR pictures, SEER's and its fine-tuned ones on RGB; the file does "
            "not say which it is. If its accuracy is low, reverse the stem's three input channels"
        )
    return fill(backbone, known, what=what), Origin(names.library, container, left_out, caution)


def _resnet_from_state(
    state: Mapping[str, Any], plain: Mapping[str, str], container: str, *, what: str
) -> tuple[Backbone, Origin]:
    """All libraries share the names, so whose file it was is not known: told from what it holds besides."""
    known: dict[str, Any] = {}
    for key, value in state.items():
        if not RESNET_HEADS.fullmatch(plain[key]):
            if plain[key] in known:
                raise RequestError(f"{what} holds {plain[key]!r} twice: remove one of them")
            known[plain[key]] = value
    with torch.device("meta"):
        backbone = zoo.of(resnet_architecture_of(known, what=what))
    left_out = len(state) - len(known)
    for key in backbone.state_dict():  # old files have no counters of batch norm, which nothing reads
        if key.endswith(".num_batches_tracked"):
            known.setdefault(key, torch.tensor(0))
    return fill(backbone, known, what=what), Origin(TORCHVISION.library, container, left_out)


def _in_front(keys: Any, plain: Mapping[str, str]) -> str:
    """What stands before the names in this file, told by one key whose name ends as its unwrapped self."""
    return next((key.removesuffix(plain[key]) for key in keys if key.endswith(plain[key])), "")
