"""Makes a program of a backbone: one pass, named outputs, and the normalization inside when that is asked for.

Surprising:
- Mean and std are never folded into the first convolution. It pads with zeros, which mean the average color once pixels are
  normalized; folded they would mean black, and every feature near the border another number.
- Batch norm stays as it is here; exporters fold it, and the parity check sees that they did it right.
- The traces of the source that `torch.export` keeps name files of the machine; they are taken out before anything is written.

Legend: N images, C channels, S side, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seer.data.augment import normalize
from seer.export import parity
from seer.models.bundle import IMAGENET_MEAN, IMAGENET_STD
from seer.models.families.family import Network
from seer.models.numbers import check_numbers

Given = Literal["normalized", "uint8", "float"]  # what the program is fed with: levels 0 to 255, or 0 to 1
INPUT, OUTPUT = "images", "features"
MOST_BATCH = 1024  # images of one call: a bound that torch.export wants, and states in the file
BATCHES = (1, 3, 8)  # that are compared: one, an odd one, several


class Program(nn.Module):
    """Turns images [N, C, S, S] into {"features": [N, D]} as one module in eval mode, float32 on the CPU.

    backbone: copied, left alone. given: `normalized` float; `uint8`, levels 0 to 255; `float`, 0 to 1. The last two are
    normalized inside, by the card's mean and std.
    """

    mean: Tensor  # [C, 1, 1]
    std: Tensor

    def __init__(self, backbone: Network, card: Mapping[str, Any], given: Given = "normalized"):
        super().__init__()
        check_numbers(backbone.state_dict(), what="the backbone")
        self.backbone = copy.deepcopy(backbone).to("cpu", torch.float32)
        self.given = given
        self.channels: int = backbone.architecture.get("in_channels", 3)
        self.side: int = card.get("input_size") or 224
        self.colors = colors(self.channels, card)
        if given != "normalized":
            for name, numbers in self.colors.items():
                self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32)[:, None, None])
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {OUTPUT: self.backbone(self.normalized(images))}

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


def traced(program: Program) -> Any:
    """Returns the `torch.export.ExportedProgram` of any batch from 1 to `MOST_BATCH`, without paths of this machine."""
    example = program.feed(torch.zeros(2, program.channels, program.side, program.side, dtype=torch.uint8))
    batch = torch.export.Dim("batch", min=1, max=MOST_BATCH)
    with torch.no_grad():
        exported = torch.export.export(program, (example,), dynamic_shapes={INPUT: {0: batch}})
    for module in exported.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return exported


def compared(
    run: Callable[[Tensor], Tensor],
    program: Program,
    pixels: Tensor,
    *,
    exact: bool = False,
    batches: tuple[int, ...] = BATCHES,
) -> dict[str, float]:
    """Returns {batch: largest difference over largest feature} of all images, fed so many at a time; the last ones are filled up.

    run: a batch as the program is fed -> features [n, D]. pixels: uint8 [N, C, S, S]. The truth is the backbone itself at the same
    batch, behind the normalization that training has, not behind the program's own. At the same batch, since torch takes other
    kernels for other batches: with the truth from one pass of 64 images, a 200MF of twelve steps was 1.6e-5 off. exact: the truth
    is computed in float64, for runtimes with kernels of their own, whose rounding is not to be charged with torch's (a 400MF of
    twelve steps: torch 1.5e-5 off, onnxruntime 1.6e-5, and 2.4e-5 off each other).

    Raises ValueError without an image, or for images of other channels or sides than the program's.
    """
    wanted = [program.channels, program.side, program.side]
    if pixels.ndim != 4 or len(pixels) < 1 or list(pixels.shape[1:]) != wanted:
        raise ValueError(
            f"the parity check wants images [N, {', '.join(map(str, wanted))}], N >= 1, got {list(pixels.shape)}"
        )
    given = program.feed(pixels)
    backbone, normalized = program.backbone, normalize(pixels.float() / 255, **program.colors)
    if exact:
        backbone, normalized = copy.deepcopy(backbone).to(torch.float64), normalized.double()
    found: dict[str, float] = {}
    with torch.no_grad():
        truth = torch.cat([backbone(one) for one in normalized.split(8)]) if exact else None
        for batch in batches:
            order = torch.arange(-(-len(given) // batch) * batch) % len(given)  # wraps round: fewer images than a batch
            rows = order.split(batch)
            outputs = torch.cat([run(given[part]) for part in rows])
            expected = torch.cat([backbone(normalized[part]) for part in rows]) if truth is None else truth[order]
            found[str(batch)] = parity.relative_difference(outputs, expected)
    return found
