"""Reads from `weights=…` a backbone and what is known of it."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seer.core.errors import RequestError
from seer.core.log import log
from seer.data.pixels import Pixels
from seer.models.bundle import (
    BUNDLE_WEIGHTS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    card_of,
    check_weights,
    read_bundle,
    read_safetensors,
    step_of,
)
from seer.models.families.family import Network
from seer.models.file_kinds import is_safetensors
from seer.models.key_maps import VISSL
from seer.models.library_network import LibraryNetwork
from seer.models.model_folders import LAYOUTS, pixels_in
from seer.models.numbers import check_numbers
from seer.models.pretrained import load_with_origin, tell_age, tensors_in
from seer.models.zoo import name_of
from seer.parallel.collectives import Group, gather_text
from seer.run import newest as run_weights
from seer.run.newest import BUNDLE, State


def load(path: str) -> tuple[Network, dict[str, Any]]:
    """Returns the backbone and the card of `state`."""
    found = state(path)
    return found.backbone, found.card


def state(path: str) -> State:
    """Returns the backbone of a run, a checkpoint, a bundle or a file of weights, its card (ImageNet's
    normalization where none is told, as a model folder's config may), and the step that it is of.

    The licence of foreign weights stands in no file, so the card says that, and what is known of VISSL's.
    """
    place = Path(path)
    if found := run_weights.of(place):
        return found
    for folder in (place, place / BUNDLE):
        if (folder / BUNDLE_WEIGHTS).is_file():
            backbone, described = read_bundle(folder)
            tell_age(folder, described)
            return State(backbone, card_of(described), step_of(described), "bundle")
    loaded, origin = load_with_origin(path)
    if origin.caution:
        log.warning(f"{path}: {origin.caution}")
    licence = f"imported from {place.name} in names of {origin.library}, which states none"
    if origin.library == VISSL.library:
        licence += "; Meta published its SEER weights for non-commercial use only"
    card: dict[str, Any] = {
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "input_size": 224,
        "licence": licence,
    }
    card |= {"caution": origin.caution}
    folder = place.parent if place.name in LAYOUTS else place
    if folder.is_dir() and (said := pixels_in(folder)):
        log.info(f"{path} says of its pixels: {', '.join(f'{key} {value}' for key, value in said.items())}")
        card |= said
    chosen = {"weights_part": origin.taken, "weights_left_out": origin.left_out, "weights_others": list(origin.others)}
    return State(loaded, card, chosen={key: value for key, value in chosen.items() if value})


def of_seer(path: str) -> bool:
    """Returns whether weights are a run's, a checkpoint's or a bundle's, and no file of another library."""
    place = Path(path)
    if (
        any((folder / BUNDLE_WEIGHTS).is_file() for folder in (place, place / BUNDLE))
        or run_weights.of(place) is not None
    ):
        return True
    return place.is_file() and is_safetensors(place) and read_safetensors(place)[1] is not None


def _in_names_of_the_library(path: str, backbone: LibraryNetwork) -> str:
    """Copies a file of a network's own library into it, and returns what is known of its licence. Raises RequestError and ValueError."""
    tensors = backbone.own_names(tensors_in(path))
    check_weights(tensors, backbone.state_dict(), what=f"the weights in {path}")
    check_numbers(tensors, what=f"the weights in {path}")
    backbone.load_state_dict(tensors)
    log.info(f"the backbone starts from {path}, in names of {backbone.library}; the head is made anew")
    return f"imported from {Path(path).name} in names of {backbone.library}, which states none"


def digest(*modules: nn.Module | Mapping[str, torch.Tensor]) -> str:
    """Returns the sha256 of what networks hold: of each tensor, sorted by name, `name dtype shape` and a line's end, then its
    bytes. The same for a run, its checkpoint and its bundle, whatever their files are. modules: or the tensors of some by name."""
    found = hashlib.sha256()
    for module in modules:
        tensors = module.state_dict() if isinstance(module, nn.Module) else module
        for name, tensor in sorted(tensors.items()):
            plain = tensor.detach().cpu().contiguous()
            found.update(f"{name} {str(plain.dtype).removeprefix('torch.')} {list(plain.shape)}\n".encode())
            found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def pixels_of(backbone: Network, card: Mapping[str, Any]) -> Pixels:
    """Returns what images are to be decoded to for a backbone, as in its training."""
    return Pixels(ground=card.get("ground") or 0, channels=channels_of(backbone))


def channels_of(backbone: Any) -> int:
    """Returns how many channels the images of a backbone have."""
    return backbone.architecture.get("in_channels", 3)


def start_from(
    path: str, backbone: Network, *, mean: Sequence[float], std: Sequence[float], group: Group | None = None
) -> str | None:
    """Copies the weights into a backbone that will be trained on, in place; returns the licence they came with.

    Raises RequestError, with nothing copied, for weights of another shape than the backbone's. The stem's stride may
    differ: the same weights serve both. group: of all ranks, which must have found the same state of a run that is going.
    """
    if isinstance(backbone, LibraryNetwork) and not of_seer(path):
        return _in_names_of_the_library(path, backbone)
    found = state(path)
    loaded, card = found.backbone, found.card
    steps = gather_text(f"{found.kind} of step {found.step}", group)
    if len(set(steps)) > 1:
        raise RequestError(
            f"weights={path} is a run that goes on: ranks have read {', '.join(sorted(set(steps)))}; give one of its "
            "checkpoints that stays, like checkpoints/step-00001000"
        )
    shapes = [{key: value for key, value in b.architecture.items() if key != "stem_stride"} for b in (loaded, backbone)]
    channels = [channels_of(one) for one in (loaded, backbone)]
    if channels[0] != channels[1]:
        raise RequestError(
            f"weights={path} is of images with {channels[0]} channels, data.channels={channels[1]}: give data.channels={channels[0]}"
        )
    if shapes[0] != shapes[1]:
        held, expected = (name_of(b.architecture) or b.architecture for b in (loaded, backbone))
        raise RequestError(f"weights={path} holds {held}, the model is {expected}: give model= of the weights' shape")
    if [list(card["mean"]), list(card["std"])] != [list(mean), list(std)]:
        log.warning(
            f"{path} was trained with mean {card['mean']} and std {card['std']}, this run has mean {list(mean)} and std "
            f"{list(std)}; augment.mean and augment.std set them"
        )
    backbone.load_state_dict(loaded.state_dict())
    log.info(f"the backbone starts from {path}; the head is made anew")
    return card.get("licence")
