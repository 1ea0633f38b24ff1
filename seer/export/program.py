"""Makes one program of a bundle: its backbone and heads in one pass, named outputs, and the normalization inside when that is asked for.

Surprising:
- Stages behind the deepest one that a head reads are left out, weights and all: a head at `stage2` makes a small program of a
  large backbone. Without heads the one output is `features`, which `outputs=[features, …]` gives beside heads.
- Heads answer with logits, in the order of their names here. What turns these into classes or boxes stands in the description: a
  softmax costs nothing on the device, and rules such as thresholds are changed without another export.
- Mean and std are never folded into the first convolution. It pads with zeros, which mean the average color once pixels are
  normalized; folded they would mean black, and every feature near the border another number.
- Batch norm stays as it is here; exporters fold it, and the parity check sees that they did it right.
- The traces of the source that `torch.export` keeps name files of the machine; they are taken out before anything is written.

Legend: N images, C channels, S side, D features, Y classes or numbers of a head, M cells of a detector.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from seer.core.errors import RequestError
from seer.data.augment import normalize
from seer.export import parity
from seer.models import cost
from seer.models.bundle import IMAGENET_MEAN, IMAGENET_STD, plain
from seer.models.families.family import Network
from seer.models.head_files import HeadCard, StoredHead, hash_of_tensors
from seer.models.heads.detect import Cells
from seer.models.multi_head import Head, MultiHead, answers
from seer.models.numbers import check_numbers

Given = Literal["normalized", "uint8", "float"]  # what the program is fed with: levels 0 to 255, or 0 to 1
INPUT, OUTPUT = "images", "features"
MOST_BATCH = 1024  # images of one call: a bound that torch.export wants, and states in the file
BATCHES = (1, 3, 8)  # that are compared: one, an odd one, several

Named = dict[str, Tensor]  # outputs of a program by name, in its order


@dataclass(frozen=True)
class Output:
    """Says what an output is. head: whose, None for features. part: of a head with several. shape: without the batch."""

    name: str
    head: str | None
    part: str | None
    shape: tuple[int, ...]


class Program(nn.Module):
    """Turns images [N, C, S, S] into named outputs as one module in eval mode, float32 on the CPU.

    backbone: copied, left alone. given: `normalized` float; `uint8`, levels 0 to 255; `float`, 0 to 1. The last two are
    normalized inside, by the card's mean and std. heads: by name, as a bundle holds them. names: the outputs that are wanted, heads
    and `features`; None: all heads, or the features where there are none.

    Raises RequestError for a name that is no head's, and for a head that stands on another backbone.
    """

    mean: Tensor  # [C, 1, 1]
    std: Tensor

    def __init__(
        self,
        backbone: Network,
        card: Mapping[str, Any],
        given: Given = "normalized",
        heads: Mapping[str, StoredHead] | None = None,
        names: Sequence[str] | None = None,
    ):
        super().__init__()
        check_numbers(backbone.state_dict(), what="the backbone")
        self.names = chosen(heads or {}, names)
        stored = {name: (heads or {})[name] for name in self.names if name != OUTPUT}
        _check_backbone(backbone, stored)
        self.cards: dict[str, HeadCard] = {name: head.card for name, head in stored.items()}
        whole = copy.deepcopy(backbone).to("cpu", torch.float32)
        built: dict[str, Head] = {name: head.build() for name, head in stored.items()}
        self._truth = [MultiHead(whole, built).eval()]  # type: ignore[arg-type]  # in a list: no part of this module
        self.given = given
        self.channels: int = backbone.architecture.get("in_channels", 3)
        self.side: int = card.get("input_size") or 224
        self.read_stages = self._truth[0].stages
        self.read_features = OUTPUT in self.names or not all(head.stages for head in built.values())
        self.backbone = whole if self.read_features else cut(whole, self.read_stages, self.channels)
        self.heads = nn.ModuleList(built.values())  # by number: a head may be called what a module has already
        self.colors = colors(self.channels, card)
        if given != "normalized":
            for name, numbers in self.colors.items():
                self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32)[:, None, None])
        self.eval()
        self.outputs, self.cost = self._described(backbone.architecture)

    def forward(self, images: Tensor) -> Named:
        x = self.normalized(images)
        maps: dict[str, Tensor] = self.backbone.forward_stages(x) if self.read_stages else {}
        features = _features(self.backbone, x, maps) if self.read_features else x  # which nobody reads
        heads = dict(zip(self.cards, self.heads, strict=True))
        return _flat(self.names, features, answers(heads, features, maps, (x.shape[2], x.shape[3])))  # type: ignore[arg-type]

    def truth(self, normalized: Tensor, model: MultiHead | None = None) -> Named:
        """Returns what the network that was given says of [N, C, S, S], with all its stages. model: another copy of it."""
        model = self._truth[0] if model is None else model
        maps = model.backbone.forward_stages(normalized) if model.stages else {}  # type: ignore[operator]
        features = model.backbone(normalized) if self.read_features else normalized
        return _flat(
            self.names, features, answers(model.heads(), features, maps, (normalized.shape[2], normalized.shape[3]))
        )

    def exact(self) -> MultiHead:
        """Returns a copy of the network that was given, in float64."""
        return copy.deepcopy(self._truth[0]).to(torch.float64)

    def normalized(self, images: Tensor) -> Tensor:
        """Returns what enters the backbone, float32 [N, C, S, S]."""
        if self.given == "normalized":
            return images
        pixels = images.float() / 255 if self.given == "uint8" else images
        return (pixels - self.mean) / self.std

    def feed(self, pixels: Tensor) -> Tensor:
        """Returns what this program is to be fed with for the levels of images, uint8 [N, C, S, S]."""
        if self.given == "uint8":
            return pixels
        unit = pixels.float() / 255
        return unit if self.given == "float" else normalize(unit, **self.colors)

    def example(self, count: int) -> Tensor:
        """Returns black images as this program is fed with them."""
        return self.feed(torch.zeros(count, self.channels, self.side, self.side, dtype=torch.uint8))

    def _described(self, architecture: Mapping[str, Any]) -> tuple[tuple[Output, ...], dict[str, int]]:
        """Returns the outputs, and parameters, multiply-adds and bytes of weights; on meta, where nothing is computed."""
        state = {name: tensor.to("meta") for name, tensor in self.state_dict().items()}
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            found = functional_call(self, state, (self.example(1).to("meta"),))
        parts = {key: (name, part) for name in self.names for part, key in _keys(name, self.cards.get(name)).items()}
        outputs = tuple(
            Output(key, None if parts[key][0] == OUTPUT else parts[key][0], parts[key][1], tuple(one.shape[1:]))
            for key, one in found.items()
        )
        if not self.cards:
            return outputs, cost.of(architecture, self.side)
        floats = sum(tensor.numel() for tensor in self.state_dict().values() if tensor.is_floating_point())
        return outputs, {
            "parameters": sum(one.numel() for one in self.parameters()),
            "macs": counter.get_total_flops() // 2,
            "weight_bytes": 4 * floats,
        }


def chosen(heads: Mapping[str, StoredHead], names: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the outputs that are wanted, in their order. Raises RequestError for names that are none, or given twice, and
    for a head that no program can hold."""
    if names is None:
        names = tuple(heads) or (OUTPUT,)
    there = (*heads, OUTPUT)
    if unknown := [name for name in names if name not in there]:
        raise RequestError(f"outputs={unknown[0]}: these weights have {', '.join(there)}; give any of them")
    if not names or len(set(names)) < len(names):
        raise RequestError(f"outputs=[{','.join(names)}]: at least one of {', '.join(there)}, each once")
    if without := [name for name in names if name in heads and heads[name].card.kind == "mask_rcnn"]:
        others = [name for name, head in heads.items() if head.card.kind != "mask_rcnn"] or [OUTPUT]
        raise RequestError(
            f"the head {without[0]} is of kind mask_rcnn, which finds another number of things on each image, and a program has outputs "
            f"of one shape; outputs=[{','.join(others)}] leaves it out, outputs={OUTPUT} gives the backbone alone"
        )
    keys = [key for name in names for key in _keys(name, heads[name].card if name in heads else None).values()]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise RequestError(f"outputs=[{','.join(names)}] give two outputs called {twice[0]}: export one of them alone")
    return tuple(names)


