"""One forward per resolution, one forward of the head: what is wrapped for distributed training as a whole.

Views of one resolution are joined along the batch, so batch norm sees them together, as in SwAV; a wrapper like DDP
sees a single forward a step. Legend: B images, V views, v views of one resolution, S side, D embedding, K prototypes.
"""

from collections.abc import Sequence

import torch
from torch import nn


class MultiCropModel(nn.Module):
    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, crops: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """[v*B, 3, S, S] for each resolution, view-major -> embeddings [V*B, D], scores [V*B, K]."""
        features = torch.cat([self.backbone(x) for x in crops])  # [V*B, C]
        return self.head(features)
