"""Chooses the run folder where no word names one: runs/NAME for the first, runs/NAME-2 for another request, and so on.

The same request again finds its own folder, whatever number it has: it goes on, or is told that it is complete. What another
request has made is never touched.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seer.core.config import flat
from seer.parallel.collectives import broadcast_text
from seer.parallel.world import World
from seer.run.config import RunConfig
from seer.run.folder import BEFORE_TRAINING, CONFIG, FREE, read_config
from seer.run.older import renewed
from seer.run.result import finished

# what a run's config.yaml states and words may leave open, so the two differ and mean the same
LEFT_OPEN: dict[str, tuple[Any, ...]] = {"precision.dtype": ("auto",), "groups": (None,), "task.classes": (None, [])}


def choose(config: RunConfig, world: World) -> tuple[RunConfig, str]:
    """Returns the config with the folder of this request, and a line that says which one it is and why. All ranks call
    this and get what the first one finds."""
    words = json.dumps(_found(config)) if world.rank == 0 else ""
    folder, why = json.loads(broadcast_text(words, world.group))
    return config.replace(output=folder), why


def _found(config: RunConfig) -> tuple[str, str]:
    base = Path(config.output)
    wanted, taken, complete, empty, first = config.plain(), [], None, None, ""
    for number, folder in _numbered(base):
        taken.append(number)
        if _holds_nothing(folder):
            empty = empty or folder
            continue
        change = _change(folder, wanted)
        if change is None and finished(folder) is None:
            return str(folder), f"output={folder}: goes on there, where the same request has begun"
        if change is None:
            complete = folder
        first = first or f"{folder} belongs to another run ({change})"
    if complete:
        return str(complete), f"output={complete}: the same request is complete there"
    if not taken:
        return str(base), f"output={base}: a new run"
    new = empty or base.with_name(f"{base.name}-{max(*taken, 1) + 1}")
    return str(new), f"output={new}: a new run{'; ' + first if first else ''}"


def _numbered(base: Path) -> list[tuple[int, Path]]:
    """Returns base, base-2, base-3, … as far as they are there, by number."""
    form = re.compile(re.escape(base.name) + r"(?:-([1-9][0-9]{0,5}))?")
    there = base.parent.iterdir() if base.parent.is_dir() else ()
    found = [(int(match[1] or 1), path) for path in there if (match := form.fullmatch(path.name))]
    return sorted(found)


def _holds_nothing(folder: Path) -> bool:
    """Returns whether a run that was refused has left it, or nobody: `claim` takes it over."""
    return folder.is_dir() and all(path.name in BEFORE_TRAINING for path in folder.iterdir())


def _change(folder: Path, wanted: Mapping[str, Any]) -> str | None:
    """Returns the first key in which the run of a folder differs from this request; None where it is the same."""
    try:
        before, now = flat(renewed(read_config(folder))), flat(renewed(wanted))
    except (OSError, ValueError):
        return f"it has no {CONFIG} that can be read"
    for key in {**before, **now}:
        if key.startswith(FREE) and key != "data.source":
            continue
        if before.get(key) != now.get(key) and now.get(key) not in LEFT_OPEN.get(key, ()):
            return f"{key}: {before.get(key)} -> {now.get(key)}"
    return None
