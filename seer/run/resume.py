"""Saves what a run saves together, and goes on from it: one list (`parts`) serves both."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from seer.core.errors import RequestError
from seer.core.log import log
from seer.data.order import MOST_LANES, largest_divisor
from seer.engine.checkpoint_policy import Checkpoints
from seer.engine.retention import Keep
from seer.parallel.world import World, same_statistics
from seer.run.assemble import Training
from seer.run.config import RunConfig
from seer.run.finish import Bundles

AVERAGE = "ema"  # of the weights, as checkpoints name it


class Account(Protocol):
    """Keeps numbers of a run in its checkpoints' manifests."""

    def go_on(self, told: Mapping[str, Any]) -> None: ...

    def plain(self) -> Mapping[str, Any] | None: ...


def parts(training: Training) -> dict[str, Any]:
    """Returns what is saved together, by the names that stand in checkpoints."""
    every: dict[str, Any] = {"task": training.task, "optimizer": training.optimizer, "precision": training.precision}
    every |= {} if training.plateau is None else {"plateau": training.plateau}
    return every if training.average is None else {**every, AVERAGE: training.average}


def state(training: Training) -> dict[str, Any]:
    """Returns the state of every part."""
    return {name: part.state_dict() for name, part in parts(training).items()}


def sharded(training: Training) -> dict[str, torch.Tensor]:
    """Returns the tensors that are read into the same shards, by their names in a checkpoint."""
    named = {f"task/{name}": tensor for name, tensor in training.task.state_dict().items()}
    if training.average is not None:
        named |= {f"{AVERAGE}/{name}": tensor for name, tensor in training.average.tensors.items()}
    parameters = (p for group in training.optimizer.param_groups for p in group["params"])
    named |= {f"optimizer/state/{i}": parameter for i, parameter in enumerate(parameters)}
    return {name: tensor for name, tensor in named.items() if hasattr(tensor, "full_tensor")}


def size(training: Training) -> int:
    """Returns the bytes of one checkpoint, over all ranks."""
    parameters = sum(p.numel() for group in training.optimizer.param_groups for p in group["params"])
    average = {} if training.average is None else training.average.tensors
    held = sum(t.numel() * t.element_size() for t in (*training.task.state_dict().values(), *average.values()))
    return held + 4 * moments(training.optimizer.defaults) * parameters


def moments(defaults: Mapping[str, Any]) -> int:
    """Returns how many moments an optimizer of these settings keeps of each parameter."""
    return 2 if "betas" in defaults else 1


def checkpoints(config: RunConfig, folder: Path, training: Training, world: World, bundles: Bundles) -> Checkpoints:
    """Makes RUN/checkpoints. Raises StorageError when the disk cannot hold them."""
    every = config.every
    made = Checkpoints(
        folder / "checkpoints",
        world,
        Keep(every.keep, training.keep_steps, every.keep_hours, best=every.keep_best is not None),
        statistics=bundles.statistics,
        background=every.background,
        beside=bundles.beside,
    )
    made.check_room(size(training))
    return made


def resume(
    saved: Checkpoints,
    training: Training,
    facts: Mapping[str, Any],
    world: World,
    batch_norm_group: int,
    accounts: Mapping[str, Account] | None = None,
) -> int:
    """Loads the newest checkpoint into every part; returns the step to go on from. accounts: what takes facts of its manifest, by
    their names. Raises RequestError for other data, and for batch statistics of another number of images."""
    found = saved.load_newest(sharded(training))
    if found is None:
        return 0
    before, manifest = found
    changed = {"data": _data_changed(manifest), "batch": "give the batch of before"}
    changed["plan"] = (
        "the images would come in another order; give data.lanes as before (a run begun by a version that chose no more than "
        f"{MOST_LANES} goes on with data.lanes={largest_divisor(facts['batch'], MOST_LANES)})"
    )
    for name, remedy in changed.items():
        if name == "data" and manifest[name] != facts[name] and manifest.get("content", "") == facts.get("content"):
            log.info("the data has another name than before; all else that is known of it is the same")
        elif manifest[name] != facts[name]:
            raise RequestError(
                f"the checkpoint of step {manifest['step']} was made with {name} {manifest[name]}, now it is "
                f"{facts[name]}: {remedy}, or give another output="
            )
    if "batch_norm_images" in manifest:
        images = facts["batch"] // facts.get("accumulate", 1)  # in each part
        same_statistics(world, batch_norm_group, images, manifest["batch_norm_images"])
    for name, part in parts(training).items():
        part.load_state_dict(before[name])
    training.clock.start(float(manifest.get("seconds", 0.0)))
    for name, account in (accounts or {}).items():
        account.go_on(manifest.get(name) or {})
    log.info(f"going on from step {manifest['step']}")
    return int(manifest["step"])


def _data_changed(manifest: Mapping[str, Any]) -> str:
    """Returns what can be said where the data has another fingerprint; earlier versions kept none without its name."""
    what = "the number or the order of its images or shards, their names, or the sizes or checksums of shards differ"
    if "content" in manifest:
        return f"{what}; restore what was there"
    return (
        f"{what}, or the name of the folder, list or tar itself; give it the name of before, or restore what was there"
    )
