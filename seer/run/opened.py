"""Opens a run that is going or over, to be looked at: its config, its task as it stands, its data, its numbers."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from seer.core.build import check_targets
from seer.core.errors import RequestError, StorageError
from seer.core.log import log
from seer.core.protocols import Task
from seer.data.shards.shard import Shard
from seer.engine.checkpoint_files import read_part
from seer.engine.metrics import read_rows
from seer.engine.retention import steps_in
from seer.parallel.world import World
from seer.run import assemble, network_input
from seer.run.classes import give_targets, with_classes
from seer.run.config import RunConfig
from seer.run.folder import read_config
from seer.run.newest import asked_step
from seer.run.older import renewed
from seer.run.schedule import Durations
from seer.run.source import open_source

TASK = "task/"  # how names of its tensors begin in a checkpoint
AVERAGED = "ema/"  # and of their average, where the run keeps one


@dataclass(frozen=True)
class Run:
    """Holds an opened run. config: what was asked for, in today's words. step: of the newest whole checkpoint,
    0 where there is none."""

    folder: Path
    config: RunConfig
    step: int
    _state: dict[str, torch.Tensor] | None

    @cached_property
    def shards(self) -> list[Shard]:
        """Returns what the run trains on. Raises RequestError where it has moved."""
        return open_source(self.config, self.folder, self.config.data.source or str(self.folder / "pictures" / "train"))

    @cached_property
    def task(self) -> Task:
        """Returns the task on the CPU, plain, with the weights of `step`, or as it began where there is none."""
        transform = network_input.transform(self.config)
        lengths = Durations(self.config.steps, self.config.batch, sum(map(len, self.shards)))
        alone = World(0, 1, 0, torch.device("cpu"))
        task, _ = assemble.task(self.config.replace(weights=None), transform, lengths, alone)
        give_targets(task, self.shards, with_classes(self.config, self.shards)[1])
        if self._state is not None:
            task.load_state_dict(self._state)
        return task

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl so far."""
        path = self.folder / "metrics.jsonl"
        return read_rows(path) if path.exists() else []


def open_run(folder: str | Path) -> Run:
    """Opens a run folder. Takes no lock and writes nothing, so the run may be going.

    A path of one checkpoint, RUN/checkpoints/step-… or RUN@best, opens the run at that step. Raises RequestError for a folder
    that holds no run, or one whose config may not be built, and StorageError where it has checkpoints and none is whole.
    """
    folder, step = asked_step(Path(folder))
    try:
        values = read_config(folder)
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder} holds no run that can be read ({error}); give the output= of one") from error
    check_targets(values)
    config = RunConfig.of(renewed(values))
    steps = steps_in(folder / "checkpoints") if step is None else [step]
    for step in reversed(steps):
        try:
            place = folder / "checkpoints" / f"step-{step:08d}"
            state, _ = read_part(place, TASK)
            if config.ema:  # what is judged and handed over
                state |= read_part(place, AVERAGED)[0]
            return Run(folder, config, step, state)
        except StorageError as error:
            log.warning(f"checkpoint of step {step} is passed over: {error}")
    if steps:
        raise StorageError(f"none of {len(steps)} checkpoints in {folder} is whole; restore one")
    return Run(folder, config, 0, None)
