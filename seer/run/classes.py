"""Finds the names of the classes that a run learns in its data, and has its transform give the targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seer.core.build import find
from seer.core.errors import RequestError
from seer.core.log import log
from seer.core.protocols import Task
from seer.data import synthetic as sample
from seer.data.coco import is_annotations, read_things
from seer.data.label_words import check_word
from seer.data.shards.open import box_classes, check_box_classes
from seer.data.shards.shard import Shard
from seer.data.transforms.file_things import FileThings
from seer.data.transforms.targets import ClassLabel, ClassLabels
from seer.evals import labels
from seer.evals.labels import Labels
from seer.run.config import RunConfig
from seer.run.folder import begun_with
from seer.tasks.heads import BOXED


@dataclass(frozen=True)
class Listed:
    """Holds what a file of COCO's form says of images. unlisted: (shard, row) of those that it does not list."""

    things: FileThings
    unlisted: list[tuple[int, int]]

    def places(self, which: int) -> list[tuple[int, int]]:
        """Returns the images without labels, as `Labels.places(UNLABELLED)` does; a file has none that are broken."""
        return self.unlisted if which == labels.UNLABELLED else []


def with_classes(config: RunConfig, shards: Sequence[Shard] | None) -> tuple[RunConfig, Labels | Listed | None]:
    """Returns the config with the names of the classes that its task learns, and the labels of all images; None where the
    task finds them in each sample by itself.

    shards: None for the built-in images. Of a run that goes on, the folders that name classes are those that named them when
    it began, where that was by another rule. Raises RequestError where there are no labels.
    """
    target = find("task", config.task.get("_target_", ""))
    if is_annotations(config.data.labels):
        return _with_things(config, shards)
    check_word(config.data.labels)
    config = _with_box_classes(config, shards)
    if outlined := _boxed(config, "mask_rcnn"):
        raise RequestError(
            f"task.heads.{outlined[0]}: the outlines that mask_rcnn learns come from a file of COCO's form; data.labels=FILE.json"
        )
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


def _with_things(config: RunConfig, shards: Sequence[Shard] | None) -> tuple[RunConfig, Listed]:
    """Returns the config in which heads that learn boxes have the classes of a file of COCO's form, where they name none, and what
    that file says. Raises RequestError."""
    word, names = config.data.labels, _boxed(config)
    heads = config.task.get("heads")
    if not names or shards is None or len(names) < len(heads or ()):
        others = [name for name in heads or () if name not in names]
        raise RequestError(
            f"data.labels={word} says where things lie on the images of data.source; heads of kind detect and mask_rcnn learn that"
            + (f", and {others[0]} is none" if others else "")
        )
    found = read_things(word)
    assert isinstance(heads, Mapping)
    heads = {name: {**row, "classes": list(row.get("classes") or found.names)} for name, row in heads.items()}
    if any(heads[name]["classes"] != heads[names[0]]["classes"] for name in names):
        raise RequestError(
            f"data.labels={word}: heads {', '.join(names)} learn from it together; give them the same classes"
        )
    found = found.among(heads[names[0]]["classes"])
    log.info(f"data.labels={word}: {found.line()}")
    if _boxed(config, "mask_rcnn") and not found.outlined:
        raise RequestError(
            f"data.labels={word} has boxes and no outlines (segmentation); heads=detect learns boxes alone"
        )
    things = FileThings(shards, found)
    unlisted = [
        (s, row)
        for s, shard in enumerate(shards)
        for row, key in enumerate(shard.iter_keys())
        if things.at(s, row, key) is None
    ]
    total = sum(map(len, shards))
    if len(unlisted) == total:
        raise RequestError(
            f"data.labels={word}: none of the {total} images is listed in it, like {next(iter(found.of), '')!r}"
        )
    if unlisted:
        log.warning(f"{len(unlisted)} of the {total} images are not listed in {word}, and are not learned from")
    return config.replace(task={"heads": heads}), Listed(things, unlisted)


def _boxed(config: RunConfig, kind: str | None = None) -> list[str]:
    """Returns the names of the heads that learn boxes, or of one kind."""
    heads = config.task.get("heads")
    kinds = BOXED if kind is None else (kind,)
    rows = heads.items() if isinstance(heads, Mapping) else ()
    return [name for name, row in rows if isinstance(row, Mapping) and row.get("kind") in kinds]


def _with_box_classes(config: RunConfig, shards: Sequence[Shard] | None) -> RunConfig:
    """Returns the config in which heads that find boxes have the classes of the manifests, where they name none."""
    heads = config.task.get("heads")
    if not isinstance(heads, Mapping):
        return config
    lacking = [name for name in _boxed(config) if not heads[name].get("classes")]
    for name in _boxed(config):
        check_box_classes(
            f"task.heads.{name}.classes", [str(one) for one in heads[name].get("classes") or ()], shards or ()
        )
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


def give_targets(task: Task, shards: Sequence[Shard], found: Labels | Listed | None) -> None:
    """Makes the task's transform give the targets that the task asks for. found: the labels of all images."""
    transform: Any = task.transform
    if isinstance(found, Listed):
        transform.things = found.things
        return
    known = {"label": ClassLabel, "labels": ClassLabels}
    of = None if found is None or found.by_number else (found.names, found.of)
    for name in task.targets:
        if name in known:  # others need nothing of the data
            setattr(transform, name, known[name](shards, task.classes, of=of))  # type: ignore[attr-defined]
