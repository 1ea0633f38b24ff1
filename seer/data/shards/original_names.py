"""Says which image a row of a rewritten shard was: a line for each row, in a file beside the shard.

`shard-000000.tar.names.jsonl` has the fields of a run's `skipped.jsonl` in line n + 1 for row n: {"shard": the source as it was
named, "row": its row there, "member": the whole name of the image}. Shards made of shards keep the first names. The file is
for people and programs beside training; it may be deleted. Training opens it for a file of COCO's form alone, which names images.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seer.core.errors import StorageError
from seer.core.log import log
from seer.data.shards.shard import Shard

NAMES_SUFFIX = ".names.jsonl"


def write_names(path: Path, origins: Sequence[Mapping[str, Any]]) -> None:
    """Writes the names beside a shard; the shard itself is written already. Raises StorageError."""
    names = Path(f"{path}{NAMES_SUFFIX}")
    temporary = names.with_name(f".{names.name}.writing")
    try:
        with open(temporary, "w", encoding="ascii") as file:
            file.writelines(json.dumps(one) + "\n" for one in origins)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, names)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{names} cannot be written: {error.strerror or error}") from error


class Origins:
    """Tells the origin of rows that are read from some shards. Keeps where the lines of names begin: 8 bytes a row of shards
    that have names themselves, nothing of others."""

    def __init__(self, shards: Sequence[Shard]):
        self._shards = shards
        self._lines: dict[int, np.ndarray | None] = {}  # int64 [rows], by number of the shard

    def of(self, shard: int, row: int) -> dict[str, Any]:
        """Returns {"shard", "row", "member"}: the first names where the shard has them, else its own."""
        one = self._shards[shard]
        if shard not in self._lines:
            self._lines[shard] = _lines(one)
        lines = self._lines[shard]
        if lines is not None:
            with open(f"{one.path}{NAMES_SUFFIX}", "rb") as file:
                file.seek(int(lines[row]))
                known = json.loads(file.readline())
                return {name: known[name] for name in ("shard", "row", "member")}
        return {"shard": str(one.path), "row": row, "member": one.image_name(row)}


def _lines(shard: Shard) -> np.ndarray | None:
    """Returns where each line of the names beside a shard begins, int64 [rows]; None where there are none of its rows."""
    names = f"{shard.path}{NAMES_SUFFIX}"
    if not os.path.isfile(names):
        return None
    try:
        with open(names, "rb") as file:
            data = file.read()
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
        first = json.loads(data[: ends[0]]) if len(ends) else {}
    except (OSError, ValueError) as error:
        log.warning(f"{names} cannot be read ({error}), so its names are not kept")
        return None
    if len(ends) != len(shard) or not {"shard", "row", "member"} <= set(first):
        log.warning(f"{names} has {len(ends)} lines and the shard {len(shard)} rows, so its names are not kept")
        return None
    return np.concatenate([np.zeros(1, np.int64), ends[:-1]])
