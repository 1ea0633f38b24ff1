"""Keeps an export within a budget: what is above a limit never appears, and the refusal names what would fit.

Surprising: the export is written into a folder of its own first, beside where it is to go, and moved once its size is known; of a
refused one nothing is left, folders neither. Files of the zoo's other rows are predicted (`seer.models.cost`), the one at hand is
weighed.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seer.core import budget as limits
from seer.core.budget import Budget, Row
from seer.core.errors import RequestError
from seer.models import cost, zoo

FORMS = {"float32": "fp32_file_bytes", "int8": "int8_file_bytes"}


class OverBudgetError(RequestError):
    """Says which limits an export breaks, and what would keep them: exit 78. result: the same, for the JSON line."""

    def __init__(self, message: str, result: dict[str, Any]):
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Fitting:
    """Names a network that is predicted to keep a budget. name: of the zoo, or "this network". form: float32 or int8."""

    name: str
    form: str
    file_mb: float


def predicted(costs: Mapping[str, int], form: str) -> dict[str, float | None]:
    """Returns what a budget limits, as far as a network's costs tell it before anything is exported."""
    return {"file_mb": costs[FORMS[form]] / 1e6, **program_costs(costs)}


def program_costs(costs: Mapping[str, int]) -> dict[str, float | None]:
    """Returns what a budget limits of the costs that do not depend on a file's form."""
    return {"parameters_m": costs["parameters"] / 1e6, "macs_m": costs["macs"] / 1e6}


def fitting(budget: Budget, architecture: Mapping[str, Any], side: int, form: str) -> list[Fitting]:
    """Returns what is predicted to fit, the nearest first: the same network in int8, then the largest smaller row of the zoo in this
    form, and in int8. Each costs a pass on the meta device, half a second a row, so this is for refusals."""
    others = ["float32", "int8"] if form == "float32" else ["int8"]
    own = cost.of(architecture, side)
    found = [_named("this network", own, one) for one in others if one != form and _keeps(budget, own, one)]
    largest: dict[str, Fitting] = {}
    for name in zoo.names():
        row = zoo.build(name, device="meta", in_channels=architecture.get("in_channels", 3))
        costs = cost.of(row.architecture, side)
        if costs["parameters"] >= own["parameters"]:
            break
        largest |= {one: _named(name, costs, one) for one in others if _keeps(budget, costs, one)}
    return [*found, *(largest[one] for one in others if one in largest)]


def _keeps(budget: Budget, costs: Mapping[str, int], form: str) -> bool:
    return limits.passed(limits.check(budget, predicted(costs, form))) is not False


def _named(name: str, costs: Mapping[str, int], form: str) -> Fitting:
    return Fitting(name, form, round(costs[FORMS[form]] / 1e6, 2))


def require(
    budget: Budget, values: Mapping[str, float | None], architecture: Mapping[str, Any], side: int, form: str
) -> list[Row]:
    """Returns a row a limit. Raises OverBudgetError for values above one."""
    rows = limits.check(budget, values)
    broken = [row for row in rows if row.ok is False]
    if not broken:
        return rows
    fits = fitting(budget, architecture, side, form)
    said = ", ".join(f"budget.{row.limit}={row.most:g}: this export has {row.value:.4g}" for row in broken)
    how = {"int8": " (to=executorch int8=true)", "float32": ""}
    nearest = "; ".join(f"{one.name} in {one.form}{how[one.form]}, a file of {one.file_mb:g} MB" for one in fits)
    told = {**limits.plain(budget, rows), "nearest": [vars(one) for one in fits]}
    raise OverBudgetError(
        f"{said}; nothing was written. "
        + (
            f"Predicted to fit: {nearest}" if fits else "No smaller row of the zoo is predicted to fit: raise the limit"
        ),
        {"budget": told},
    )


def write_within(
    budget: Budget,
    output: Path,
    write: Callable[[Path], dict[str, Any]],
    architecture: Mapping[str, Any],
    side: int,
    form: str = "float32",
    *,
    whole: bool = True,
) -> dict[str, Any]:
    """Exports to `output` and returns what `write` returned, with `budget`. Raises OverBudgetError before anything is written where
    the network is above a limit, and, with nothing left, where its file is.

    write: exports to a path -> a dict whose `file` is the one that is weighed, and whose `described`, where it has one, is the JSON
    beside that. form: float32 or int8. whole: all of the network is exported, so that it can be refused by its costs alone.
    """
    known: dict[str, float | None] = predicted(cost.of(architecture, side), form) | {"file_mb": None}
    if not limits.check(budget, known):
        return write(output)
    if whole:
        require(budget, known, architecture, side, form)
    place = output.absolute()
    there = next(folder for folder in place.parents if folder.is_dir())
    staging = there / f".{uuid.uuid4().hex}.tmp"
    made = staging / place.relative_to(there)
    made.parent.mkdir(parents=True)
    try:
        written = write(made)
        known["file_mb"] = os.path.getsize(written["file"]) / 1e6
        if "described" in written:
            described = json.loads(Path(written["described"]).read_text(encoding="utf-8"))
            known |= program_costs(described["cost"]) | {"arena_mb": arena_mb(described)}
        rows = require(budget, known, architecture, side, form)
        for file in sorted(staging.rglob("*")):
            goal = there / file.relative_to(staging)
            if not file.is_dir():
                goal.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, goal)
    finally:
        shutil.rmtree(staging)
    return {**_moved(written, str(made), str(output)), "budget": limits.plain(budget, rows)}


def arena_mb(described: Mapping[str, Any]) -> float | None:
    """Returns the MB that a program's runtime plans for activations, by its description; None where that does not tell."""
    arenas = described.get("arena_bytes")
    return None if arenas is None else sum(arenas) / 1e6


def _moved(value: Any, made: str, output: str) -> Any:
    """Returns what was written with the paths that it has now."""
    if isinstance(value, dict):
        return {key: _moved(one, made, output) for key, one in value.items()}
    return output + value[len(made) :] if isinstance(value, str) and value.startswith(made) else value
