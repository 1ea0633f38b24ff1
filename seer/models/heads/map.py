"""Scores of each pixel from the map of one stage: segmentation, saliency.

A 1x1 convolution to `width` channels, two depthwise-separable 3x3 convolutions, a 1x1 to classes; then bilinear resizing to the
size of the image inside the network, so that an exported program answers in pixels. Legend: B images, S side, Y classes.
"""

import torch
from torch import nn
from torch.nn import functional as F


class MapHead(nn.Module):
    """Maps one stage to [B, Y, S, S]. features: channels of the stage. stage: which; fine ones cost more and see less."""

    def __init__(self, features: int, outputs: int, stage: str, width: int = 64):
        super().__init__()
        self.stages = (stage,)
        self.inner = nn.Sequential(
            nn.Conv2d(features, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            *separable(width), *separable(width),
        )  # fmt: skip
        self.scores = nn.Conv2d(width, outputs, 1)

    def read(self, features: torch.Tensor, maps: dict[str, torch.Tensor], side: tuple[int, int]) -> torch.Tensor:
        """Returns scores of each pixel of an image of `side` (height, width)."""
        return self(maps[self.stages[0]], side)

    def forward(self, x: torch.Tensor, side: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(self.scores(self.inner(x)).float(), size=side, mode="bilinear", align_corners=False)


def separable(width: int) -> list[nn.Module]:
    """Returns a depthwise 3x3 and a 1x1 convolution, each with batch norm and ReLU."""
    return [
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
    ]  # fmt: skip
