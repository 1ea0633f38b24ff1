"""Holds what stands on a backbone during pretraining: a projector and prototypes.

Legend: N rows (views times images), C features, D embedding, H heads (sets of prototypes), K prototypes of each.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from seer.core.errors import RequestError

UNIT_TOLERANCE = 1e-6  # how far from 1 the length of a row may round


class SwAVHead(nn.Module):
    """Projects features by Linear (BN) ReLU, repeated, and a bare last Linear to unit length; scores are
    cosines with the unit prototypes.

    hidden: widths of the inner layers, () for one Linear. embedding: D. prototypes: K. batch_norm: between the inner
    layers, as SEER trained its sizes up to 32GF and not the larger ones (`facts/seer.md` section 3). heads: H sets of K
    prototypes, each a clustering of its own; one matrix [H*K, D] holds them all, one product gives all scores (LARS sees
    one tensor). Layers keep torch's default initialization. Prototypes have no bias, and unit rows before the first
    forward.

    Scores are computed in float32 whatever the model's precision: bfloat16 near 1 is 2^-8 coarse, which divided by
    epsilon would be an error of 6 % in every code; it costs K*D products a row, nothing beside the backbone.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (2048,),
        embedding: int = 128,
        prototypes: int = 3000,
        batch_norm: bool = True,
        last_batch_norm: bool = False,
        heads: int = 1,
    ):
        super().__init__()
        if heads < 1:
            raise RequestError(f"task.heads={heads}: at least one set of prototypes")
        if prototypes < 2:
            raise RequestError(f"task.prototypes={prototypes}: fewer than 2 prototypes can tell nothing apart")
        if embedding < 1 or any(width < 1 for width in hidden):
            raise RequestError(f"task.hidden={list(hidden)}, task.embedding={embedding}: widths are at least 1")
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [
                nn.Linear(features, width),
                *([nn.BatchNorm1d(width)] if batch_norm else []),
                nn.ReLU(inplace=True),
            ]
            features = width
        last = [nn.BatchNorm1d(embedding, affine=False)] if last_batch_norm else []
        self.projector = nn.Sequential(*layers, nn.Linear(features, embedding), *last)
        self.prototypes = nn.Linear(embedding, heads * prototypes, bias=False)
        self.normalize_prototypes()

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns, for [N, C], embeddings [N, D] of unit length and scores [N, H*K] in [-1, 1], head by head,
        both float32."""
        projected = self.projector(features)
        with torch.autocast(features.device.type, enabled=False):
            embeddings = F.normalize(projected.float(), dim=1)
            return embeddings, self.scores(embeddings)

    def scores(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Returns the cosines of unit rows [..., D] float32 with the prototypes as they are now, [..., H*K]."""
        weight = self.prototypes.weight
        if hasattr(weight, "full_tensor"):  # sharded, and asked outside of a forward pass: by every rank
            weight = weight.full_tensor()
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.linear(embeddings, weight.float())

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Brings every row back to length 1; momentum is left alone, as in SwAV. Rows that are of length 1 to
        rounding stay to the last bit, so that a step that was masked can be repeated."""
        weight = self.prototypes.weight
        lengths = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
        weight.copy_(torch.where((lengths - 1).abs() < UNIT_TOLERANCE, weight, F.normalize(weight, dim=1)))
