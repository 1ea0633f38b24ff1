"""Finds the heads that belong to weights which are exported, in a bundle or in the checkpoint of a run, and what they learned from.

Surprising: a run that goes on has newer heads in its checkpoint than in its bundle. These are taken, with the backbone of the same
step; heads that came with the run's own weights lie in the bundle alone, and are taken where they stand on this backbone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from seer.core.build import find
from seer.core.protocols import Task
from seer.engine.checkpoint_files import read_part
from seer.engine.retention import NAME
from seer.models.bundle import plain
from seer.models.head_files import StoredHead, hash_of_tensors, stored
from seer.run.lineage import heads_of
from seer.run.newest import CHECKPOINTS, State
from seer.run.opened import TASK, open_run


def heads_with(weights: str, state: State) -> dict[str, StoredHead]:
    """Returns the heads of what `run.weights.state` found, by name; {} where there are none.

    Raises RequestError for damaged heads, and for a checkpoint of heads whose training data has moved: their sizes come from it.
    """
    if state.kind != "checkpoint":
        return heads_of(weights) if state.kind == "bundle" else {}
    run = _run_of(Path(weights))
    opened = open_run(run)
    if getattr(find("task", opened.config.task.get("_target_", "")), "head_cards", None) in (None, Task.head_cards):
        return {}
    if opened.step != state.step:
        tensors, _ = read_part(run / CHECKPOINTS / f"step-{state.step:08d}", TASK)
        opened = replace(opened, step=state.step or 0, _state=tensors)
    cards, modules = opened.task.head_cards(), opened.task.modules()
    now = hash_of_tensors({name: plain(one) for name, one in state.backbone.state_dict().items()})
    earlier = {name: head for name, head in heads_of(str(run)).items() if name not in cards and head.backbone == now}
    return earlier | {
        name: stored(
            card,
            {key: plain(one) for key, one in modules[name].state_dict().items()},
            backbone=now,
            step=state.step,
        )
        for name, card in cards.items()
    }


def _run_of(path: Path) -> Path:
    """Returns the run folder of what `weights=` named: itself, its checkpoints/, one of these, or a file of one."""
    if path.is_file():
        path = path.parent
    path = path.absolute()
    if path.name == CHECKPOINTS:
        return path.parent
    if path.parent.name == CHECKPOINTS or NAME.match(path.resolve().name):
        return path.parent.parent if path.parent.name == CHECKPOINTS else path.resolve().parent.parent
    return path


def trained_on(card: Mapping[str, Any]) -> list[str] | None:
    """Returns the images that weights were trained on, as their card's recipe names them; None where they are not all here."""
    try:
        source = json.loads(card.get("recipe") or "{}").get("data.source")
    except (ValueError, AttributeError):  # any text may stand there
        return None
    paths = [source] if isinstance(source, str) else source
    if (
        not isinstance(paths, list)
        or not paths
        or not all(isinstance(one, str) and os.path.exists(one) for one in paths)
    ):
        return None
    return list(paths)
