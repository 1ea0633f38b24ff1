"""What a pretraining run leaves behind: the result for the JSON line, and the backbone as a bundle."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from seer.cli import config, run_folder
from seer.cli.assemble import Training
from seer.data.multicrop import MultiCrop
from seer.engine.probe import peak_memory_gb
from seer.engine.recorder import FlightRecorder
from seer.engine.saving import Checkpoints
from seer.models.bundle import write_bundle
from seer.parallel.batchnorm import mean_statistics
from seer.parallel.collectives import whole_on_first
from seer.parallel.world import World


@dataclass(frozen=True)
class Ending:
    """Made when training begins; `seconds` of the result count from here. batch: pictures a step over all ranks. facts: what
    every checkpoint says of the run."""

    wanted: Mapping[str, Any]
    folder: Path
    training: Training
    crop: MultiCrop
    world: World
    batch: int
    checkpoints: Checkpoints
    recorder: FlightRecorder
    facts: Mapping[str, Any]
    start: float = field(default_factory=time.monotonic)

    def result(self, steps: int, bundle: bool = True) -> dict[str, Any]:
        """On the first rank, with the bundle written; the others help to gather what is sharded, and return nothing."""
        weights: dict[str, torch.Tensor] = {}
        if bundle:
            state = self.training.task.backbone.state_dict()
            state |= mean_statistics(state, self.world.group, self.checkpoints.statistics)
            weights = whole_on_first(state, self.world.group)
        if self.world.rank:
            return {}
        result = {**run_folder.summary(self.folder), "steps": steps, "images": steps * self.batch}
        result["seconds"] = round(time.monotonic() - self.start, 1)
        result["peak_memory_gb"] = round(peak_memory_gb(self.world.device), 3)
        result["alarms"] = self.recorder.told
        last = (self.folder / "checkpoints" / "last").resolve()
        result |= {"output": str(self.folder), "checkpoint": str(last)}
        if bundle:
            result["bundle"] = str(self._bundle(weights, result))
        return result

    def _bundle(self, weights: Mapping[str, torch.Tensor], result: Mapping[str, Any]) -> Path:
        card = {
            "mean": list(self.crop.mean),
            "std": list(self.crop.std),
            "input_size": self.wanted["eval"]["size"] or self.crop.sizes[0],
            "recipe": json.dumps(config.flat(dict(self.wanted))),
            "data_fingerprint": self.facts["data"],
            "images_seen": result["images"],
            "licence": self.training.licence,
            "metrics": {k: float(v) for k, v in result.items() if isinstance(v, int | float)},
        }
        backbone = self.training.task.backbone
        return write_bundle(self.folder / "bundle", backbone, card=card, state_dict=weights)  # type: ignore[arg-type]
