"""Describes RegNetY, one of the families: its named shapes, its files from other libraries, and where it goes.

The network is `models/regnet.py`, the names of its tensors `models/names.py`, its shape out of tensors `models/shapes.py`.

Surprising: torchvision and timm fix the stem's stride at 2, so a network of stride 1 would load there and compute other
features. And torchvision's builders (`regnet_y_16gf`, ...) compute widths by another rounding rule than SEER's, so a network
of exactly our widths is made from `BlockParams` with explicit lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from seer.core.errors import RequestError
from seer.core.log import log
from seer.models.families.family import Family, HuggingFace, Reading, Timm, Torchvision, rgb_alone
from seer.models.infer_architecture import architecture_of
from seer.models.key_maps import HUGGING_FACE, OURS, TIMM, TORCHVISION, Names, recognise
from seer.models.regnet import RegNet, Shape

COUNTER = "num_batches_tracked"


def _row(widths: tuple[int, ...], depths: tuple[int, ...], group_width: int) -> Shape:
    return Shape(widths, depths, (group_width,) * len(widths))


ROWS: dict[str, Shape] = {
    # name                      stage widths                depths          group width
    "regnety_200mf": _row((24, 56, 152, 368), (1, 1, 4, 7), 8),
    "regnety_400mf": _row((48, 104, 208, 440), (1, 3, 6, 6), 8),
    "regnety_600mf": _row((48, 112, 256, 608), (1, 3, 7, 4), 16),
    "regnety_800mf": _row((64, 128, 320, 768), (1, 3, 8, 2), 16),
    "regnety_800mf_tv": _row((64, 144, 320, 784), (1, 3, 8, 2), 16),
    "regnety_1_6gf": _row((48, 120, 336, 888), (2, 6, 17, 2), 24),
    "regnety_3_2gf": _row((72, 216, 576, 1512), (2, 5, 13, 1), 24),
    "regnety_4gf": _row((128, 192, 512, 1088), (2, 6, 12, 2), 64),
    "regnety_4gf_tv": _row((128, 256, 512, 1088), (2, 6, 12, 2), 64),
    "regnety_6_4gf": _row((144, 288, 576, 1296), (2, 7, 14, 2), 72),
    "regnety_8gf": _row((168, 448, 896, 2016), (2, 4, 10, 1), 56),
    "regnety_8gf_tv": _row((224, 448, 896, 2016), (2, 4, 10, 1), 56),
    "regnety_12gf": _row((224, 448, 896, 2240), (2, 5, 11, 1), 112),
    "regnety_16gf": _row((224, 448, 1232, 3024), (2, 4, 11, 1), 112),
    "regnety_32gf": _row((232, 696, 1392, 3712), (2, 5, 12, 1), 232),
    "regnety_64gf": _row((328, 984, 1968, 4920), (2, 5, 12, 1), 328),
    "regnety_128gf": _row((528, 1056, 2904, 7392), (2, 7, 17, 1), 264),
    "regnety_256gf": _row((746, 1492, 4103, 10444), (2, 7, 17, 1), 373),
    "regnety_10b": _row((2020, 4040, 11110, 28280), (2, 7, 17, 1), 1010),
}
TIMM_NAMES = {  # ours -> timm's; it has no 10B, and no 4GF of torchvision's rounding
    "regnety_200mf": "regnety_002",
    "regnety_400mf": "regnety_004",
    "regnety_600mf": "regnety_006",
    "regnety_800mf": "regnety_008",
    "regnety_800mf_tv": "regnety_008_tv",
    "regnety_1_6gf": "regnety_016",
    "regnety_3_2gf": "regnety_032",
    "regnety_4gf": "regnety_040",
    "regnety_6_4gf": "regnety_064",
    "regnety_8gf": "regnety_080",
    "regnety_8gf_tv": "regnety_080_tv",
    "regnety_12gf": "regnety_120",
    "regnety_16gf": "regnety_160",
    "regnety_32gf": "regnety_320",
    "regnety_64gf": "regnety_640",
    "regnety_128gf": "regnety_1280",
    "regnety_256gf": "regnety_2560",
}


def to_names(names: Names, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns our state dict under another library's names; the tensors are the same objects.

    Raises RequestError for keys that are no RegNet's of ours, the first five named.
    """
    return _renamed(state_dict, names.from_ours, what=OURS.library)


