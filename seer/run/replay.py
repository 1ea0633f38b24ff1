"""`seer pretrain replay=RUN/capture-00001234`: the step that broke a run, again.

Reads the run's folder and writes nothing there. Words given beside `replay` do not count, but for `data.source`, should the
pictures have moved; everything else is in the capture.
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
from seer.data.shards import open_shards
from seer.engine import replay as engine
from seer.engine.numerics import CARD, WEIGHTS
from seer.parallel.world import open_world
from seer.run import assemble
from seer.run.schedule import Lengths


def run(words: dict[str, Any]) -> dict[str, Any]:
    """Returns what the step gives now beside what it gave then. Raises RequestError for what is no whole capture."""
    folder = Path(words["replay"])
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        weights = torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RequestError(f"replay={folder} is no capture: {error.filename} is missing; give RUN/capture-…") from error
    except (ValueError, pickle.UnpicklingError, RuntimeError) as error:
        raise RequestError(f"replay={folder} is damaged: {error}") from error
    wanted, step = card["config"], int(card["step"])
    check_targets(wanted)  # whoever wrote it
    wanted["parallel"]["mode"] = "auto"  # the capture holds whole tensors
    source = words["data"]["source"] or wanted["data"]["source"]
    with open_world(words["parallel"]["device"], wanted["parallel"]["timeout_s"]) as world:
        if world.size != card["ranks"]:
            raise RequestError(f"replay={folder} is of {card['ranks']} ranks, started are {world.size}: start as many")
        seen = torch.load(folder / f"rank-{world.rank:05d}.pt", map_location="cpu", weights_only=True)
        named = {key: wanted["data"].get(key) for key in ("image", "fields")}
        shards = open_shards(source or folder.parent / "pictures" / "train", **named)
        crop, lengths = (
            build("augment", wanted["augment"]),
            Lengths(wanted["steps"], wanted["batch"], sum(map(len, shards))),
        )
        task, _ = assemble.task({**wanted, "weights": None}, crop, lengths, world)
        precision = build("precision", wanted["precision"], world.device)
        training = assemble.training(wanted, task, lengths, world, precision)
        data = assemble.data(wanted, shards, crop, world)
        kept = {name: tensor for name, tensor in seen.items() if name.startswith("queue.")}
        before = {name: tensor for name, tensor in weights.items() if not name.startswith("queue.")} | kept
        scale = float(card["loss_scale"]) if "loss_scale" in card else None
        with closing(data.loader.batches(step * wanted["batch"])) as batches:  # type: ignore[type-var]
            batch = next(batches).to(world.device)
        found = engine.replay(task, batch, training.precision, step=step, weights=before, scale=scale)
    same = {name: str(found[name]) == card[name] for name in ("loss", "grad_norm")}
    log.info(f"step {step}: then loss {card['loss']}, gradient norm {card['grad_norm']}; now {found}")
    now = {name: str(value) if isinstance(value, float) else value for name, value in found.items()}  # JSON has no nan
    return {"replayed": step, **now, "then": {name: card[name] for name in same}, "same": all(same.values())}
