"""One step of LARS on the tensors of a RegNetY: matrices and kernels decayed, vectors not. All of them are adapted."""

from collections.abc import Callable
from typing import Any

import torch

from seer.models import zoo
from seer.optim.lars import LARS


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    parameters = list(zoo.build(given["model"]).parameters())
    for p in parameters:
        p.grad = torch.randn_like(p)
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 1e-5},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = LARS(groups, lr=1e-3, momentum=0.9)

    def run() -> dict[str, Any]:
        optimizer.step()
        return {"amount": 1, "tensors": len(parameters)}

    return {"ours": run}
