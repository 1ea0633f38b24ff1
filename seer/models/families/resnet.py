"""Describes ResNets of bottleneck blocks, one of the families: two named shapes, files of all libraries, and
where they go.

The network is `models/resnet.py`, imported when one is built, since torchvision's models take 1.4 s.

Surprising: all libraries share the names of the tensors, so nothing is renamed, and whose file it was is told from what it
holds besides. Old files lack the counters of batch norm, which nothing reads while `momentum` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from seer.core.errors import RequestError
from seer.models.families.family import Family, Reading, Timm, Torchvision, rgb_alone
from seer.models.infer_architecture import in_channels
from seer.models.key_maps import TORCHVISION, VISSL

if TYPE_CHECKING:
    from seer.models.resnet import ResNet

# What stands on a ResNet: torchvision's and timm's classifier, SwAV's head, VISSL's heads.
HEADS = re.compile(rf"fc\.(weight|bias)|(projection_head|prototypes)\..+|{VISSL.heads.pattern}")
BLOCK_NAME = re.compile(r"layer(?P<stage>[1-4])\.(?P<block>\d{1,4})\.(conv[123]|bn[123]|downsample\.[01])\.\w+")
OUT = 256  # channels of layer1 in every ResNet and ResNeXt of bottlenecks (arXiv 1512.03385, table 1)
ROWS: dict[str, dict[str, Any]] = {
    "resnet_50": {"depths": [3, 4, 6, 3], "groups": 1, "width_per_group": 64},
    "resnext_101_32x8d": {"depths": [3, 4, 23, 3], "groups": 32, "width_per_group": 8},
}


def make(**architecture: Any) -> ResNet:
    """Returns the network, freshly initialized."""
    from seer.models.resnet import ResNet

    return ResNet(**architecture)


def read(state: Mapping[str, Any], plain: Mapping[str, str], what: str) -> Reading:
    """Returns what a file of any library holds. Raises RequestError for a tensor that is there twice, for blocks that are no
    bottlenecks, and for tensors that tell no shape."""
    known: dict[str, Any] = {}
    for key, value in state.items():
        if not HEADS.fullmatch(plain[key]):
            if plain[key] in known:
                raise RequestError(f"{what} holds {plain[key]!r} twice: remove one of them")
            known[plain[key]] = value
    architecture = architecture_of(known, what=what)
    left_out = len(state) - len(known)
    for key in [key for key in known if key.endswith(".running_mean")]:
        known.setdefault(f"{key.removesuffix('running_mean')}num_batches_tracked", torch.tensor(0))
    return Reading(architecture, known, known, lambda ours: ours, TORCHVISION.library, left_out)


def architecture_of(tensors: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """Returns the `ResNet.architecture` that fits these tensors. Raises RequestError where they tell none of bottleneck blocks."""
    depths = [0, 0, 0, 0]
    for key in tensors:
        if found := BLOCK_NAME.fullmatch(key):
            stage, block = int(found["stage"]) - 1, int(found["block"])
            depths[stage] = max(depths[stage], block + 1)
    middle = tensors.get("layer1.0.conv2.weight")
    if "layer1.0.conv3.weight" not in tensors:
        raise RequestError(
            f"{what} is a ResNet of plain blocks (18 or 34 layers), or not whole; those of bottlenecks, 50 layers and more, are read"
        )
    if not isinstance(middle, Tensor) or middle.ndim != 4 or not middle.shape[1] or sum(depths) > len(tensors):
        raise RequestError(
            f"{what} does not tell its architecture: layer1.0.conv2.weight is missing or damaged. Give the whole file"
        )
    width, each = middle.shape[:2]
    last = tensors["layer1.0.conv3.weight"]
    out = last.shape[0] if isinstance(last, Tensor) and last.ndim == 4 else 0
    widen = out // OUT
    if out % OUT or not widen or each % widen or min(depths) < 1:
        raise RequestError(
            f"{what} is a ResNet of other widths: layer1 gives {out} channels, of a 3 x 3 convolution of {width} in groups of "
            f"{each}, and its stages have {depths} blocks; those read give a multiple of {OUT}, like ResNet-50, ResNeXt and "
            "SwAV's ResNet-50w2, and have four stages"
        )
    architecture = {"family": "resnet", "depths": depths, "groups": width // each, "width_per_group": each // widen}
    return architecture | ({"widen": widen} if widen > 1 else {}) | in_channels(tensors.get("conv1.weight"))


def _claims(keys: Iterable[str]) -> bool:
    return any(BLOCK_NAME.fullmatch(key) for key in keys)


def _describe(shape: Mapping[str, Any]) -> str:
    depths = ", ".join(f"{depth:g}" for depth in shape["depths"])
    widened = f", {shape['widen']} times as wide" if shape.get("widen", 1) != 1 else ""
    return f"depths {depths}, {shape['groups']} groups of {shape['width_per_group']} channels{widened}"


def _refusal(library: str, backbone: ResNet) -> str | None:
    if backbone.widen == 1:
        return rgb_alone(backbone.architecture) if library == "torchvision" else None
    return f"widen={backbone.widen}: {library} has no ResNet whose every width is so many times the usual. to=safetensors keeps it"


def _same(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return state_dict


def _torchvision(backbone: ResNet) -> nn.Module:
    from torchvision.models import resnet

    shape = {"groups": backbone.groups, "width_per_group": backbone.width_per_group}
    return resnet.ResNet(resnet.Bottleneck, list(backbone.depths), **shape)


FAMILY = Family(
    name="resnet",
    title="ResNet",
    make=make,
    keys=("depths", "groups", "width_per_group"),
    zoo=ROWS,
    describe=_describe,
    features=lambda architecture: 2048 * architecture.get("widen", 1),
    claims=_claims,
    children=("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"),
    read=read,
    torchvision=Torchvision(
        _same,
        _torchvision,
        shown=lambda backbone: {"resnet": backbone.architecture},
        refusal=partial(_refusal, "torchvision"),
    ),
    optional=("widen",),
    timm=Timm(
        _same,
        names={"resnet_50": "resnet50", "resnext_101_32x8d": "resnext101_32x8d"},
        first_conv="conv1",
        classifier="fc",
        refusal=partial(_refusal, "timm"),
    ),
)
