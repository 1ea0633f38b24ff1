"""Finds the names of the classes that a run learns in its data, and has its transform give the targets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seer.core.build import find
from seer.core.errors import RequestError
from seer.core.protocols import Task
from seer.data import synthetic as sample
from seer.data.label_words import check_word
from seer.data.shards.open import box_classes
from seer.data.shards.shard import Shard
from seer.data.transforms.targets import ClassLabel, ClassLabels
from seer.evals import labels
from seer.evals.labels import Labels
from seer.run.config import RunConfig
from seer.run.folder import begun_with


def with_classes(config: RunConfig, shards: Sequence[Shard] | None) -> tuple[RunConfig, Labels | None]:
    """Returns the config with the names of the classes that its task learns, and the labels of all images; None where the
    task finds them in each sample by itself.

    shards: None for the built-in images. Of a run that goes on, the folders that name classes are those that named them when
    it began, where that was by another rule. Raises RequestError where there are no labels.
    """
    check_word(config.data.labels)
    target = find("task", config.task.get("_target_", ""))
    config = _with_box_classes(config, shards)
    field = _label_field(target, config.task)
    if field is None:
        if config.data.labels != "auto":
            raise RequestError(f"data.labels={config.data.labels}: this task learns no classes; task=heads does")
        return config, None
    if shards is None:
        return _named(config, sample.SHAPE_CLASSES), None
    if field == "labels":
        if config.data.labels not in ("auto", "member"):
            raise RequestError(
                f"task.several=true reads `cls` members, so data.labels={config.data.labels} says nothing"
            )
        names = list(dict.fromkeys(name for shard in shards for name in shard.classes or ()))
        if not names and not config.task.get("classes"):
            raise RequestError(
                "task.several=true: no manifest beside the shards names the classes; write them with `seer shard`, or give task.classes="
            )
        return _named(config, names), None
    rows = [(s, row) for s, shard in enumerate(shards) for row in range(len(shard))]
    known = config.task.get("classes") or begun_with(Path(config.output), "task.classes") or ()
    found = labels.find(shards, rows, config.data.labels, known)
    return _named(config, found.names), found


def _with_box_classes(config: RunConfig, shards: Sequence[Shard] | None) -> RunConfig:
    """Returns the config in which heads that find boxes have the classes of the manifests, where they name none."""
    heads = config.task.get("heads")
    if not isinstance(heads, Mapping):
        return config
    lacking = [
        name
        for name, row in heads.items()
        if isinstance(row, Mapping) and row.get("kind") == "detect" and not row.get("classes")
    ]
    names = box_classes(shards or ()) if lacking else ()
    if not names:
        return config
    return config.replace(
        task={"heads": {**heads, **{name: {**heads[name], "classes": list(names)} for name in lacking}}}
    )


def _label_field(target: Any, arguments: Mapping[str, Any]) -> str | None:
    """Returns the field of a batch for which a task wants classes: label, labels (several an image), or None."""
    if not getattr(target, "learns_classes", False):
        return None
    ask = getattr(target, "label_field", None)
    return "label" if ask is None else ask(arguments)


def _named(config: RunConfig, names: Sequence[str]) -> RunConfig:
    return config if config.task.get("classes") else config.replace(task={"classes": list(names)})


def give_targets(task: Task, shards: Sequence[Shard], found: Labels | None) -> None:
    """Makes the task's transform give the targets that the task asks for. found: the labels of all images."""
    transform: Any = task.transform
    known = {"label": ClassLabel, "labels": ClassLabels}
    of = None if found is None or found.by_number else (found.names, found.of)
    for name in task.targets:
        if name in known:  # others need nothing of the data
            setattr(transform, name, known[name](shards, task.classes, of=of))  # type: ignore[attr-defined]
