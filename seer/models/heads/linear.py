"""Scores or numbers from averaged features: one linear layer. Legend: B images, C features, Y classes or numbers."""

import torch
from torch import nn

STD = 0.01  # of a head's first weights (facts: VISSL's and torchvision's fine-tuning)


class LinearHead(nn.Linear):
    """Maps the features of one stage, averaged over positions, to [B, Y]. outputs: Y. stage: None = the backbone's own features."""

    def __init__(self, features: int, outputs: int, stage: str | None = None):
        super().__init__(features, outputs)
        nn.init.normal_(self.weight, std=STD)
        nn.init.zeros_(self.bias)
        self.stages = () if stage is None else (stage,)

    def read(self, features: torch.Tensor, maps: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns [B, Y] of features [B, C], or of the maps of its stage."""
        return self(maps[self.stages[0]].mean((2, 3)) if self.stages else features)
