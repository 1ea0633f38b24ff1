"""The loss of given codes with its gradient: scores [6, B, K], codes [2, B, K]. Cases are "K x B"."""

from collections.abc import Callable
from typing import Any

import torch

from seer.losses.swav import swav_loss


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    def learning(case: str) -> Callable[[], dict[str, Any]]:
        prototypes, samples = (int(word) for word in case.split(" x "))
        generator = torch.Generator().manual_seed(0)
        scores = (torch.rand(6, samples, prototypes, generator=generator) - 0.5).requires_grad_()
        codes = torch.softmax(4 * torch.randn(2, samples, prototypes, generator=generator), dim=-1)

        def run() -> dict[str, Any]:
            scores.grad = None
            loss = swav_loss(scores, codes, temperature=0.1)
            loss.backward()
            return {"amount": 1, "loss": loss.item()}

        return run

    return {f"{case}\tours": learning(case) for case in given["cases"]}
