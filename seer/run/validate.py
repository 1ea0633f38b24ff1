"""What can be told wrong about a pretraining request before its run folder is made, so that a wrong word leaves nothing behind.

Surprising: what the run makes of its words later, on the true model and pictures, is made here once more and thrown away.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seer.core.build import build
from seer.core.config import flat
from seer.core.errors import RequestError
from seer.data.ledger import share
from seer.data.order import Plan, choose_lanes
from seer.engine.precision import Precision
from seer.engine.retention import Keep
from seer.parallel.remat import chosen
from seer.parallel.world import World
from seer.parallel.wrap import check_mode
from seer.run import assemble
from seer.run import folder as run_folder
from seer.run.schedule import Lengths, schedule
from seer.tasks.swav import SwAVTask

LEAST = {
    **{"data.lanes": 1, "data.block": 1, "data.threads": 0, "data.prefetch": 1, "data.drawn": 0, "data.drawn_test": 0},
    **{"eval.size": 1, "eval.resize": 1, "eval.most": 0, "eval.k": 1, "every.minutes": 0},
}
ABOVE = {"data.prefetch_gb": 0, "eval.temperature": 0, "parallel.timeout_s": 0}


def check_words(wanted: Mapping[str, Any]) -> None:
    """Before anything is opened. Raises RequestError."""
    if wanted["batch"] < 1:
        raise RequestError(f"batch={wanted['batch']}: at least 1 image")
    if not wanted["data"]["source"] and not wanted["data"]["drawn"]:
        raise RequestError("pretrain needs data.source=…: a folder of pictures or of tars, a tar, a glob, {000..009}")
    share(wanted["data"]["max_bad"])
    if bool(wanted["eval"]["train"]) != bool(wanted["eval"]["test"]):
        raise RequestError("the kNN probe needs both eval.train=… and eval.test=…")
    values = flat(dict(wanted))
    for key, least in LEAST.items():
        if values[key] is not None and values[key] < least:
            raise RequestError(f"{key}={values[key]}: at least {least}")
    for key, limit in ABOVE.items():
        if values[key] <= limit:
            raise RequestError(f"{key}={values[key]}: above {limit}")
    for file in run_folder.lists(wanted["data"]["exclude"]):
        if not Path(file).is_file():
            raise RequestError(f"data.exclude={file} cannot be read: there is no such file; check the path")


def check_parts(
    wanted: Mapping[str, Any], task: SwAVTask, lengths: Lengths, precision: Precision, world: World, pictures: int
) -> None:
    """Before the folder is claimed. Raises RequestError and ValueError."""
    how, batch = wanted["data"], wanted["batch"]
    assemble.often(wanted, lengths)
    kept = lengths.steps(wanted["every"]["keep_steps"], "every.keep_steps")
    Keep(wanted["every"]["keep"], kept, wanted["every"]["keep_hours"])
    schedule(wanted["schedule"], wanted["plateau"], lengths)
    assemble.groups(wanted, task, lengths)
    build("optim", wanted["optim"], [nn.Parameter(torch.zeros(1))])
    if wanted["optim"].get("differentiable"):
        raise RequestError("optim.differentiable=true: nothing here goes back through a step; leave it false")
    if wanted["optim"].get("capturable") and world.device.type == "cpu":
        raise RequestError("optim.capturable=true is for GPUs, and this is a CPU; leave it false")
    lanes = how["lanes"] or choose_lanes(batch, pictures)
    Plan([pictures], seed=0, lanes=lanes, block=how["block"]).places(0, batch, world.rank, world.size)
    policy = wanted["parallel"]["remat"]
    if assemble.budget(policy) is None:
        chosen(task.model, policy)
    check_mode(wanted["parallel"]["mode"], policy, wanted["parallel"]["compile"])
    if wanted["parallel"]["mode"] == "fairscale" and world.group is not None and precision.scaler.is_enabled():
        raise RequestError(
            "parallel.mode=fairscale with precision=fp16: its ranks would scale apart; use bf16, or parallel.mode=fsdp"
        )
    group = wanted["parallel"]["batch_norm_group"]
    if group < 0 or (group and world.size % group):
        raise RequestError(f"parallel.batch_norm_group={group} does not divide {world.size} ranks; 0 means all")
