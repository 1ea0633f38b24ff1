"""Builds RegNetY, the convolutional backbone, from explicit stage widths, depths and group widths.

Surprising:
- Widths are arguments, not consequences of (w_0, w_a, w_m): two rounding rules are in use for those numbers, and the
  weights of one do not load in the shape of the other. `from_parameters` holds the rule of pycls and ClassyVision, the
  one that SEER trained; torchvision's differing shapes are rows of the zoo.
- A block's squeeze width follows from the width that *enters* the block, so block 0 of stage 1 squeezes to 8 channels.
- The standard deviation of a convolution's weights ignores its groups.
- Building on the meta device draws nothing; `init_weights` fills every parameter and buffer after `to_empty`.

Legend: B images, C channels of the last stage, c channels, h w height and width of a feature map, H W of the image.

Sources: Radosavovic et al. 2020, "Designing Network Design Spaces" (2003.13678), sections 3 and 4; squeeze and
excitation: Hu et al. 2017 (1709.01507); the shapes of SEER: Goyal et al. 2021 (2103.01988).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BN_EPS = 1e-5
BN_MOMENTUM = 0.1


@dataclass(frozen=True)
class Shape:
    """Holds widths, depths and group widths of the stages, one entry each a stage."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    group_widths: tuple[int, ...]


def from_parameters(depth: int, w_0: int, w_a: float, w_m: float, group_width: int) -> Shape:
    """Returns the stages that five numbers generate, by the rounding of pycls and ClassyVision (2003.13678,
    section 3.3).

    Block j wants the width w_0 + w_a·j; it gets the nearest w_0·w_m^s (s an integer, nearest in the logarithm) rounded
    to a multiple of 8, half to even. Runs of equal width are the stages. Then each width goes to the nearest multiple
    of its group width, which may leave the multiples of 8 (746, 4103). torchvision's last step differs and so do its
    800MF, 4GF and 8GF.

    Raises ValueError when a number is outside its range.
    """
    if depth < 1 or w_0 < 8 or w_0 % 8 or w_a < 0 or w_m <= 1 or group_width < 1:
        raise ValueError(
            f"depth={depth}, w_0={w_0}, w_a={w_a}, w_m={w_m}, group_width={group_width} is no RegNet: wanted depth >= "
            "1, w_0 a multiple of 8, w_a >= 0, w_m > 1, group_width >= 1"
        )
    powers = [round(math.log((w_0 + w_a * j) / w_0) / math.log(w_m)) for j in range(depth)]
    block_widths = [round(w_0 * w_m**s / 8) * 8 for s in powers]
    stages = [(width, len(list(run))) for width, run in groupby(block_widths)]
    group_widths = [min(group_width, width) for width, _ in stages]
    widths = [round(width / g) * g for (width, _), g in zip(stages, group_widths, strict=True)]
    return Shape(tuple(widths), tuple(count for _, count in stages), tuple(group_widths))


