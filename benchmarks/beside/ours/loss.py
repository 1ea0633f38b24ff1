"""The loss of given codes with its gradient: scores [6, B, K], codes [2, B, K]. Cases are "K x B".

As our step calls it: scores are made anew in each, and their gradient takes their place. Making them is not measured.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from seer.losses.swav import swav_loss


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    def learning(case: str) -> Callable[[], dict[str, Any]]:
        prototypes, samples = (int(word) for word in case.split(" x "))
        generator = torch.Generator().manual_seed(0)
        kept = torch.rand(6, samples, prototypes, generator=generator) - 0.5
        scores = torch.empty_like(kept, requires_grad=True)
        codes = torch.softmax(4 * torch.randn(2, samples, prototypes, generator=generator), dim=-1)

        def run() -> dict[str, Any]:
            scores.detach().copy_(kept)
            scores.grad = None
            begun, wall = time.process_time(), time.perf_counter()
            loss = swav_loss(scores, codes, temperature=0.1, overwrite=True)
            loss.backward()
            told = loss.item()
            spent, passed = time.process_time() - begun, time.perf_counter() - wall
            return {"amount": 1, "seconds": spent, "wall": passed, "loss": told}

        return run

    return {f"{case}\tours": learning(case) for case in given["cases"]}
