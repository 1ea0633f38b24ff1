"""Trains by lightly's SwAV loop for a given time, as the peer of `benchmarks/speedrun.py`, and leaves a bundle of weights.

    python benchmarks/lightly_swav.py SHARDS OUTPUT [time=20min] [seed=0] [recipe=cifar] [threads=] [model.WORD=VALUE …]

lightly's are: the loss, the head and its prototypes, the views, and the loop of its SwAV example, crop by crop in float32 with
Adam at 0.001, batches of 128, 512 prototypes, a head of 512 and 128. Ours are what would decide for other reasons: the network
(that of the recipe, which for images of 32 pixels learns more in the time than a stride-2 ImageNet network), and the sizes,
scales and colors of the views (those of the recipe; lightly's own are 224 and 96 pixels). So what is compared is loop and loss.
The clock is the speedrun's: from the first step to the last, reading and augmentation included. lightly comes by
`pip install lightly`, never into the project's own environment: give its folder by PYTHONPATH.
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from seer.cli import config
from seer.core import durations
from seer.core.build import build
from seer.data.shards.open import open_shards
from seer.data.shards.shard import image_of
from seer.models.bundle import write_bundle

BATCH, HIDDEN, EMBEDDING, PROTOTYPES, RATE = 128, 512, 128, 512, 0.001  # of lightly's example
ASKED = {
    "time": "20min",
    "seed": "0",
    "recipe": "cifar",
    "threads": os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0))),
}
MISSING = "lightly cannot be imported ({}); pip install --target FOLDER lightly, and PYTHONPATH=FOLDER"


class Images(Dataset[list[Tensor]]):
    """Holds the images of shards, each as lightly's views of it."""

    def __init__(self, source: str, views: Callable[[Image.Image], list[Tensor]]) -> None:
        self.shards, self.views = open_shards(source), views
        self.rows = [(shard, row) for shard in range(len(self.shards)) for row in range(len(self.shards[shard]))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list[Tensor]:
        shard, row = self.rows[i]
        with Image.open(io.BytesIO(image_of(self.shards[shard].read(shard, row)))) as image:
            return self.views(image.convert("RGB"))


def views_of(augment: dict[str, Any]) -> Callable[[Image.Image], list[Tensor]]:
    """Returns lightly's transform with the numbers of a recipe's two sizes of views."""
    from lightly.transforms.swav_transform import SwaVTransform

    if len(augment["sizes"]) != 2:
        raise SystemExit(
            f"augment.sizes={augment['sizes']}: lightly's views have two sizes; take a recipe that has two"
        )
    low, high = zip(*augment["scales"], strict=True)
    return SwaVTransform(
        crop_sizes=tuple(augment["sizes"]),
        crop_counts=tuple(augment["counts"]),
        crop_min_scales=low,
        crop_max_scales=high,
        cj_strength=1.0,
        cj_bright=augment["brightness"],
        cj_contrast=augment["contrast"],
        cj_sat=augment["saturation"],
        cj_hue=augment["hue"],
        gaussian_blur=augment["blur"],
        normalize={"mean": augment["mean"], "std": augment["std"]},
    )


def train(backbone: nn.Module, large: int, batches: Iterator[list[Tensor]], limit: float) -> dict[str, Any]:
    """Trains for the time, as lightly's example does. large: views whose codes are predicted. Returns what was done."""
    from lightly.loss import SwaVLoss
    from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes

    head = SwaVProjectionHead(backbone.feature_dim, HIDDEN, EMBEDDING)
    prototypes, criterion = SwaVPrototypes(EMBEDDING, n_prototypes=PROTOTYPES), SwaVLoss()
    whole = nn.ModuleList([backbone, head, prototypes]).train()
    optimizer = torch.optim.Adam(whole.parameters(), lr=RATE)
    views = next(batches)  # before the clock: readers that start are no training
    steps, loss, begun = 0, torch.tensor(float("nan")), time.monotonic()
    while steps == 0 or time.monotonic() - begun < limit:
        prototypes.normalize()
        views = next(batches) if steps else views
        scores = [prototypes(nn.functional.normalize(head(backbone(view)), dim=1)) for view in views]
        loss = criterion(scores[:large], scores[large:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    done = {"steps": steps, "images": steps * BATCH, "seconds": round(time.monotonic() - begun, 2)}
    return {**done, "loss": round(float(loss.detach()), 4)}


def main() -> None:
    if len(sys.argv) < 3 or "=" in sys.argv[1]:
        print(f"{__doc__}\nnot run: no images were given")
        return
    source, output, *words = sys.argv[1:]
    pairs = [word.split("=", 1) for word in words]
    asked = ASKED | {key: value for key, value in pairs if key in ASKED}
    try:
        import lightly.loss
        import lightly.models.modules
        import lightly.transforms  # noqa: F401
    except ImportError as error:
        raise SystemExit(MISSING.format(error)) from None
    limit = durations.seconds(asked["time"])
    if limit is None:
        raise SystemExit(f"time={asked['time']}: a time like 20min or 90s")
    others = [word for word in words if word.split("=", 1)[0] not in ASKED]
    full = config.read("pretrain", [f"recipe={asked['recipe']}", f"data.source={source}", *others])
    torch.set_num_threads(int(asked["threads"]))
    torch.manual_seed(int(asked["seed"]))
    backbone, augment = build("model", full["model"]), full["augment"]
    images = Images(source, views_of(augment))
    if len(images) < BATCH:
        raise SystemExit(f"{source}: {len(images)} images, fewer than a batch of {BATCH}; give more")
    readers = int(asked["threads"])
    loader = DataLoader(
        images, BATCH, shuffle=True, drop_last=True, num_workers=readers, persistent_workers=True, collate_fn=joined
    )
    ended = train(backbone, augment["counts"][0], chain.from_iterable(repeat(loader)), limit)
    card = {"mean": augment["mean"], "std": augment["std"], "input_size": augment["sizes"][0]}
    write_bundle(Path(output), backbone, card=card)
    print(json.dumps({"peer": "lightly", "seed": int(asked["seed"]), **ended, "output": output}))


def joined(rows: list[list[Tensor]]) -> list[Tensor]:
    """Returns a tensor [B, 3, S, S] a view."""
    return [torch.stack(view) for view in zip(*rows, strict=True)]


if __name__ == "__main__":
    main()