class Convolution(nn.Conv2d):
    """Convolves by a square kernel, padded to keep the size at stride 1, with RegNet's initialization.

    Weights: normal, standard deviation sqrt(2 / (k²·C_out)), the groups ignored. The rule is silent on a bias, which
    only squeeze-and-excitation has: ClassyVision and torchvision leave it at torch's default, uniform within
    ±1/sqrt(fan_in), and so does this.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        padding = kernel_size // 2
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias, device=device
        )

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws weight and bias anew; on the meta device there is nothing to draw."""
        if self.weight.is_meta:
            return
        area = self.kernel_size[0] * self.kernel_size[1]
        self.weight.normal_(0.0, math.sqrt(2.0 / (area * self.out_channels)), generator=generator)
        if self.bias is not None:
            bound = 1.0 / math.sqrt(area * self.in_channels // self.groups)
            self.bias.uniform_(-bound, bound, generator=generator)


class ConvNorm(nn.Module):
    """Applies convolution `conv`, batch norm `bn`, and a ReLU unless `relu=False`: [B, c, h, w] -> [B, c', h', w']."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.conv = Convolution(in_channels, out_channels, kernel_size, stride=stride, groups=groups, device=device)
        self.bn = nn.BatchNorm2d(out_channels, eps=BN_EPS, momentum=BN_MOMENTUM, device=device)
        self.relu = nn.ReLU(inplace=True) if relu else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.relu is None else self.relu(x)


class SqueezeExcite(nn.Module):
    """Scales each channel by a number in (0, 1) made from all channels' means: [B, c, h, w] -> same."""

    def __init__(self, channels: int, squeezed: int, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.reduce = Convolution(channels, squeezed, 1, bias=True, device=device)
        self.expand = Convolution(squeezed, channels, 1, bias=True, device=device)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)  # [B, c, 1, 1]
        scale = F.relu(self.reduce(scale), inplace=True)  # [B, squeezed, 1, 1]
        return x * self.expand(scale).sigmoid()


class Block(nn.Module):
    """Runs a residual block: 1×1 `a`, grouped 3×3 `b` (which strides), `se`, 1×1 `c`, plus the shortcut, then ReLU.

    [B, in_channels, h, w] -> [B, channels, h/stride, w/stride], rounded up. The shortcut is a strided 1×1 convolution
    with batch norm where the shape changes, else the input itself. A block is the unit of activation checkpointing and
    of sharding: in the larger models a single one holds a fifth of all parameters.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        group_width: int,
        se_ratio: float,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        groups = channels // group_width
        self.a = ConvNorm(in_channels, channels, 1, device=device)
        self.b = ConvNorm(channels, channels, 3, stride=stride, groups=groups, device=device)
        self.se = SqueezeExcite(channels, round(se_ratio * in_channels), device=device)
        self.c = ConvNorm(channels, channels, 1, relu=False, device=device)
        self.shortcut: nn.Module | None = None
        if in_channels != channels or stride != 1:
            self.shortcut = ConvNorm(in_channels, channels, 1, stride=stride, relu=False, device=device)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.relu(shortcut + self.c(self.se(self.b(self.a(x)))))


class RegNet(nn.Module):
    """Is a RegNetY backbone without a classifier; the call pools: [B, 3, H, W] float (or `in_channels`) -> [B, C].

    A stem (3×3 convolution, batch norm, ReLU), then stages `stage1` … of residual blocks `block0` …, each stage halving
    the resolution in its first block. With four stages and `stem_stride=2` the last map is H/32 × W/32; `stem_stride=1`
    doubles every map (for small images) and costs four times the arithmetic.

    widths        channels of each stage
    depths        blocks of each stage
    group_widths  channels of a group of the 3×3 convolution, of each stage
    se_ratio      squeeze width of a block over the width that enters it
    stem_width    channels of the stem
    stem_stride   1 or 2; 1 doubles every map, for images of about 32 pixels
    in_channels   of an image
    device        where parameters are made; "meta" (also by `with torch.device("meta")`) makes none

    Weights are drawn from torch's default generator; call `init_weights(generator)` to draw them from another.

    Raises ValueError for lists of differing lengths, numbers below 1, a width that its group width does not divide.
    Source: 2003.13678; the initialization is that of pycls and of SEER's training code.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        group_widths: Sequence[int],
        se_ratio: float = 0.25,
        stem_width: int = 32,
        stem_stride: int = 2,
        in_channels: int = 3,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = int(in_channels)
        self.widths = tuple(int(width) for width in widths)
        self.depths = tuple(int(depth) for depth in depths)
        self.group_widths = tuple(int(group_width) for group_width in group_widths)
        self.se_ratio = float(se_ratio)
        self.stem_width = int(stem_width)
        self.stem_stride = int(stem_stride)
        self._check()
        self.feature_dim = self.widths[-1]
        self.stage_names = tuple(f"stage{number}" for number in range(1, len(self.widths) + 1))

        self.stem = ConvNorm(self.in_channels, self.stem_width, 3, stride=self.stem_stride, device=device)
        in_channels = self.stem_width
        for name, width, depth, group_width in zip(
            self.stage_names, self.widths, self.depths, self.group_widths, strict=True
        ):
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(depth):
                blocks[f"block{i}"] = Block(
                    in_channels,
                    width,
                    stride=2 if i == 0 else 1,
                    group_width=group_width,
                    se_ratio=self.se_ratio,
                    device=device,
                )
                in_channels = width
            self.add_module(name, nn.Sequential(blocks))

    def _check(self) -> None:
        shape = f"widths={self.widths}, depths={self.depths}, group_widths={self.group_widths}"
        if not self.widths or not len(self.widths) == len(self.depths) == len(self.group_widths):
            raise ValueError(f"{shape}: give the three lists the same length, one entry a stage")
        if min(*self.widths, *self.depths, *self.group_widths, self.stem_width, self.in_channels) < 1:
            raise ValueError(f"{shape}, stem_width={self.stem_width}: every number must be at least 1")
        for width, group_width in zip(self.widths, self.group_widths, strict=True):
            if width % group_width:
                raise ValueError(f"width {width} is no multiple of its group width {group_width} ({shape})")
        if self.stem_stride not in (1, 2):
            raise ValueError(f"stem_stride={self.stem_stride}: wanted 1 (small images) or 2")
        narrowest = min(self.stem_width, *self.widths)
        if round(self.se_ratio * narrowest) < 1:
            raise ValueError(f"se_ratio={self.se_ratio} squeezes {narrowest} channels to none: raise it")

    @property
    def architecture(self) -> dict[str, Any]:
        """Returns the constructor's arguments except `device`, as plain JSON values: `RegNet(**architecture)`
        is this shape."""
        return {
            "widths": list(self.widths),
            "depths": list(self.depths),
            "group_widths": list(self.group_widths),
            "se_ratio": self.se_ratio,
            "stem_width": self.stem_width,
            "stem_stride": self.stem_stride,
            **({"in_channels": self.in_channels} if self.in_channels != 3 else {}),
        }

    def blocks(self) -> dict[str, nn.Module]:
        """Returns {"stage1.block0": its module, ...}, in the order of depth."""
        return {f"{s}.{name}": block for s in self.stage_names for name, block in getattr(self, s).named_children()}

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fills every parameter and buffer, as after `to_empty`: weights drawn, running statistics 0 and 1.

        `generator` must live on the parameters' device, and a CUDA generator draws other numbers than a CPU one of the
        same seed. Raises TypeError, before anything is touched, for a module that holds tensors and has no
        `reset_parameters` (a surgery put it there): it would stay uninitialised.
        """
        owners = [
            (name, module)
            for name, module in self.named_modules()
            if any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
        ]
        for name, module in owners:
            if not callable(getattr(module, "reset_parameters", None)):
                raise TypeError(f"{name} ({type(module).__name__}) holds tensors but has no reset_parameters()")
        for _, module in owners:
            if isinstance(module, Convolution):
                module.reset_parameters(generator)
            else:
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, C] for [B, 3, H, W], the last stage averaged over its positions."""
        x = self.stem(x)
        for name in self.stage_names:
            x = getattr(self, name)(x)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)  # [B, C]

    def forward_stages(self, x: Tensor) -> dict[str, Tensor]:
        """Returns {"stem", "stage1", …: [B, c, h, w]} for [B, 3, H, W], from fine to coarse; keeps every map alive."""
        x = self.stem(x)
        maps = {"stem": x}
        for name in self.stage_names:
            x = getattr(self, name)(x)
            maps[name] = x
        return maps
