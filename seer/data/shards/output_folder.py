"""Guards the folder that shards or indexes are written to: apart from the source, without strangers, whole at the end."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seer.core.errors import WRONG_PATH, RequestError, StorageError
from seer.data.shards.folder import FolderShard
from seer.data.shards.index import INDEX_SUFFIX, fits
from seer.data.shards.shard import Shard
from seer.data.shards.writer import (
    SHARDS_MANIFEST,
)


def keep_apart(folders: Sequence[str], shards: Iterable[Shard], output: Path) -> None:
    """Refuses an output that holds the source, whose tars shards would replace, or lies in one of its folders, where
    the next run of the same words would read what this one wrote. folders: of the words for the source.
    """
    if output.is_dir():
        places = {shard.path if isinstance(shard, FolderShard) else shard.path.parent for shard in shards}
        for place in sorted(path for path in places if path.is_dir()):  # not a list of images
            if _within(place, output):
                raise RequestError(
                    f"output={output} holds the source {place}, which writing shards would destroy; give another "
                    "folder, or index_only=true to make indexes for tars and copy nothing"
                )
    for folder in folders:
        if _within(output, Path(folder)):
            raise RequestError(
                f"output={output} lies in the source {folder}, so that the same command would read its own shards when "
                "it is run again; give a folder outside"
            )


def _within(path: Path, folder: Path) -> bool:
    """Returns whether path is folder or lies in it, whatever the links and mounts they are named by."""
    wanted, real = os.stat(folder), path.resolve()
    return any(p.exists() and os.path.samestat(p.stat(), wanted) for p in (real, *real.parents))


def make(output: Path) -> None:
    """Makes the folder, where it is not there yet. Raises RequestError for what can be none, StorageError."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        kind = RequestError if error.errno in WRONG_PATH else StorageError
        raise kind(f"output={output} cannot be made: {error.strerror}; give one that can") from error


def refuse_strangers(output: Path) -> None:
    """Refuses a folder that holds tars: a new journal takes all names of shards in it as its own."""
    strangers = sorted(name for name in os.listdir(output) if name.endswith(".tar") and name[0] != ".")
    if strangers:
        raise RequestError(
            f"output={output} holds {strangers[0]}{f' and {len(strangers) - 1} more tars' if strangers[1:] else ''} "
            "that this request has not written and will not replace; give another folder, or move them away"
        )


def finished_before(output: Path, request: str, indexes: bool = False) -> dict[str, Any]:
    """Returns the manifest of an earlier run, when it was the same and all that it wrote is there."""
    where = output / SHARDS_MANIFEST
    try:
        manifest = json.loads(where.read_text(encoding="utf-8"))
        same, shards = manifest["request"] == request, manifest["shards"]
    except (ValueError, KeyError, TypeError):
        same, shards = False, []
    if not same:
        remedy = f"delete {where} to index them anew" if indexes else "delete it"
        raise RequestError(f"output={output} already holds other shards; give another folder or {remedy}")
    lost = [problem for entry in shards if (problem := _lost(output, entry))]
    if lost:
        remedy = f"delete {where}" if indexes else "restore what is lost or delete the folder"
        raise StorageError(
            f"output={output} was finished once, but {len(lost)} of {len(shards)} shards are not as they were written, "
            f"the first: {lost[0]}; {remedy} and run the same command again"
        )
    return manifest


def _lost(output: Path, entry: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with the size of a shard or its index."""
    path = output / entry["name"]
    beside = output / entry["sidecar"] if "sidecar" in entry else Path(f"{path}{INDEX_SUFFIX}")
    try:
        size, sidecar = path.stat().st_size, beside.stat().st_size
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    if size != entry["bytes"]:
        return f"{path} has {size} bytes instead of {entry['bytes']}"
    return None if fits(sidecar, entry["count"]) else f"{beside} has {sidecar} bytes"
