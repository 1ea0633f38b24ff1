"""Starts prototypes where embeddings are, by spherical k-means, rather than at random places of the sphere.

Legend: N rows, D embedding, K prototypes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def spherical_kmeans(rows: Tensor, k: int, *, seed: int, rounds: int = 20) -> Tensor:
    """Returns K unit centers [K, D] of unit rows [N, D] float32: mean directions of their members.

    Starts from K rows, drawn by the seed with greedy k-means++: of a few rows that are drawn by their squared distance to the
    nearest center so far, the one that leaves the least of these distances. A center that loses all members takes the row
    that fits its own center worst. Raises ValueError for fewer rows than centers.

    Source: Dhillon and Modha 2001, "Concept decompositions"; Arthur and Vassilvitskii 2007, "k-means++".
    """
    if len(rows) < k:
        raise ValueError(f"{len(rows)} embeddings cannot give {k} prototypes: at least as many are needed")
    generator = torch.Generator().manual_seed(seed)
    rows = rows.cpu()
    centers = rows.new_empty(k, rows.shape[1])
    far = rows.new_ones(len(rows))  # [N] squared distance to the nearest center
    candidates = 2 + int(math.log(k))
    for i in range(k):
        drawn = rows[torch.multinomial(far + 1e-12, candidates, replacement=True, generator=generator)]
        left = torch.minimum(far[:, None], (1 - rows @ drawn.t()).clamp(min=0))  # [N, candidates]
        best = left.sum(0).argmin()
        centers[i], far = drawn[best], left[:, best]
    for _ in range(rounds):
        fit, owner = (rows @ centers.t()).max(dim=1)  # [N]
        sums = torch.zeros_like(centers).index_add_(0, owner, rows)
        empty = torch.bincount(owner, minlength=k) == 0
        sums[empty] = rows[fit.argsort()[: int(empty.sum())]]
        centers = F.normalize(sums, dim=1)
    return centers
