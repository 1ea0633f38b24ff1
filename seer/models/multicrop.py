"""Runs one forward per resolution and one of the head: what is wrapped for distributed training as a whole.

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
        self.channels_last: bool | None = None  # of the crops; None: as the weights lie

    def forward(self, crops: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns embeddings [V*B, D] and scores [V*B, K] of [v*B, 3, S, S] for each resolution, view-major."""
        crops = [as_weights_lie(x, self.backbone, self.channels_last) for x in crops]
        features = torch.cat([self.backbone(x) for x in crops])  # [V*B, C]
        return self.head(features)


def as_weights_lie(x: torch.Tensor, backbone: nn.Module, channels_last: bool | None) -> torch.Tensor:
    """Returns pixels [N, 3, S, S] in the layout that a backbone works in. channels_last: which that is; None: as its weights lie.

    Crops come in channels_last and would carry that layout through the whole model, whatever its weights say. It matters
    beyond speed: torch's batch norm for channels_last on a CPU adds up plainly in float32, and features of RegNetY-200MF
    were 6e-5 off instead of 5e-6 (LOG.md).
    """
    if channels_last is None:
        kernels = (p for p in backbone.parameters() if p.dim() == 4 and p[0, 0].numel() > 1 and p.shape[1] > 1)
        first = next(kernels, None)
        channels_last = first is None or not first.is_contiguous()
    return x if channels_last else x.contiguous()
