"""Balances scores of noisy prototypes, ten rounds at epsilon 0.05. Cases are "K x B"."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from seer.losses.sinkhorn import sinkhorn


def scores_of(case: str) -> Tensor:
    """Returns cosines [B, K] that do not depend on the side."""
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
            codes = sinkhorn(scores, epsilon=0.05, iterations=10)
            return {"amount": 1, "sum": codes[0].square().sum().item()}

        return run

    return {f"{case}\tours": balancing(case) for case in given["cases"]}
