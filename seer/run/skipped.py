"""Writes on disk what a run skipped: `skipped.jsonl`, one line an image, of all ranks.

Surprising: it is both an account of the run and a list that its user may give as `data.exclude`. So a run that goes back to
a checkpoint takes no line out of it; those that count no more are marked.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seer.core.lines import Lines
from seer.core.log import log
from seer.core.records import Skipped
from seer.data.ledger import Ledger, shown
from seer.parallel.collectives import all_reduce_sum
from seer.parallel.world import World

SKIPPED = "skipped.jsonl"
CHECK = 10  # steps between two looks at the limits of the ledger where ranks have to talk for it
NAMED = 20  # images named in the log for each kind of reason


class SkippedLines:
    """Appends what a step skipped to `skipped.jsonl`; a call returns the count so far (of this rank), and the counts by reason
    (of all ranks, as of the last look at the limits), or raises BadDataError (limits).

    Ranks above 0 keep files of their own, `skipped-00001.jsonl`, which `merge_skipped` joins to `skipped.jsonl`. excluded(shard, row):
    whether it is never read any more; then it counts by its reason alone.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        first_step: int,
        limits: Ledger,
        batch: int,
        excluded: Callable[[str, int], bool],
    ):
        world.barrier()  # all have read the list that rank 0 writes anew
        if world.rank == 0:
            _undo(folder, first_step)
        world.barrier()
        self._lines = Lines(folder / (SKIPPED if world.rank == 0 else f"skipped-{world.rank:05d}.jsonl"))
        self._limits, self._batch, self._alone, self._next = limits, batch, world.size == 1, first_step

        def rows() -> Iterator[dict[str, Any]]:
            for row in counted(folder / SKIPPED):
                if excluded(row["shard"], row.get("row", -1)):
                    limits.by_kind[row.get("kind", "damaged")] += 1
                else:
                    yield row

        limits.restore(rows(), first_step, batch, counts_shards=world.rank == 0)
        world.barrier()  # rank 0 appends to what the others were reading
        self._count = sum(limits.by_kind.values()) if world.rank == 0 else 0
        self._named: Counter[str] = Counter()

    def __call__(self, step: int, skipped: Sequence[Skipped]) -> tuple[int, Mapping[str, int]]:
        self._next = step
        self.last(skipped)
        self._next = step + 1
        self._count += len(skipped)
        self._limits.add(self._batch, skipped)
        if self._alone or (step + 1) % CHECK == 0:
            self._limits.check()
        return self._count, self._limits.by_kind

    def last(self, skipped: Sequence[Skipped]) -> None:
        """Appends what was skipped in a step that did not come about."""
        if not skipped:
            return
        self._lines.append("".join(json.dumps({"step": self._next, **asdict(one)}) + "\n" for one in skipped))
        for one in skipped:
            self._named[one.kind] += 1
            if self._named[one.kind] <= NAMED:
                more = "; more of this kind are in skipped.jsonl alone" if self._named[one.kind] == NAMED else ""
                log.warning(f"skipped {shown(one.member)} in {one.shard}: {shown(one.reason)}{more}")

    def close(self) -> None:
        """Tries a last time to write what storage has not taken."""
        self._lines.close()


def over_ranks(world: World) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what a Ledger sums its counts with."""

    def total(counts: np.ndarray) -> np.ndarray:
        return all_reduce_sum(torch.from_numpy(counts).to(world.device), world.group).cpu().numpy()

    return total


def exclude_files(exclude: str | Sequence[str] | None) -> list[str]:
    """Returns the files of `data.exclude`: beside the list of a run that was killed there may be those of its
    other ranks."""
    files = [exclude] if isinstance(exclude, str) else [*(exclude or [])]
    parts = [str(part) for file in files if Path(file).name == SKIPPED for part in parts_of(Path(file).parent)]
    return list(dict.fromkeys([*files, *parts]))


def merge_skipped(folder: Path) -> None:
    """Gathers all ranks' lines into skipped.jsonl, a last line that a kill cut short left out: by rank 0,
    before the list is read and at every end.

    Kills of this, too, lose and double no line: what `.skipped.jsonl.whole` holds stands in no other file any more.
    """
    path, whole = folder / SKIPPED, folder / f".{SKIPPED}.whole"
    parts = parts_of(folder)
    if not whole.exists():
        if not parts and not _cut(path):
            return
        temporary = folder / f".{SKIPPED}.writing"
        with open(temporary, "wb") as file:
            for part in (path, *parts):
                if part.exists():
                    with open(part, "rb") as lines:
                        file.writelines(line for line in lines if line.endswith(b"\n"))
        temporary.replace(whole)
    for part in parts:
        part.unlink()
    whole.replace(path)


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("skipped-[0-9]*.jsonl"))


def _cut(path: Path) -> bool:
    """Returns whether the last line has no end."""
    if not path.exists() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _undo(folder: Path, first_step: int) -> None:
    """Marks what a run that goes on at first_step has undone: lines of steps behind it stay, since the list may
    be in use as data.exclude and they would not be written again, but are marked as undone, to count no more.
    Each of these images keeps one line, which goes when the image is skipped again. Line by line: there may be
    millions."""
    temporary, undone = folder / f".{SKIPPED}.writing", {}
    with open(temporary, "w", encoding="utf-8") as file:
        for row in _lines(folder / SKIPPED):
            if "undone" in row or row["step"] >= first_step:
                undone[row["shard"], row.get("row")] = {**row, "undone": True}
            else:
                file.write(json.dumps(row) + "\n")
        file.flush()
        if undone:
            for row in _lines(temporary):
                undone.pop((row["shard"], row.get("row")), None)
        file.writelines(json.dumps(row) + "\n" for row in undone.values())
    temporary.replace(folder / SKIPPED)


def counted(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a ledger that count: those of steps that are part of the run."""
    return (row for row in _lines(path) if "undone" not in row)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a ledger; a last line cut short by a kill is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
