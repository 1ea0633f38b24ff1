"""Exports a `.pt2`, the program that `torch.export.load` reads: torch alone runs it, without this package.

Surprising: the batch is free from 1 to 1024, the side of the image is not. `torch.export.load(file).module()(images)` gives
{name of an output: [N, …]}. Legend: N images, C channels, S side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seer.export import parity, program_file
from seer.export.program import Given, Program, compared, traced, worst
from seer.models.families.family import Network
from seer.models.head_files import StoredHead

FILE = "model.pt2"
TOLERANCE = 1e-6


def export(
    backbone: Network,
    card: Mapping[str, Any],
    output: Path,
    pixels: Tensor,
    given: Given = "normalized",
    *,
    heads: Mapping[str, StoredHead] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Writes `output` (a `.pt2` file, else a folder that gets `model.pt2`) and its description, checked by `torch.export.load`.

    Args:
        backbone: any device; read, not changed.
        card: see `seer.models.bundle.write_bundle`.
        pixels: uint8 [N, C, S, S], for the comparison.
        given, heads, names: what the program is fed with and gives, see `Program`.

    Returns `file`, `described` (its JSON), `outputs`, `parity`, `tolerance`, `pictures`. Raises ValueError where an output differs by
    more than 1e-6 of its largest value.
    """
    file = program_file.place(Path(output), FILE)
    program = Program(backbone, card, given, heads, names)
    exported = traced(program)

    def check(made: Path) -> dict[str, dict[str, float]]:
        found = compared(torch.export.load(made).module(), program, pixels)
        parity.require(worst(found), tolerance=TOLERANCE, what="the program that torch.export.load reads")
        return found

    described = program_file.write(
        file,
        program,
        card,
        target="torch_export",
        make=lambda made: torch.export.save(exported, made),
        check=check,
        tolerance=TOLERANCE,
        versions={},
    )
    return program_file.result(file, described, len(pixels), card)


def load(file: str | Path) -> Any:
    """Returns the program of a file that `export` wrote, a module images -> {name of an output: [N, …]}. Raises as
    `program_file.read` does, before torch sees a byte."""
    program_file.read(file)
    return torch.export.load(Path(file)).module()
