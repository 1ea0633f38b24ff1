"""Repeats the step that broke a run, from its capture: `seer pretrain replay=RUN/capture-00001234`.

Reads the run's folder and writes nothing there. Everything is in the capture; `source` and `device` may differ, should the
images have moved.
"""

import json
import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from seer.core.build import build, check_targets
from seer.core.errors import RequestError
from seer.core.log import log
from seer.engine import replay as engine
from seer.engine.nan_guard import CAPTURE_JSON, CAPTURE_WEIGHTS
from seer.evals.labels import UNLABELLED
from seer.parallel.world import World, open_world
from seer.run import assemble, network_input
from seer.run.classes import give_targets, with_classes
from seer.run.config import RunConfig
from seer.run.older import renewed
from seer.run.schedule import Durations
from seer.run.source import open_source


def replay(folder: Path, source: str | list[str] | None = None, device: str = "auto") -> dict[str, Any]:
    """Returns what the step gives now beside what it gave then. Raises RequestError for what is no whole capture."""
    try:
        card = json.loads((folder / CAPTURE_JSON).read_text(encoding="utf-8"))
        weights = torch.load(folder / CAPTURE_WEIGHTS, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RequestError(f"replay={folder} is no capture: {error.filename} is missing; give RUN/capture-…") from error
    except (ValueError, pickle.UnpicklingError, RuntimeError) as error:
        raise RequestError(f"replay={folder} is damaged: {error}") from error
    check_targets(card["config"])  # whoever wrote it
    config = RunConfig.of(renewed(card["config"]))
    config = config.replace(parallel={"mode": "auto"}, weights=None)  # the capture holds whole tensors
    with open_world(device, config.parallel.timeout_s) as world:
        if world.size != card["ranks"]:
            raise RequestError(f"replay={folder} is of {card['ranks']} ranks, started are {world.size}: start as many")
        found = _repeated(config, folder, source, card, weights, world)
    step = int(card["step"])
    same = {name: str(found[name]) == card[name] for name in ("loss", "grad_norm")}
    log.info(f"step {step}: then loss {card['loss']}, gradient norm {card['grad_norm']}; now {found}")
    now = {name: str(value) if isinstance(value, float) else value for name, value in found.items()}  # JSON has no nan
    return {"replayed": step, **now, "then": {name: card[name] for name in same}, "same": all(same.values())}


def _repeated(
    config: RunConfig,
    folder: Path,
    source: str | list[str] | None,
    card: dict[str, Any],
    weights: dict[str, torch.Tensor],
    world: World,
) -> dict[str, Any]:
    seen = torch.load(folder / f"rank-{world.rank:05d}.pt", map_location="cpu", weights_only=True)
    drawn = str(folder.parent / "pictures" / "train")
    shards = open_source(config, folder.parent, source or config.data.source or drawn)
    transform = network_input.transform(config)
    lengths = Durations(config.steps, config.batch, sum(map(len, shards)))
    task, _ = assemble.task(config, transform, lengths, world)
    labels = with_classes(config, shards)[1]
    give_targets(task, shards, labels)
    precision = build("precision", config.precision, world.device)
    training = assemble.training(config, task, lengths, world, precision)
    data = assemble.data(config, shards, transform, world, () if labels is None else labels.places(UNLABELLED))
    own = {
        name: tensor for name, tensor in seen.items() if name in weights
    }  # what each rank has of its own, like a queue
    scale = float(card["loss_scale"]) if "loss_scale" in card else None
    step = int(card["step"])
    with closing(data.loader.batches(step * config.batch)) as batches:  # type: ignore[type-var]
        batch = next(batches).to(world.device)
    return engine.replay(
        task,
        batch,
        training.precision,
        step=step,
        weights={**weights, **own},
        scale=scale,
        accumulate=config.accumulate,
    )
