"""Says what SEER knows of a family of networks: one row says how to build it, read it from files, and hand it over.

Surprising:
- The blocks for recompute, FSDP, compile and memory are the network's own to tell, by a method `blocks()`: the packages that
  ask hold networks, not rows (`parallel/blocks.py` has the rules). `Family.blocks` is the same by the row.
- An *architecture* is a dict of plain JSON values: the constructor's arguments, and the family's name but for RegNets,
  whose bundles of the first version say none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from seer.core.errors import RequestError
from seer.core.protocols import Backbone

OURS = "safetensors"  # the one format of weights that holds every family
LIBRARIES = ("torchvision", "timm", "huggingface")  # targets that rebuild the network in their own code
PROGRAMS = ("torch_export", "onnx", "executorch")  # targets that carry the network's own operations, whatever they are


class Network(Backbone, Protocol):
    """A backbone as bundles and exports take it: an `nn.Module` that tells its own shape and its blocks."""

    @property
    def architecture(self) -> dict[str, Any]: ...

    def blocks(self) -> dict[str, nn.Module]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...

    def to_empty(self, *, device: Any) -> Self: ...

    def to(self, *arguments: Any) -> Self: ...

    def eval(self) -> Self: ...


@dataclass(frozen=True)
class Reading:
    """Holds a file's state dict, understood. trunk: what is not of a head, under the file's names; known: the
    same under ours; spell: our name -> how this file would say it, for messages that its owner can follow.
    library: whose names they are. left_out: how many keys are of heads. caution: what to heed."""

    architecture: Mapping[str, Any]
    trunk: Mapping[str, Any]
    known: Mapping[str, Any]
    spell: Callable[[str], str]
    library: str
    left_out: int
    caution: str | None = None


def _none_of_ours(keys: Iterable[str]) -> bool:
    return False


def _unread(state: Mapping[str, Any], plain: Mapping[str, str], what: str) -> Reading:
    raise RequestError(f"{what}: files of other libraries are not read for this family; give a bundle")


def _fits(backbone: Any) -> str | None:
    return None


def rgb_alone(architecture: Mapping[str, Any]) -> str | None:
    """Returns why torchvision has no such network, where an image has not three channels."""
    channels = architecture.get("in_channels", 3)
    if channels == 3:
        return None
    return f"torchvision's networks take RGB, and these weights images of {channels} channels; to=timm or to=safetensors holds them"


@dataclass(frozen=True)
class Torchvision:
    """Describes torchvision's network of a family. rename: our state dict -> under its names. network: a
    backbone's -> torchvision's of that shape with a classifier `fc`, on the device that is torch's default;
    told: that shape as the result shows it. refusal: why a backbone cannot be one of theirs, or None."""

    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    network: Callable[[Any], nn.Module]
    shown: Callable[[Any], dict[str, Any]]
    refusal: Callable[[Any], str | None] = _fits


@dataclass(frozen=True)
class Timm:
    """Describes timm's networks of a family, which it builds by name. names: of the zoo -> timm's. first_conv,
    classifier: what timm's config calls them. The rest as for torchvision."""

    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    names: Mapping[str, str]
    first_conv: str
    classifier: str
    refusal: Callable[[Any], str | None] = _fits


@dataclass(frozen=True)
class HuggingFace:
    """Describes transformers' networks of a family. rename: our state dict -> under its names. config: a backbone's ->
    what `config.json` says. The rest as for torchvision."""

    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    config: Callable[[Any], dict[str, Any]]
    refusal: Callable[[Any], str | None] = _fits


@dataclass(frozen=True)
class Family:
    """Describes one family, a row of the table.

    name: as an architecture says it. title: for people. make: the architecture's entries as keywords, and `device` -> the
    network, freshly initialized. keys: those entries. zoo: names -> architectures without the stem's stride, small to large.
    describe: an architecture in one line. features: of an architecture, the numbers an image becomes. claims: whether
    unwrapped keys of a file name blocks of it. read: (state dict of a file, its keys -> unwrapped ones, what to call the
    file) -> a `Reading`; raises RequestError. torchvision, timm, huggingface: None where that library has no such networks.
    children: the names of the children of torchvision's network, in their order, as `nn.Sequential(*model.children())` numbers
    them. optional: entries of an architecture that may be absent. borrowed: its networks are another library's code, built by their
    names there.
    """

    name: str
    title: str
    make: Callable[..., Any]
    keys: tuple[str, ...]
    describe: Callable[[Mapping[str, Any]], str]
    features: Callable[[Mapping[str, Any]], int]
    zoo: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    claims: Callable[[Iterable[str]], bool] = _none_of_ours
    read: Callable[[Mapping[str, Any], Mapping[str, str], str], Reading] = _unread
    torchvision: Torchvision | None = None
    timm: Timm | None = None
    huggingface: HuggingFace | None = None
    children: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    borrowed: bool = False

    def build(self, architecture: Mapping[str, Any], device: torch.device | str | None = None) -> Network:
        """Returns the network of an architecture, freshly initialized."""
        return self.make(**self.arguments(architecture), device=device)

    def arguments(self, architecture: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the constructor's arguments in an architecture, lists for tuples, without whose they are."""
        given = ((key, value) for key, value in architecture.items() if key != "family")
        return {key: list(value) if isinstance(value, tuple) else value for key, value in given}

    def blocks(self, network: Network) -> dict[str, nn.Module]:
        """Returns {"stage3.block4": module, ...} in the order of depth."""
        return network.blocks()

    @property
    def exports(self) -> list[str]:
        """Returns the targets of `seer export` that hold this family."""
        libraries = [target for target in LIBRARIES if getattr(self, target) is not None]
        return [*libraries, OURS, *PROGRAMS]

    def refuse(self, target: str) -> RequestError:
        """Returns the error that says what this family exports to instead."""
        return RequestError(
            f"to={target}: networks of the family {self.name!r} are not written for {target}; they go to "
            f"{', '.join(self.exports)}"
        )
