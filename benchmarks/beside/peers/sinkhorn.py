"""The same scores through lightly's sinkhorn."""

from collections.abc import Callable
from typing import Any

import torch
from lightly.loss.swav_loss import sinkhorn
from torch import Tensor, nn


def scores_of(case: str) -> Tensor:
    """Returns cosines [B, K]; the same lines as on the other side, which this interpreter need not have."""
    prototypes, samples = (int(word) for word in case.split(" x "))
    generator = torch.Generator().manual_seed(0)
    centers = nn.functional.normalize(torch.randn(prototypes, 128, generator=generator), dim=1)
    noise = 0.12 * torch.randn(samples, 128, generator=generator)
    chosen = centers[torch.randint(prototypes, (samples,), generator=generator)]
    return nn.functional.normalize(chosen + noise, dim=1) @ centers.t()


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    def balancing(case: str) -> Callable[[], dict[str, Any]]:
        scores = scores_of(case)

        def run() -> dict[str, Any]:
            codes = sinkhorn(scores, iterations=10, epsilon=0.05)
            return {"amount": 1, "sum": codes[0].square().sum().item()}

        return run

    return {f"{case}\tlightly": balancing(case) for case in given["cases"]}
