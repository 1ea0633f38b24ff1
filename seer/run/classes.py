"""Finds the names of the classes that a run learns in its data, and has its transform give the targets."""

from collections.abc import Sequence
from typing import Any

from seer.core.build import find
from seer.core.errors import RequestError
from seer.core.protocols import Task
from seer.data import synthetic as sample
from seer.data.shards.shard import Shard
from seer.data.transforms.targets import ClassLabel, ClassLabels
from seer.evals import labels
from seer.run.config import RunConfig


def with_classes(config: RunConfig, shards: Sequence[Shard] | None) -> tuple[RunConfig, bool]:
    """Returns the config with the names of the classes that its task learns, and whether labels are names of folders.

    shards: None for the built-in images. Raises RequestError where there are no labels.
    """
    target = find("task", config.task.get("_target_", ""))
    if not getattr(target, "learns_classes", False):
        return config, False
    if shards is None:
        return _named(config, sample.SHAPE_CLASSES), False
    if config.task.get("several"):
        names = list(dict.fromkeys(name for shard in shards for name in shard.classes or ()))
        if not names and not config.task.get("classes"):
            raise RequestError(
                "task.several=true: no manifest beside the shards names the classes; write them with `seer shard`, or give task.classes="
            )
        return _named(config, names), False
    rows = [(s, row) for s, shard in enumerate(shards) for row in range(len(shard))]
    found = labels.find(shards, rows, "auto")
    return _named(config, found.names), found.folder


def _named(config: RunConfig, names: Sequence[str]) -> RunConfig:
    return config if config.task.get("classes") else config.replace(task={"classes": list(names)})


def give_targets(task: Task, shards: Sequence[Shard], folder: bool) -> None:
    """Makes the task's transform give the targets that the task asks for."""
    transform: Any = task.transform
    known = {"label": ClassLabel, "labels": ClassLabels}
    for name in task.targets:
        setattr(transform, name, known[name](shards, task.classes, folder=folder))  # type: ignore[attr-defined]
