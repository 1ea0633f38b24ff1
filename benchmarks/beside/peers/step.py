"""One SwAV step with lightly's head, prototypes, loss and LARS on torchvision's RegNetY, from the same weights and crops.

"lightly's loop" is the loop of its examples: every crop through the network by itself, float32. "crops joined" differs in one
thing: crops of one size go through together, as in SwAV's own program and in ours, so that batch norm sees the same images;
in float64 it is the party whose losses ours are held against. The prototypes' bias, which SwAV's have not, is zero and stays so.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn
from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
from lightly.utils.lars import LARS
from network import backbone
from process import held
from torch import Tensor, nn

PARTIES = {
    "lightly's loop": (False, False, torch.float32),
    "lightly, crops joined": (True, False, torch.float32),
    "lightly, crops joined, float64": (True, False, torch.float64),
    "lightly's loop, compiled": (False, True, torch.float32),
}


class Learner(nn.Module):
    """Makes scores of crops with lightly's parts."""

    def __init__(self, model: str, prototypes: int):
        super().__init__()
        self.backbone = backbone(model)
        self.head = SwaVProjectionHead(self.backbone.width, 2048, 128)
        self.prototypes = SwaVPrototypes(128, prototypes)
        self.prototypes.heads[0].bias.data.zero_()
        self.prototypes.heads[0].bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.backbone(x))

    def scores(self, features: Tensor) -> Tensor:
        found: Tensor = self.prototypes(nn.functional.normalize(self.head(features), dim=1))
        return found

    def start(self, start: dict[str, Any]) -> None:
        """Takes the weights that the other side has written. Its first layer has a bias before batch norm, which takes it away."""
        head = start["head"]
        self.backbone.load_state_dict(start["backbone"], strict=True)
        ours = {key.removeprefix("projector."): value for key, value in head.items() if key.startswith("projector.")}
        del ours["0.bias"]
        self.head.layers.load_state_dict(ours, strict=True)
        self.prototypes.heads[0].weight.data.copy_(head["prototypes.weight"])


def _by_view(crops: list[Tensor], counts: list[int]) -> list[Tensor]:
    """Returns a tensor [B, 3, S, S] for each view of crops [v*B, 3, S, S] a size, in a memory of its own."""
    return [view.contiguous() for x, v in zip(crops, counts, strict=True) for view in x.chunk(v)]


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    start = torch.load(Path(given["folder"], "start.pt"), weights_only=True)
    counts, steps = given["counts"], 0
    joined, compiled, dtype = PARTIES[given["party"]]
    crops = [x if joined else _by_view(x, counts) for x in ([x.to(dtype) for x in each] for each in start.pop("crops"))]
    given["floor"] = held("VmRSS")
    learner = Learner(given["model"], given["prototypes"])
    learner.start(start)
    learner.to(dtype).train()
    if compiled:
        learner.backbone.compile(dynamic=False)
    kept = [p for p in learner.parameters() if p.requires_grad]
    optimizer = LARS(kept, lr=0.3 * given["batch"] / 256, momentum=0.9, weight_decay=1e-6)
    criterion = SwaVLoss()

    def run() -> dict[str, Any]:
        nonlocal steps
        inputs = [x.contiguous() for x in crops[steps % len(crops)]]
        begun, wall = time.process_time(), time.perf_counter()
        learner.prototypes.normalize()
        if joined:
            views = list(learner.scores(torch.cat([learner.backbone(x) for x in inputs])).split(given["batch"]))
        else:
            views = [learner(x) for x in inputs]
        loss = criterion(views[: counts[0]], views[counts[0] :])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told = loss.item()
        spent, passed = time.process_time() - begun, time.perf_counter() - wall
        steps += 1
        choices = [row for view in views[:2] for row in sinkhorn(view.detach()).argmax(1).tolist()]
        return {"amount": given["batch"], "seconds": spent, "wall": passed, "loss": told, "choices": choices}

    return {given["party"]: run}
