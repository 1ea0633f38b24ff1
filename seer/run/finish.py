"""Makes what a run leaves behind: the result for the JSON line, and the backbone as a bundle, with the heads that it trained.

A small backbone's bundle is written with every checkpoint as well, once that is whole, so that a run which is going or was
stopped has one of its newest step. A large one's comes at the end and on Ctrl-C alone; until then `weights=RUN` reads the
checkpoint.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seer.core.config import flat
from seer.core.errors import StorageError
from seer.core.log import log
from seer.engine.alarms import FlightRecorder
from seer.engine.step_timer import peak_memory_gb
from seer.engine.weight_average import bundled
from seer.models.bundle import write_bundle
from seer.parallel.batchnorm import mean_statistics
from seer.parallel.collectives import gather_to_rank0
from seer.parallel.world import World
from seer.run.assemble import Training
from seer.run.config import RunConfig
from seer.run.environment import commit_of, made_by
from seer.run.result import summary
from seer.run.weights import digest

# Bytes of a backbone whose bundle comes with every checkpoint: for 4GF's 79 MB a step waits 31 ms longer (the copy) and the
# saving thread 0.18 s, 65 ms of them the processor's; for 200MF's 11 MB 4 ms and 0.08 s (medians on two busy cores)
SMALL = 80_000_000


@dataclass
class Bundles:
    """Writes RUN/bundle, which only the holder of the run's lock writes. data: fingerprint of what is trained
    on. batch: images of a step over all ranks. statistics: how many groups of ranks have batch statistics of
    their own."""

    config: RunConfig
    folder: Path
    training: Training
    world: World
    data: str
    batch: int
    statistics: int
    newest: int = -1  # the step of the one that is there, as far as this process wrote it

    @property
    def backbone(self) -> nn.Module:
        """Returns the plain network that a bundle holds."""
        return self.training.task.modules()["backbone"]

    def __post_init__(self) -> None:
        tensors = self._state().values()
        sharded = any(hasattr(tensor, "full_tensor") for tensor in tensors)
        self.small = not sharded and sum(tensor.nbytes for tensor in tensors) <= SMALL
        if self.world.rank == 0:
            for leftover in self.folder.rglob("*.tmp"):  # of a kill while one was written
                leftover.unlink()

    def beside(self, step: int, copied: bool) -> Callable[[], None] | None:
        """Returns what `Checkpoints` calls to write a bundle beside the checkpoint of a step; None where there
        is nothing to write. Called by all ranks together."""
        if not self.small:
            return None
        state = self._state()
        state |= mean_statistics(state, self.world.group, self.statistics)
        if self.world.rank:
            return None
        weights = {name: t.detach().to("cpu", copy=True) if copied else t for name, t in state.items()}

        def write() -> None:
            try:
                self.write(weights, step, {"steps": step, "images": step * self.batch})
            except (OSError, StorageError, ValueError) as error:
                log.warning(f"{self.folder} of step {step} cannot be written: {error}; the checkpoint is whole")

        return write

    def _state(self) -> dict[str, torch.Tensor]:
        """Returns {"backbone.stem.0.weight": tensor, …} of all that a bundle holds: averaged, where an average is kept."""
        average = self.training.average
        return bundled(self.training.task) if average is None else average.state_dict()

    def gathered(self) -> dict[str, torch.Tensor]:
        """Returns whole tensors on the first rank, as `write` takes them; {} on the others, which help to gather what is sharded."""
        state = self._state()
        state |= mean_statistics(state, self.world.group, self.statistics)
        return gather_to_rank0(state, self.world.group)

    def write(self, weights: Mapping[str, torch.Tensor], step: int, metrics: Mapping[str, Any]) -> None:
        transform = self.training.task.transform
        card = {
            "mean": list(transform.mean),
            "std": list(transform.std),
            "input_size": self.config.eval.size or transform.input_size,
            "ground": self.config.data.pixels.ground,
            "recipe": json.dumps(flat(self.config.plain())),
            "data_fingerprint": self.data,
            "commit": commit_of(Path(__file__).resolve().parents[2])[0],
            "step": step,
            "images_seen": step * self.batch,
            "licence": self.training.licence,
            "metrics": {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)},
        }
        cards, origin = self.training.task.head_cards(), self.training.lineage
        own = {name: (head, _part(weights, name)) for name, head in cards.items()}
        tensors = _part(weights, "backbone")
        heads = origin.heads(tensors, own, step) if own else None
        write_bundle(
            self.folder,
            self.backbone,  # type: ignore[arg-type]
            card=card,
            state_dict=tensors,
            heads=heads,
            parent=origin.parent,
        )
        self.newest = step


def _part(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    first = f"{part}."
    return {name.removeprefix(first): tensor for name, tensor in tensors.items() if name.startswith(first)}


@dataclass(frozen=True)
class Ending:
    """Makes the result of a run. Made when training begins; `seconds` of the result count from here. batch:
    images a step over all ranks. data: counts of what was found where the images lie. bad_archives: what is wrong with each
    that was passed over, by path. told: what else the result says, once the last save is over."""

    folder: Path
    bundles: Bundles
    world: World
    batch: int
    recorder: FlightRecorder
    data: dict[str, Any] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)
    bad_archives: Mapping[str, str] = field(default_factory=dict)
    told: Callable[[], Mapping[str, Any]] = dict

    def _made_of(self, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Returns what its figures are of: weights, where they were gathered, and data by their hashes, seed, command and code."""
        made = made_by(self.world)
        found = {"weights_sha256": digest(_part(weights, "backbone"))} if weights else {}
        told = {"data_fingerprint": self.bundles.data, "seed": self.bundles.config.seed}
        return {**found, **told, **{name: made[name] for name in ("command", "commit", "changed")}}

    def result(self, steps: int, bundle: bool = True) -> dict[str, Any]:
        """Returns the result on the first rank, with the bundle written; the others help to gather what is
        sharded, and return {}."""
        weights = self.bundles.gathered() if bundle else {}
        if self.world.rank:
            return {}
        result = {**summary(self.folder), "steps": steps, "images": steps * self.batch}
        result["seconds"] = round(time.monotonic() - self.start, 1)
        result["peak_memory_gb"] = round(peak_memory_gb(self.world.device), 3)
        result["alarms"] = self.recorder.raised
        result["data"] = self.data
        result |= {**self.told(), **self._made_of(weights)}
        result |= {"bad_archives": dict(self.bad_archives)} if self.bad_archives else {}
        last = (self.folder / "checkpoints" / "last").resolve()
        result |= {"output": str(self.folder), "checkpoint": str(last)}
        if bundle:
            self.bundles.write(weights, steps, result)
        if self.bundles.newest == steps:
            result["bundle"] = str(self.bundles.folder)
        return result