def _keys(name: str, card: HeadCard | None) -> dict[str | None, str]:
    """Returns the outputs of a head, {part: name of the output}."""
    if card is not None and card.kind == "detect":
        return {part: f"{name}_{part}" for part in ("scores", "edges")}
    return {None: name}


def _check_backbone(backbone: Network, heads: Mapping[str, StoredHead]) -> None:
    if not heads:
        return
    own = hash_of_tensors({name: plain(tensor) for name, tensor in backbone.state_dict().items()})
    for name, head in heads.items():
        if head.backbone != own:
            raise RequestError(
                f"the head {name} stands on a backbone of hash {head.backbone[:12]}…, these weights have {own[:12]}…, so its outputs "
                "would be others; give the bundle that it is in"
            )


def cut(backbone: Any, stages: Sequence[str], channels: int) -> Any:
    """Returns the backbone without what comes behind the deepest of `stages`. It shares its tensors with the one that is given,
    which stays whole; a network whose stages are no modules of their own is returned as it is."""
    with torch.no_grad():
        state = {name: tensor.to("meta") for name, tensor in backbone.state_dict().items()}
        runner = _Stages(backbone)
        images = torch.empty(1, channels, 64, 64, device="meta")
        names = list(functional_call(runner, {f"backbone.{name}": one for name, one in state.items()}, (images,)))
    behind = names[1 + max(map(names.index, stages)) :]
    if not behind or not all(isinstance(getattr(backbone, name, None), nn.Module) for name in behind):
        return backbone
    kept = copy.copy(backbone)
    kept._modules = {name: nn.Identity() if name in behind else one for name, one in backbone._modules.items()}
    return kept


