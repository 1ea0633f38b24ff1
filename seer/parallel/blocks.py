"""Finds towers and their blocks, the parts into which recompute, FSDP, torch.compile and the count of memory
take a model.

A *tower* is a module whose class has a method `blocks()`; it returns {"stage3.block4": module, ...} in the order of depth.
Every network of `seer/models/families` is one, and a model may hold several, wherever they lie in it.

Surprising:
- A block's name is what people type in `parallel.remat`, not the path of a module. Blocks of a tower that is called
  `backbone` have the names that the tower gives them; those of any other begin with its path: "text.stage1.block0".
- An attribute called `blocks`, as vision transformers of other libraries have, makes no tower: only a method does.
- What lies in no tower, a head say, has no blocks: it is one part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

MAIN = "backbone"  # its name is left out of the names of blocks
_NAME = re.compile(r"(?:(?P<stage>[\w.]+)\.)?block(?P<number>\d+)")


def towers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns {what the names of its blocks begin with: tower}; "" for the tower that is called `backbone`."""
    found: dict[str, nn.Module] = {}
    for path, tower in _towers(model, ()):
        if not any(tower is known for known in found.values()):
            front = "".join(f"{part}." for part in path if part != MAIN)
            found["".join(f"{part}." for part in path) if front in found else front] = tower
    return found


def _towers(module: nn.Module, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    if callable(getattr(type(module), "blocks", None)):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _towers(child, (*path, name))


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the blocks of every tower under the names that people type; {} for a model without any."""
    return {front + name: block for front, tower in towers(model).items() for name, block in tower.blocks().items()}  # type: ignore[operator]


def around(model: nn.Module) -> Iterator[nn.Module]:
    """Yields what has parameters and lies around towers, a head say: the outermost modules that hold no tower."""
    found = set(map(id, towers(model).values()))
    for child in model.children() if id(model) not in found else ():
        if id(child) in found:
            continue
        if isinstance(child, nn.ModuleList | nn.ModuleDict) or any(id(m) in found for m in child.modules()):
            yield from around(child)  # a container is never called itself
        elif any(True for _ in child.parameters()):
            yield child


def stages_by_tower(model: nn.Module) -> list[dict[str, list[nn.Module]]]:
    """Returns {"stage1": its blocks, ...} for each tower. Raises ValueError for blocks whose names do not count from 0."""
    found = []
    for front, tower in towers(model).items():
        stages: dict[str, list[nn.Module]] = {}
        for name, block in tower.blocks().items():  # type: ignore[operator]
            match = _NAME.fullmatch(front + name)
            members = stages.setdefault((match["stage"] or "") if match else "", [])
            if match is None or int(match["number"]) != len(members):
                raise ValueError(
                    f"{type(tower).__name__}.blocks() names {name!r} after {len(members)} blocks of its stage; wanted "
                    "STAGE.block0, STAGE.block1, ... in the order of depth"
                )
            members.append(block)
        found.append(stages)
    return found


def stages_of(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Returns {"stage1": its blocks, ...} of all towers together; {} for a model that has none."""
    return {name: members for stages in stages_by_tower(model) for name, members in stages.items()}
