"""Opens the networks that are compared: what each was trained by, how large it is, how many images it has seen.

Surprising: beside trained networks stand untrained ones of the same shape, made by a seed, since a network that has learned
nothing is no guess: its features already tell images apart by color and texture.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seer.core import rng
from seer.data.pixels import Pixels
from seer.models import zoo
from seer.models.families.family import Network
from seer.run.newest import CHECKPOINTS
from seer.run.weights import pixels_of, state

SCRATCH, SUPERVISED, SELF_SUPERVISED, ADAPTED, IMPORTED = KINDS = (
    "scratch",
    "supervised",
    "self-supervised",
    "adapted",
    "imported",
)
HEADS = "seer.tasks.heads.HeadsTask"


@dataclass(frozen=True)
class Subject:
    """Holds a network that is compared. kind: of KINDS. weights: path, None of an untrained one. images: seen in training, None
    where that is not known. origin: what the result says of the weights besides."""

    name: str
    kind: str
    weights: str | None
    backbone: Network
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    pixels: Pixels
    images: int | None
    origin: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        """Returns how many parameters the backbone has."""
        return sum(parameter.numel() for parameter in self.backbone.parameters())  # type: ignore[attr-defined]

    @property
    def shape(self) -> str:
        """Returns the architecture as text: equal for networks whose weights are interchangeable."""
        return json.dumps(self.backbone.architecture, sort_keys=True)


def subjects(paths: Sequence[str], scratch: bool, seed: int, size: int | None = None) -> Iterator[Subject]:
    """Yields the untrained networks of all shapes that occur, where they are wanted, each before the first of its shape, and the
    trained ones in their order; one after the other, so that one is in memory. size: of images, for all of them; None = each
    that of its weights. Raises RequestError."""
    names, known = _names(paths), set[tuple[str, int]]()
    for path, name in zip(paths, names, strict=True):
        found = state(path)
        backbone, card = found.backbone, found.card
        seen = card.get("images_seen")
        one = Subject(
            name=name,
            kind=kind_of(card),
            weights=path,
            backbone=backbone,
            mean=tuple(card["mean"]),
            std=tuple(card["std"]),
            size=size or card["input_size"],
            pixels=pixels_of(backbone, card),
            images=None if seen is None else int(seen),
            origin=found.origin,
        )
        if scratch and (one.shape, one.size) not in known:
            known.add((one.shape, one.size))
            yield untrained(one, seed)
        yield one


def untrained(like: Subject, seed: int) -> Subject:
    """Returns a network of the same shape that has not learned anything, made by the seed as a run makes its own."""
    torch.manual_seed(rng.key(seed, "weights") & 0x7FFFFFFFFFFFFFFF)
    backbone = zoo.of(like.backbone.architecture)
    name = zoo.name_of(like.backbone.architecture) or f"(as {like.name})"
    rest = {"mean": like.mean, "std": like.std, "size": like.size, "pixels": like.pixels}
    return Subject(f"untrained {name}", SCRATCH, None, backbone, images=0, origin={"seed": seed}, **rest)  # type: ignore[arg-type]


def kind_of(card: Mapping[str, Any]) -> str:
    """Returns how weights were trained, by the request that their card keeps: adapted = with labels, from other weights."""
    if not card.get("recipe"):
        return IMPORTED
    request = json.loads(card["recipe"])
    if request.get("task._target_") != HEADS:
        return SELF_SUPERVISED
    return ADAPTED if request.get("weights") else SUPERVISED


def _names(paths: Sequence[str]) -> list[str]:
    """Returns a short name of each path, the path itself where two would be alike."""
    short = [
        f"{Path(path).parents[1].name}/{Path(path).name}" if Path(path).parent.name == CHECKPOINTS else Path(path).name
        for path in (os.path.abspath(path) for path in paths)
    ]
    return [path if short.count(name) > 1 else name for path, name in zip(paths, short, strict=True)]
