"""Puts heads on a backbone: one pass of the backbone, each head reads the stages that it names.

Legend: B images, S side, C features, c channels of a stage.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from seer.core.errors import RequestError
from seer.models.heads.detect import DetectHead
from seer.models.heads.linear import LinearHead
from seer.models.heads.map import MapHead
from seer.models.heads.mask_rcnn import MaskRCNNHead
from seer.models.multicrop import as_weights_lie

Head = LinearHead | MapHead | DetectHead | MaskRCNNHead


class MultiHead(nn.Module):
    """Answers with every head. heads: by name, in the order of their parameters; `backbone` is no name of one."""

    def __init__(self, backbone: nn.Module, heads: Mapping[str, Head]):
        super().__init__()
        self.backbone = backbone
        for name, head in heads.items():
            if hasattr(self, name) or not name.isidentifier():
                raise RequestError(f"task.heads.{name}: a head needs a name of letters, digits and _ that is not taken")
            self.add_module(name, head)
        self.names = tuple(heads)
        self.stages = tuple(dict.fromkeys(stage for head in heads.values() for stage in head.stages))
        self.channels_last: bool | None = None  # of the pixels; None: as the weights lie
        self.backbone_rests = False  # no gradient is made in it

    def forward(self, x: torch.Tensor, targets: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
        """Returns what each head says of images [B, 3, S, S]; losses, of a head in training that learns inside, by targets."""
        if not self.stages:
            return self.answer(self.features(x))
        x = as_weights_lie(x, self.backbone, self.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_rests):
            maps: dict[str, torch.Tensor] = self.backbone.forward_stages(x)  # type: ignore[operator]
        features = list(maps.values())[-1].mean((2, 3))  # what the backbone returns, in every network of the zoo
        return answers(self.heads(), features, maps, (x.shape[2], x.shape[3]), targets)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [B, C] of images [B, 3, S, S]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_rests):
            return self.backbone(as_weights_lie(x, self.backbone, self.channels_last))

    def answer(self, features: torch.Tensor) -> dict[str, Any]:
        """Returns what heads that read features [B, C] alone say of them."""
        return answers(self.heads(), features, {}, (0, 0))

    def heads(self) -> dict[str, Head]:
        """Returns the heads by name."""
        return {name: getattr(self, name) for name in self.names}


def answers(
    heads: Mapping[str, Head],
    features: torch.Tensor,
    maps: dict[str, torch.Tensor],
    side: tuple[int, int],
    targets: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Returns what each head says of features [B, C] and maps {stage: [B, c, h, w]} of images of `side`."""
    found: dict[str, Any] = {}
    for name, head in heads.items():
        if isinstance(head, LinearHead):
            found[name] = head.read(features, maps)
        elif isinstance(head, MaskRCNNHead):
            found[name] = head.read(features, maps, side, targets)
        else:
            found[name] = head.read(features, maps, side)
    return found


@torch.no_grad()
def stages(backbone: nn.Module, side: int = 64) -> dict[str, tuple[int, float]]:
    """Returns channels and stride in pixels of each stage of a backbone, by one image in evaluation mode."""
    device, dtype = next((p.device, p.dtype) for p in backbone.parameters())
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        maps = backbone.forward_stages(torch.zeros(1, 3, side, side, device=device, dtype=dtype))  # type: ignore[operator]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {name: (found.shape[1], side / found.shape[2]) for name, found in maps.items()}
