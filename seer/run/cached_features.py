"""Keeps the features of images that a frozen backbone sees again and again, so that later epochs neither read nor compute them.

Where nothing is augmented and nothing of the backbone moves, an image has the same features in every epoch, and heads that
read features alone need nothing else. The first pass goes as always, and fills the store; once every row has been seen the
reader process ends, and batches are rows of the store, in the order of the plan. A run that goes on fills it anew.

Surprising:
- A bad or excluded image keeps the stand-in of its first pass, where the reader would take another one each epoch, and is told
  once. Where more than a hundredth are excluded or without labels nothing is kept: some images would weigh twice for ever.
- One process alone: ranks own other rows each epoch, so each would need the store of all.

Legend: N rows of all shards, B images of a step, C features.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from seer.core.log import log
from seer.core.protocols import Task
from seer.core.records import FEATURES, Batch
from seer.engine.precision import Precision
from seer.models.surgery import Frozen
from seer.parallel.world import World
from seer.run.assemble import Data, Training
from seer.run.config import RunConfig

MOST_BYTES = 4e9  # of the store: a million images of 440 features are 1.8 GB
MOST_EXCLUDED = 0.01  # of the images


@dataclass
class CachedFeatures:
    """Makes the batches of a loader, with features in place of views. data: what is read until every row is known."""

    data: Data
    task: Task
    precision: Precision
    device: torch.device
    batch: int

    def __post_init__(self) -> None:
        sizes = [len(shard) for shard in self.data.shards]
        self.first = np.concatenate([[0], np.cumsum(sizes)])  # of each shard, in the line of all rows
        self.known = torch.zeros(sum(sizes), dtype=torch.bool)
        self.store: dict[str, torch.Tensor] = {}

    def batches(self, consumed: int) -> Iterator[Batch]:
        """Yields batches without end. Raises what the loader raises."""
        with closing(self.data.loader.batches(consumed)) as coming:  # type: ignore[type-var]
            while not self.known.all():
                batch = next(coming)
                fields = {name: tensor for name, tensor in batch.fields.items() if "/" not in name}
                with torch.no_grad(), self.precision.autocast():
                    found = self.task.features(batch.to(self.device))
                assert found is not None
                fields[FEATURES] = found.float().cpu()
                self._keep(self._rows(consumed), fields)
                consumed += self.batch
                yield Batch(fields, batch.skipped, consumed)
        log.info(f"the features of all {len(self.known):,} images are known: the reader ends, epochs go on from them")
        for step in count():
            rows = self._rows(consumed + step * self.batch)
            fields = {name: tensor[rows] for name, tensor in self.store.items()}
            yield Batch(fields, [], consumed + (step + 1) * self.batch)

    def _rows(self, consumed: int) -> torch.Tensor:
        places = self.data.plan.places(consumed, self.batch)
        return torch.from_numpy(self.first[places.shard] + places.row)  # [B]

    def _keep(self, rows: torch.Tensor, fields: dict[str, torch.Tensor]) -> None:
        for name, tensor in fields.items():
            if name not in self.store:
                self.store[name] = tensor.new_zeros((len(self.known), *tensor.shape[1:]))
            self.store[name][rows] = tensor
        self.known[rows] = True


def with_cached_features(config: RunConfig, data: Data, training: Training, world: World) -> Data:
    """Returns the data of a run with a store of features where that makes the same run; the data as they are elsewhere."""
    task, backbone = training.task, training.task.modules()["backbone"]
    moves = any(isinstance(m, _BatchNorm) and not isinstance(m, Frozen) for m in backbone.modules())
    if moves or any(parameter.requires_grad for parameter in backbone.parameters()):
        return data
    if getattr(task.transform, "train", True) or not task.reads_features:
        return data
    if world.group is not None or config.accumulate > 1 or config.parallel.compile:
        return data
    images = sum(map(len, data.shards))
    if len(data.loader.reader.exclude) > MOST_EXCLUDED * images:
        return data
    size = images * 4 * int(backbone.feature_dim)  # type: ignore[arg-type]
    if size > MOST_BYTES:
        log.info(
            f"features of all images would take {size / 1e9:.1f} GB, {MOST_BYTES / 1e9:.0f} are the most: each epoch makes them"
        )
        return data
    log.info(
        f"nothing is augmented and the backbone stays: features are kept from the first epoch on, {size / 1e6:.1f} MB"
    )
    return replace(data, loader=CachedFeatures(data, task, training.precision, world.device, config.batch))  # type: ignore[arg-type]
