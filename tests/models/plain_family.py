"""A family that SEER has never heard of: a plain convolutional network with its row, as someone outside would write them."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seer.models.families.family import Family


class Plain(nn.Module):
    """[B, 3, H, W] -> [B, C]: stages of blocks, each a convolution, batch norm and ReLU; every stage halves the map."""

    def __init__(self, channels: Sequence[int], depth: int, device: torch.device | str | None = None):
        super().__init__()
        self.channels, self.depth, self.feature_dim = tuple(channels), depth, channels[-1]
        self.stem = nn.Conv2d(3, channels[0], 3, 2, 1, device=device)
        for number, (entering, leaving) in enumerate(zip((channels[0], *channels), channels, strict=False)):
            parts = [self._block(entering if i == 0 else leaving, leaving, 2 - (i > 0), device) for i in range(depth)]
            self.add_module(f"part{number}", nn.Sequential(*parts))

    @staticmethod
    def _block(entering: int, leaving: int, stride: int, device: torch.device | str | None) -> nn.Sequential:
        conv = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False, device=device)
        norm = nn.BatchNorm2d(leaving, device=device)
        return nn.Sequential(OrderedDict(conv=conv, norm=norm, relu=nn.ReLU(inplace=True)))

    @property
    def parts(self) -> list[nn.Sequential]:
        return [getattr(self, f"part{number}") for number in range(len(self.channels))]

    @property
    def architecture(self) -> dict[str, Any]:
        return {"family": "plain", "channels": list(self.channels), "depth": self.depth}

    def blocks(self) -> dict[str, nn.Module]:
        return {f"part{n}.block{i}": block for n, part in enumerate(self.parts) for i, block in enumerate(part)}

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return list(self.forward_stages(x).values())[-1].mean((2, 3))

    def forward_stages(self, x: Tensor) -> dict[str, Tensor]:
        maps = {"stem": self.stem(x)}
        for number, part in enumerate(self.parts):
            maps[f"part{number}"] = part(list(maps.values())[-1])
        return maps


ROW = Family(
    name="plain",
    title="Plain",
    make=Plain,
    keys=("channels", "depth"),
    describe=lambda shape: f"channels {shape['channels']}, {shape['depth']} blocks a stage",
    features=lambda shape: shape["channels"][-1],
    zoo={"plain_tiny": {"channels": [8, 16], "depth": 2}},
)
