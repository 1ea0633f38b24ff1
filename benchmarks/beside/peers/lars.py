"""One step of lightly's and timm's LARS on the tensors of torchvision's RegNetY of the same size, grouped alike; both make plain
SGD of vectors without decay."""

from collections.abc import Callable
from typing import Any

import torch
from lightly.utils.lars import LARS
from network import backbone
from timm.optim import Lars


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    def stepping(make_optimizer: Any) -> Callable[[], dict[str, Any]]:
        parameters = list(backbone(given["model"]).parameters())
        for p in parameters:
            p.grad = torch.randn_like(p)
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 1e-5},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = make_optimizer(groups, lr=1e-3, momentum=0.9)

        def run() -> dict[str, Any]:
            optimizer.step()
            return {"amount": 1, "tensors": len(parameters)}

        return run

    return {"lightly": stepping(LARS), "timm": stepping(Lars)}
