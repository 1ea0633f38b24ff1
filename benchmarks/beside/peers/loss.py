"""The same scores and codes through the subloss of lightly's SwaVLoss, put together as its forward does."""

from collections.abc import Callable
from typing import Any

import torch
from lightly.loss import SwaVLoss


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    whole = SwaVLoss(temperature=0.1)

    def learning(case: str) -> Callable[[], dict[str, Any]]:
        prototypes, samples = (int(word) for word in case.split(" x "))
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(6, samples, prototypes, generator=generator) - 0.5
        views = [view.clone().requires_grad_() for view in drawn]
        codes = torch.softmax(4 * torch.randn(2, samples, prototypes, generator=generator), dim=-1)

        def run() -> dict[str, Any]:
            for view in views:
                view.grad = None
            loss = torch.zeros(1)
            for assigned in (0, 1):
                parts = torch.zeros(1)
                for predicting, view in enumerate(views):
                    if predicting != assigned:
                        parts = parts + whole.subloss(view, codes[assigned])
                loss = loss + parts / (len(views) - 1)
            loss = loss / 2
            loss.backward()
            return {"amount": 1, "loss": loss.item()}

        return run

    return {f"{case}\tlightly": learning(case) for case in given["cases"]}