def from_names(names: Names, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns another library's RegNetY state dict under our names, without its heads; the tensors are the same objects.

    Raises RequestError for keys that are no RegNetY's of theirs, the first five named.
    """
    trunk = {key: tensor for key, tensor in state_dict.items() if not names.heads.fullmatch(key)}
    return _renamed(trunk, names.to_ours, what=names.library)


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


def read(state: Mapping[str, Any], plain: Mapping[str, str], what: str) -> Reading:
    """Returns what a file of ours, torchvision, VISSL, timm or Hugging Face holds. Raises RequestError for a RegNetX, for a
    tensor that is there twice, and for tensors that tell no shape."""
    names = recognise(plain.values())
    assert names is not None  # or these keys had not been claimed
    trunk = {key: value for key, value in state.items() if not names.heads.fullmatch(plain[key])}
    spelled: dict[str, str] = {}  # ours -> as the file says it
    for key in trunk:
        if not (ours := names.to_ours(plain[key])):
            continue
        if ours in spelled:
            raise RequestError(f"{what} holds one tensor twice, as {spelled[ours]!r} and {key!r}: remove one of them")
        spelled[ours] = key
    if not any(".se." in ours for ours in spelled):
        kind = "a RegNetX, or a ResNet in Hugging Face's names" if names is HUGGING_FACE else "a RegNetX"
        raise RequestError(
            f"{what} has blocks in names of {names.library} without squeeze-and-excitation ({kind}); of networks in these "
            "names only RegNetY is read"
        )
    wrapper = _in_front(spelled.values(), plain)
    counters = _absent_counters(spelled)
    for ours in counters:
        spelled[ours] = f"{wrapper}{names.from_ours(ours)}"
        trunk[spelled[ours]] = torch.tensor(0)
    if counters:
        log.info(
            f"{what} has none of the {len(counters)} counters of batch norm (num_batches_tracked); they begin at 0, and nothing "
            "reads them while `momentum` is a number"
        )
    known = {ours: trunk[key] for ours, key in spelled.items()}
    caution = None
    if any(".clf." in key for key in state):  # a head of VISSL; other libraries have none of that name
        caution = (
            "VISSL's supervised RegNets were trained on BGR images, SEER's and its fine-tuned ones on RGB; the file does "
            "not say which it is. If its accuracy is low, reverse the stem's three input channels"
        )
    return Reading(
        architecture=architecture_of(known, entries=len(trunk) - len(counters), what=what),
        trunk=trunk,
        known=known,
        spell=lambda ours: spelled.get(ours) or f"{wrapper}{names.from_ours(ours)}",
        library=names.library,
        left_out=len(state) - len(trunk) + len(counters),
        caution=caution,
    )


def _absent_counters(known: Iterable[str]) -> list[str]:
    """Returns the counters of all batch norms, under our names, of a file that has none of them, as torch wrote files before 1.0
    and converters still do. Of a file that has some, the others are missing, and are refused with the rest that is."""
    keys = list(known)
    if any(key.endswith(f".{COUNTER}") for key in keys):
        return []
    return [f"{key.removesuffix('running_mean')}{COUNTER}" for key in keys if key.endswith(".running_mean")]


def _claims(keys: Iterable[str]) -> bool:
    return recognise(keys) is not None


def _in_front(keys: Iterable[str], plain: Mapping[str, str]) -> str:
    """Returns what stands before the names in this file, told by one key whose name ends as its unwrapped self."""
    return next((key.removesuffix(plain[key]) for key in keys if key.endswith(plain[key])), "")


def _describe(shape: Mapping[str, Any]) -> str:
    lists = {key: ", ".join(f"{value:g}" for value in shape[key]) for key in ("widths", "depths", "group_widths")}
    return (
        f"widths {lists['widths']}, depths {lists['depths']}, group widths {lists['group_widths']}, "
        f"stem of {shape['stem_width']} channels with stride {shape['stem_stride']}"
    )


def _refusal(library: str, backbone: RegNet) -> str | None:
    if backbone.stem_stride == 2:
        return None
    return (
        f"stem_stride={backbone.stem_stride}: {library}'s RegNet has a fixed stride-2 stem and would compute other features "
        "from these weights. to=safetensors keeps the stride"
    )


def _torchvision_refusal(backbone: RegNet) -> str | None:
    return _refusal("torchvision", backbone) or rgb_alone(backbone.architecture)


def _torchvision(backbone: RegNet) -> nn.Module:
    from torchvision.models import regnet

    return regnet.RegNet(regnet.BlockParams(**_block_params(backbone)), stem_width=backbone.stem_width)


def _block_params(backbone: RegNet) -> dict[str, Any]:
    stages = len(backbone.widths)
    return {
        "depths": list(backbone.depths),
        "widths": list(backbone.widths),
        "group_widths": list(backbone.group_widths),
        "bottleneck_multipliers": [1.0] * stages,
        "strides": [2] * stages,
        "se_ratio": backbone.se_ratio,
    }


def _huggingface(backbone: RegNet) -> dict[str, Any]:
    return {
        "architectures": ["RegNetModel"],
        "model_type": "regnet",
        "num_channels": backbone.in_channels,
        "embedding_size": backbone.stem_width,
        "hidden_sizes": list(backbone.widths),
        "depths": list(backbone.depths),
        "groups_width": backbone.group_widths[0],
        "layer_type": "y",
        "hidden_act": "relu",
        "downsample_in_first_stage": True,
    }


def _huggingface_refusal(backbone: RegNet) -> str | None:
    others = "to=safetensors, to=torch_export and to=onnx take every shape"
    if why := _refusal("transformers", backbone):
        return why
    if len(set(backbone.group_widths)) > 1:
        widths = ", ".join(map(str, backbone.group_widths))
        return f"group widths {widths}: transformers' RegNet has one group width for all stages. {others}"
    if backbone.se_ratio != 0.25:
        return f"se_ratio={backbone.se_ratio:g}: transformers' RegNet squeezes to 0.25, fixed in its code. {others}"
    return None


FAMILY = Family(
    name="regnet",
    title="RegNetY",
    make=RegNet,
    keys=("widths", "depths", "group_widths", "se_ratio", "stem_width", "stem_stride"),
    zoo={
        name: {
            "widths": list(shape.widths),
            "depths": list(shape.depths),
            "group_widths": list(shape.group_widths),
            "se_ratio": 0.25,
            "stem_width": 32,
        }
        for name, shape in ROWS.items()
    },
    describe=_describe,
    features=lambda architecture: architecture["widths"][-1],
    claims=_claims,
    children=("stem", "trunk_output", "avgpool", "fc"),
    read=read,
    torchvision=Torchvision(
        rename=partial(to_names, TORCHVISION),
        network=_torchvision,
        shown=lambda backbone: {"block_params": _block_params(backbone)},
        refusal=_torchvision_refusal,
    ),
    timm=Timm(
        rename=partial(to_names, TIMM),
        names=TIMM_NAMES,
        first_conv="stem.conv",
        classifier="head.fc",
        refusal=partial(_refusal, "timm"),
    ),
    huggingface=HuggingFace(rename=partial(to_names, HUGGING_FACE), config=_huggingface, refusal=_huggingface_refusal),
)
