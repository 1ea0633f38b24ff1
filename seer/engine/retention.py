"""Decides which checkpoints stay: the newest few, the best one, and for ever one every so many steps and one every so many hours.

Order is that of the steps in the folders' names, never of times, which jump.
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from seer.core.errors import RequestError, StorageError
from seer.engine.manifest import CHECKPOINT_MANIFEST, read_manifest

NAME = re.compile(r"step-(\d{8,})$")
BEST = "best"  # a link to the checkpoint at which a figure was best


@dataclass(frozen=True)
class Keep:
    """Says which checkpoints stay. newest: how many stay in any case; with 1 there is none to fall back to when
    that one is damaged. steps, hours: those at multiples of so many steps, and the first after so many hours
    since the last that stayed for ever, are never deleted; 0 = none. best: the one that a figure was best at stays as long as
    it is that."""

    newest: int = 2
    steps: int = 0
    hours: float = 0.0
    best: bool = False

    def __post_init__(self) -> None:
        if self.newest < 1:
            raise RequestError(f"every.keep={self.newest}: at least one checkpoint stays")
        if self.steps < 0 or self.hours < 0:
            raise RequestError(f"every.keep_steps={self.steps}, every.keep_hours={self.hours}: not below 0")

    def for_ever(self, folder: Path, step: int, now: float) -> bool:
        """Returns whether the checkpoint of this step, saved now (seconds since 1970), is one that stays."""
        if self.steps and step % self.steps == 0:
            return True
        if not self.hours:
            return False
        before = [m["saved_at"] for s in steps_in(folder) if s < step and (m := _manifest(folder, s)) and m["kept"]]
        return not before or now - max(before) >= self.hours * 3600


def best_in(folder: Path) -> int | None:
    """Returns the step of the checkpoint that `best` points to; None where there is none."""
    found = NAME.match((folder / BEST).resolve().name) if (folder / BEST).is_dir() else None
    return None if found is None else int(found[1])


def steps_in(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, whole or not, in order."""
    found = [NAME.match(path.name) for path in folder.glob("step-*")]
    return sorted(int(match[1]) for match in found if match)


def expired(folder: Path, step: int, newest: int, broken: Collection[int] = ()) -> list[Path]:
    """Returns the checkpoints that may go now that the one of `step` is whole. broken: steps that were found damaged.

    Steps ahead of it were passed over when the run went on: they must not push out the whole ones, and they stay.
    """
    behind = [s for s in steps_in(folder) if s <= step]
    whole = [s for s in behind if s not in broken]
    stay = {*whole[-newest:], best_in(folder)}
    paths = [folder / f"step-{s:08d}" for s in behind if s not in stay]
    return [path for path in paths if _may_go(path)]


def _may_go(path: Path) -> bool:
    """Returns whether this checkpoint may be deleted: one that is readable and not permanent, or a folder
    without manifest, half deleted by a kill. What cannot be read now stays: it may say so another time."""
    try:
        return not read_manifest(path)["kept"]
    except StorageError:
        try:
            os.lstat(path / CHECKPOINT_MANIFEST)
        except OSError as error:
            return isinstance(error, FileNotFoundError)
        return False


def _manifest(folder: Path, step: int) -> dict | None:
    try:
        return read_manifest(folder / f"step-{step:08d}")
    except StorageError:
        return None
