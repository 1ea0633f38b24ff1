"""Finds boxes without anchors: on each of several stages every cell says which class is there and how far its edges are.

The stages are brought to one width and added from coarse to fine, as a feature pyramid; scores and distances come from two
small towers that all stages share (FCOS, arXiv 1904.01355, without its centerness). Distances are in strides, made positive
by softplus, so that one tower fits all stages. Surprising: the convolutions are shared and the batch norms are not, since
what stages hold differs and their joint statistics fit none of them (boxes were right in training and wrong in evaluation);
the bias of the scores begins at a probability of 1 %, since nearly all cells are background and the first steps would
otherwise do nothing but learn that (focal loss, arXiv 1708.02002).

Legend: B images, S side, Y classes, L stages, h w of a stage's map, N cells of all stages, n boxes found.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

RARE = 0.01  # probability of a class at a cell before training


class Cells(NamedTuple):
    """Holds what every cell says. scores [B, N, Y] logits; edges [B, N, 4] left, top, right, bottom in pixels; centers [N, 2]
    in pixels; strides [N] in pixels: cells of one stride are one stage."""

    scores: torch.Tensor
    edges: torch.Tensor
    centers: torch.Tensor
    strides: torch.Tensor


class Found(NamedTuple):
    """Holds the boxes of one image. edges float32 [n, 4], labels int64 [n], scores float32 [n], best first."""

    edges: torch.Tensor
    labels: torch.Tensor
    scores: torch.Tensor


class Tower(nn.Module):
    """Applies two depthwise-separable convolutions to a map: one set of weights for all stages, batch norms of each stage's own."""

    def __init__(self, width: int, stages: Sequence[str], depth: int = 2):
        super().__init__()
        self.spatial = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False) for _ in range(depth)
        )
        self.mixing = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(depth))
        self.norms = nn.ModuleDict(
            {name: nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth)) for name in stages}
        )

    def forward(self, x: torch.Tensor, stage: str) -> torch.Tensor:
        """Returns [B, width, h, w] of the like."""
        for spatial, mixing, norm in zip(self.spatial, self.mixing, self.norms[stage], strict=True):  # type: ignore[call-overload]
            x = F.relu(norm(mixing(spatial(x))))
        return x


class DetectHead(nn.Module):
    """Maps stages to `Cells`. features: channels of each stage, by its name, from fine to coarse."""

    def __init__(self, features: dict[str, int], outputs: int, width: int = 64):
        super().__init__()
        self.stages = tuple(features)
        self.lateral = nn.ModuleDict({name: nn.Conv2d(c, width, 1) for name, c in features.items()})
        self.class_tower = Tower(width, self.stages)
        self.edge_tower = Tower(width, self.stages)
        self.scores = nn.Conv2d(width, outputs, 1)
        self.distances = nn.Conv2d(width, 4, 1)
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.constant_(self.scores.bias, -math.log((1 - RARE) / RARE))  # type: ignore[arg-type]

    def read(self, features: torch.Tensor, maps: dict[str, torch.Tensor], side: tuple[int, int]) -> Cells:
        """Returns what the cells of all stages say of images of `side` (height, width)."""
        return self(maps, side)

    def forward(self, maps: dict[str, torch.Tensor], side: tuple[int, int]) -> Cells:
        merged: dict[str, torch.Tensor] = {}
        above: torch.Tensor | None = None
        for name in reversed(self.stages):
            x = self.lateral[name](maps[name])
            above = x if above is None else x + F.interpolate(above, size=x.shape[2:], mode="nearest")
            merged[name] = above
        scores, edges, centers, strides = [], [], [], []
        for name in self.stages:
            x, (h, w) = merged[name], merged[name].shape[2:]
            stride = side[0] / h
            place = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).flip(-1)
            middle = ((place.reshape(-1, 2) + 0.5) * stride).to(x.device)  # [h*w, 2] x, y
            far = F.softplus(self.distances(self.edge_tower(x, name)).float()).flatten(2).mT * stride  # [B, h*w, 4]
            scores.append(self.scores(self.class_tower(x, name)).float().flatten(2).mT)
            edges.append(torch.cat([middle - far[..., :2], middle + far[..., 2:]], -1))
            centers.append(middle)
            strides.append(middle.new_full((h * w,), stride))
        return Cells(torch.cat(scores, 1), torch.cat(edges, 1), torch.cat(centers), torch.cat(strides))


@torch.no_grad()
def boxes_of(
    cells: Cells,
    side: tuple[int, int],
    *,
    least: float = 0.05,
    overlap: float = 0.6,
    most: int = 100,
    candidates: int = 1000,
) -> list[Found]:
    """Returns the boxes of each image: of `candidates` best cells with a probability of `least`, those that no better one of
    their class overlaps by more than `overlap`."""
    height, width = side
    found = []
    for scores, edges in zip(cells.scores.sigmoid(), cells.edges, strict=True):
        chance, at = scores.flatten().topk(min(candidates, scores.numel()))
        at, chance = at[chance > least], chance[chance > least]
        label, box = at % scores.shape[1], edges[at // scores.shape[1]]
        box = torch.minimum(box.clamp(min=0), box.new_tensor([width, height, width, height]))
        keep = batched_nms(box, chance, label, overlap)[:most]
        found.append(Found(box[keep], label[keep], chance[keep]))
    return found
