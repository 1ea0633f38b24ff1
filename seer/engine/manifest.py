"""Writes and reads what a checkpoint folder says of itself, with the few system calls that make it last.

`manifest.json` is written last: a folder without it is half made. It holds the format, the step, the number of ranks,
facts of the run, and the size and SHA-256 of every other file.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from seer.core.errors import StorageError

CHECKPOINT_FORMAT = 2  # 1: pickled tensors, one file a part; never released
CHECKPOINT_MANIFEST = "manifest.json"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that is flushed to the disk when this returns."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file. Raises StorageError when it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"no readable {path.name} ({error})") from error


def with_checksum(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest with a hash of itself, so that a flipped bit in it is found, too."""
    return {**manifest, "sha256": _digest(manifest)}


def _digest(manifest: dict[str, Any]) -> str:
    rest = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint. path: the folder. Raises StorageError when it is missing, damaged,
    or of a format this version does not know."""
    manifest = read_json(path / CHECKPOINT_MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != CHECKPOINT_FORMAT:
        raise StorageError(f"{CHECKPOINT_MANIFEST} is not of format {CHECKPOINT_FORMAT}, which this version reads")
    if manifest.get("sha256") != _digest(manifest):
        raise StorageError(f"{CHECKPOINT_MANIFEST} differs from its checksum")
    kinds = {"step": int, "ranks": int, "statistics": int, "files": dict, "saved_at": float, "kept": bool}
    if any(not isinstance(manifest.get(name), kind) for name, kind in kinds.items()):
        raise StorageError(f"{CHECKPOINT_MANIFEST} is damaged: it lacks one of {', '.join(kinds)}")
    if path.name != f"step-{manifest['step']:08d}":
        raise StorageError(f"{CHECKPOINT_MANIFEST} says step {manifest['step']}")
    return manifest


def file_digest(path: Path) -> dict[str, Any]:
    """Returns {"bytes": size, "sha256": digest} of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def flush_folder(folder: Path) -> None:
    """Flushes a folder: names made, renamed or removed in it are on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_symlink(link: Path, target: str) -> None:
    """Makes a symbolic link, or moves one, in one stroke."""
    temporary = link.with_name(f".{link.name}.writing")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
