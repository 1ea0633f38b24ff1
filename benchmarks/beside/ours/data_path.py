"""From JPEG bytes to crops as the loader's threads make them, and finished on the CPU as a peer's transforms finish them."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from photos import spread
from prepare import crop

from seer.data.augment import augment_batch
from seer.data.decode import decode
from seer.data.loading.batch_buffer import BatchLayout
from seer.data.loading.batch_builder import SCRATCH


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    photos = spread(given["folder"], given["photos"])
    many, cut, scratch = len(photos), crop(given), np.empty(SCRATCH, np.uint8)
    draw = random.Random(0)

    def cutting(finished: bool) -> Callable[[], dict[str, Any]]:
        layout = BatchLayout(cut.layout(many, painted=finished), many)
        buffer = layout.buffer(torch.empty(layout.bytes, dtype=torch.uint8))

        def run() -> dict[str, Any]:
            keys = np.array([draw.getrandbits(63) for _ in photos], dtype=np.uint64)
            draws = cut.draws(keys, painted=finished)
            for i, data in enumerate(photos):
                draws.fill(i, {"image": decode(data, scratch)}, buffer.arrays, i)
            if finished:
                for size in cut.sizes:
                    augment_batch(buffer.tensors, size, cut.mean, cut.std)
            return {"amount": many}

        return run

    return {"ours, uint8 crops": cutting(False), "ours, all on the CPU": cutting(True)}