class _Stages(nn.Module):
    """Calls `forward_stages` where torch wants a forward."""

    def __init__(self, backbone: Any):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.backbone.forward_stages(images)


def _features(backbone: Any, x: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
    """Returns [N, D], of the last map where there are maps: a second pass would double the cost."""
    return list(maps.values())[-1].mean((2, 3)) if maps else backbone(x)


def _flat(names: Sequence[str], features: Tensor, heads: Mapping[str, Any]) -> Named:
    found: Named = {}
    for name in names:
        answer = features if name == OUTPUT else heads[name]
        if isinstance(answer, Cells):
            found |= {f"{name}_scores": answer.scores, f"{name}_edges": answer.edges}
        else:
            found[name] = answer
    return found


def colors(channels: int, card: Mapping[str, Any]) -> dict[str, list[float]]:
    """Returns `mean` and `std`, a number a channel: the card's, else ImageNet's or, of other channels than RGB, their mean."""
    usual = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {
        key: [float(v) for v in (card.get(key) or (rgb if channels == 3 else (sum(rgb) / 3,) * channels))]
        for key, rgb in usual.items()
    }


def shorter_side(size: int) -> int:
    """Returns the length that an image's shorter side is resized to before its center is cut, as `seer evaluate` does."""
    return size if size < 64 else round(size * 256 / 224)


def traced(program: Program, batch: int | None = None) -> Any:
    """Returns the `torch.export.ExportedProgram` of any batch from 1 to `MOST_BATCH`, without paths of this machine.

    batch: one that is fixed, which some runtimes want.
    """
    size = torch.export.Dim("batch", min=1, max=MOST_BATCH)
    with torch.no_grad():
        exported = torch.export.export(
            program,
            (program.example(batch or 2),),
            dynamic_shapes=None if batch else {INPUT: {0: size}},
        )
    return without_traces(exported)


def without_traces(exported: Any) -> Any:
    """Takes lines of the source, and with them paths of this machine, out of a `torch.export.ExportedProgram`; returns it."""
    for module in exported.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return exported


def compared(
    run: Callable[[Tensor], Named],
    program: Program,
    pixels: Tensor,
    *,
    exact: bool = False,
    batches: tuple[int, ...] = BATCHES,
) -> dict[str, dict[str, float]]:
    """Returns {output: {batch: largest difference over largest value}} of all images, fed so many at a time; the last ones are
    filled up.

    run: a batch as the program is fed -> its outputs. pixels: uint8 [N, C, S, S]. The truth is the network itself, all of its stages,
    at the same batch, behind the normalization that training has, not behind the program's own. At the same batch, since torch takes
    other kernels for other batches: with the truth from one pass of 64 images, a 200MF of twelve steps was 1.6e-5 off. exact: the
    truth is computed in float64, for runtimes with kernels of their own, whose rounding is not to be charged with torch's (a 400MF of
    twelve steps: torch 1.5e-5 off, onnxruntime 1.6e-5, and 2.4e-5 off each other).

    Raises ValueError without an image, or for images of other channels or sides than the program's.
    """
    given, normalized = fed(program, pixels)
    model = program.exact() if exact else None
    if exact:
        normalized = normalized.double()
    found: dict[str, dict[str, float]] = {output.name: {} for output in program.outputs}
    with torch.no_grad():
        truth = joined([program.truth(one, model) for one in normalized.split(8)]) if exact else None
        for batch in batches:
            order = torch.arange(-(-len(given) // batch) * batch) % len(given)  # wraps round: fewer images than a batch
            rows = order.split(batch)
            outputs = joined([run(given[part]) for part in rows])
            expected = truth or joined([program.truth(normalized[part]) for part in rows])
            for name, differences in found.items():
                wanted = expected[name] if truth is None else truth[name][order]
                differences[str(batch)] = parity.relative_difference(outputs[name], wanted)
    return found


def fed(program: Program, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns images as the program is fed with them, and as training would feed its backbone. Raises ValueError without an
    image, or for images of other channels or sides than the program's."""
    wanted = [program.channels, program.side, program.side]
    if pixels.ndim != 4 or len(pixels) < 1 or list(pixels.shape[1:]) != wanted:
        raise ValueError(
            f"the parity check wants images [N, {', '.join(map(str, wanted))}], N >= 1, got {list(pixels.shape)}"
        )
    return program.feed(pixels), normalize(pixels.float() / 255, **program.colors)


def joined(parts: Sequence[Named]) -> Named:
    """Returns the outputs of several batches as those of one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def worst(differences: Mapping[str, Mapping[str, float]]) -> float:
    """Returns the largest of the differences that `compared` found; nan where one is no number."""
    numbers = [value for one in differences.values() for value in one.values()]
    return max(numbers, key=lambda value: float("inf") if value != value else value)
