"""lightly's SwAV loop as its examples write it: its dataset, transform, head, prototypes and loss, torch's DataLoader with one
worker, its LARS; on torchvision's RegNetY. A turn is a few steps."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightly.data import LightlyDataset
from lightly.loss import SwaVLoss
from lightly.transforms import SwaVTransform
from lightly.utils.lars import LARS
from process import spent_with_children
from step import Learner


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    batch, every = given["batch"], given["every"]
    transform = SwaVTransform(crop_sizes=tuple(given["sizes"]), crop_counts=tuple(given["counts"]))
    dataset = LightlyDataset(str(Path(given["folder"], "jpegs")), transform=transform)
    # one long epoch: a loader that begins again leaves its worker without work
    sampler = torch.utils.data.RandomSampler(dataset, num_samples=batch * (every * given["all_turns"] + 4))
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch, sampler=sampler, drop_last=True, num_workers=1)
    torch.manual_seed(0)
    learner = Learner(given["model"], given["prototypes"]).train()
    kept = [p for p in learner.parameters() if p.requires_grad]
    optimizer = LARS(kept, lr=0.3 * batch / 256, momentum=0.9, weight_decay=1e-6)
    criterion, stream = SwaVLoss(), iter(loader)
    high, spent = given["counts"][0], spent_with_children()

    def run() -> dict[str, Any]:
        nonlocal spent
        wall = time.perf_counter()
        for _ in range(every):
            views = next(stream)[0]
            learner.prototypes.normalize()
            scores = [learner(view) for view in views]
            loss = criterion(scores[:high], scores[high:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()
        now = spent_with_children()
        took, spent = now - spent, now
        return {"amount": every * batch, "seconds": took, "wall": time.perf_counter() - wall}

    return {"lightly's loop": run}
