"""Puts a linear classifier on the pooled features of a backbone. Legend: B images, S side, C features, Y classes."""

import torch
from torch import nn

from seer.models.multicrop import as_weights_lie

STD = 0.01  # of a classifier's first weights (facts: VISSL's and torchvision's fine-tuning)


class Classifier(nn.Module):
    """Classifies what a backbone sees. classify: the linear layer, its bias 0 at first."""

    def __init__(self, backbone: nn.Module, classes: int):
        super().__init__()
        self.backbone = backbone
        self.classify = nn.Linear(backbone.feature_dim, classes)  # type: ignore[arg-type]
        nn.init.normal_(self.classify.weight, std=STD)
        nn.init.zeros_(self.classify.bias)
        self.channels_last: bool | None = None  # of the pixels; None: as the weights lie

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns scores [B, Y] of images [B, 3, S, S]."""
        return self.classify(self.backbone(as_weights_lie(x, self.backbone, self.channels_last)))
