"""Teaches cells their boxes: which box each cell answers for, the focal loss of classes, the overlap of edges.

A cell answers for a box if its center lies in the box, at most `RADIUS` strides from its center along each axis, and the box is of
the size of its stage: its longest side has at most `REACH` strides, and more than the finer stage reaches. Of two boxes the smaller
has the cell. A box that no cell would answer for is given to the cell of its stage that is nearest to its center: none is lost.

Legend: B images, N cells, Y classes, M boxes at the most (rows beyond `count` are padding).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

RADIUS = 1.5  # strides around the center of a box
REACH = 8.0  # strides that the longest side of a box of a stage may have; the coarsest stage takes all larger ones


def assign(centers: Tensor, strides: Tensor, edges: Tensor, count: int) -> Tensor:
    """Returns int64 [N]: the box that each cell answers for, -1 for none. centers [N, 2], strides [N], edges [M, 4] in pixels."""
    found = torch.full((len(centers),), -1, dtype=torch.int64, device=centers.device)
    if not count:
        return found
    boxes = edges[:count]
    longest = (boxes[:, 2:] - boxes[:, :2]).amax(1)  # [m]
    levels = strides.unique()  # ascending
    limits = levels * REACH
    level = torch.bucketize(longest, limits[:-1].contiguous())  # [m]: the first stage whose reach holds it
    own = levels[level]  # [m] its stride
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    same = strides[:, None] == own[None]  # [N, m]
    gap = (centers[:, None] - middle[None]).abs()  # [N, m, 2]
    inside = ((centers[:, None] > boxes[None, :, :2]) & (centers[:, None] < boxes[None, :, 2:])).all(-1)
    takes = same & inside & (gap < RADIUS * own[None, :, None]).all(-1)
    alone = ~takes.any(0)  # boxes smaller than a cell, between centers
    if alone.any():
        far = gap.square().sum(-1).masked_fill(~same, torch.inf)
        takes[far.argmin(0)[alone], alone.nonzero().flatten()] = True
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    cost = torch.where(takes, area[None], torch.inf)  # of two boxes the smaller one
    least, which = cost.min(1)
    return torch.where(least < torch.inf, which, found)


def focal(scores: Tensor, target: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Returns the sum of the focal loss of logits against 0 or 1, of one shape (Lin et al. 2017, arXiv 1708.02002, eq. 5)."""
    probability = scores.sigmoid()
    plain = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    right = probability * target + (1 - probability) * (1 - target)
    return ((alpha * target + (1 - alpha) * (1 - target)) * (1 - right) ** gamma * plain).sum()


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Returns the generalized overlap of pairs of boxes [n, 4], from -1 to 1 (Rezatofighi et al. 2019, arXiv 1902.09630)."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - common
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    return common / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


def detection_loss(
    scores: Tensor, found: Tensor, centers: Tensor, strides: Tensor, edges: Tensor, labels: Tensor, count: Tensor
) -> Tensor:
    """Returns the loss of a batch: focal loss of classes plus 1 - overlap of edges, over the cells that answer for a box.

    scores [B, N, Y] logits, found [B, N, 4] in pixels, edges [B, M, 4], labels int64 [B, M], count int64 [B]. A box without a
    class (label below 0, or from Y on) teaches its edges alone.
    """
    classes, overlap, answering = scores.new_zeros(()), scores.new_zeros(()), 0
    for b in range(len(scores)):
        of = assign(centers, strides, edges[b], int(count[b]))
        cells = (of >= 0).nonzero().flatten()
        target = torch.zeros_like(scores[b])
        known = labels[b][of[cells]]
        named = (known >= 0) & (known < scores.shape[2])
        target[cells[named], known[named]] = 1
        classes = classes + focal(scores[b], target)
        if len(cells):
            overlap = overlap + (1 - giou(found[b][cells], edges[b][of[cells]])).sum()
        answering += len(cells)
    return (classes + overlap) / max(1, answering)
