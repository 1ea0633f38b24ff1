"""Gives each rank what heads said of the images of all ranks, in the order of the images, so that all judge the same.

What a rank found travels as bytes: tensors and plain containers, which `torch.load` reads without running what a pickle says.
Integers and floats arrive to the last bit, so a figure is that of one process.

Legend: R ranks.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from seer.data.coco import Scene, Thing
from seer.data.outlines import Outline, Runs
from seer.evals.coco_metrics import FoundThings
from seer.evals.detection import Answer
from seer.parallel.collectives import Group, gather_rows

Parts = dict[str, list[Any]]
Blocks = dict[int, dict[str, Parts]]  # by the first row of a block, what each head said of it


def gathered(blocks: Blocks, group: Group | None) -> Blocks:
    """Returns the blocks of all ranks, by their first rows, on every rank. Waits for all."""
    if group is None:
        return blocks
    plain = {
        first: {
            head: {name: [_plain(one) for one in values] for name, values in parts.items()}
            for head, parts in of.items()
        }
        for first, of in blocks.items()
    }
    found: Blocks = {}
    for each in gather_values(plain, group):
        for first, of in each.items():
            found[first] = {
                head: {name: [_made(name, one) for one in values] for name, values in parts.items()}
                for head, parts in of.items()
            }
    return found


def joined(blocks: Blocks, heads: Mapping[str, Any]) -> dict[str, Parts]:
    """Returns what each head said of all blocks, in the order of their rows."""
    found: dict[str, Parts] = {name: {"image": []} for name in heads}
    for first in sorted(blocks):
        for head, parts in blocks[first].items():
            for name, values in parts.items():
                found[head].setdefault(name, []).extend(values)
    return found


def gather_values(value: Any, group: Group | None) -> list[Any]:
    """Returns every rank's value, of tensors and plain containers, in rank order on every rank. Waits for all."""
    if group is None:
        return [value]
    file = io.BytesIO()
    torch.save(value, file)
    rows = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    return [torch.load(io.BytesIO(one.numpy().tobytes()), weights_only=True) for one in gather_rows(rows, group)]


def _plain(one: Any) -> Any:
    if isinstance(one, Scene):
        things = [(list(t.box), t.label, _plain_outline(t.outline), t.area, t.crowd) for t in one.things]
        return [None if one.size is None else list(one.size), things]
    if isinstance(one, Answer | FoundThings):
        return [torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in one]
    return one


def _made(name: str, one: Any) -> Any:
    """Returns the like of what `_plain` was given. name: of the list in which it lies."""
    if name == "scene":
        size, things = one
        made = [Thing(tuple(box), label, _outline(outline), area, crowd) for box, label, outline, area, crowd in things]
        return Scene(None if size is None else tuple(size), tuple(made))
    if name in ("answers", "found"):
        parts: list[Any] = [part.numpy() if isinstance(part, torch.Tensor) else part for part in one]
        return Answer(*parts) if name == "answers" else FoundThings(*parts)
    return one


def _plain_outline(outline: Outline | None) -> Any:
    if isinstance(outline, Runs):
        return {"size": [outline.height, outline.width], "counts": torch.from_numpy(outline.counts)}
    return None if outline is None else [torch.from_numpy(one) for one in outline]


def _outline(plain: Any) -> Outline | None:
    if isinstance(plain, dict):
        height, width = plain["size"]
        return Runs(height, width, plain["counts"].numpy())
    return None if plain is None else [one.numpy() for one in plain]
