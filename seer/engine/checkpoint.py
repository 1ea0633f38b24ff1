"""Saving and resuming: a checkpoint exists whole and checked, or not at all.

A save goes into a folder of a fresh name; every file is flushed to disk; `manifest.json`, with the SHA-256 of each file,
is written last; the folder is renamed to `step-00001000`; `last` points to it. Killed anywhere, the older checkpoints
are untouched and the half-made folder is known by its name. Loading verifies the checksums and falls back one by one,
saying why. Files are read with `weights_only=True`: tensors and plain values, no code.

Rank 0 writes what all ranks share; every rank writes its own running statistics of batch norm.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from seer.core.errors import RequestError, StorageError
from seer.core.log import log
from seer.parallel.world import World

FORMAT = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})$")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Checkpoints:
    """folder: made when missing. keep: how many of the newest stay."""

    def __init__(self, folder: Path, world: World, keep: int = 2):
        if keep < 1:
            raise RequestError(f"every.keep={keep}: at least one checkpoint stays")
        self.folder, self.world, self.keep = folder, world, keep
        if world.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for half_made in folder.glob("*.writing"):
                if half_made.is_symlink():  # killed while `last` was moved
                    half_made.unlink()
                else:
                    shutil.rmtree(half_made)

    def save(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
        """state: {"task": {...}, "optimizer": ..., ...} of tensors and plain values. facts: plain values for people too.

        Returns the folder. Raises StorageError, with the older checkpoints intact.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = final.with_suffix(".writing")
        try:
            if self.world.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
            self.world.barrier()
            if self.world.size > 1:
                own = {k: v for k, v in state["task"].items() if k.endswith(_STATISTICS)}
                _write(temporary / f"statistics-{self.world.rank:05d}.pt", own)
            if self.world.rank == 0:
                for name, value in state.items():
                    _write(temporary / f"{name}.pt", value)
            self.world.barrier()
            if self.world.rank == 0:
                files = {p.name: {"bytes": p.stat().st_size, "sha256": _digest(p)} for p in sorted(temporary.iterdir())}
                manifest = {"format": FORMAT, "step": step, "ranks": self.world.size, **facts, "files": files}
                with open(temporary / MANIFEST, "w", encoding="utf-8") as file:
                    json.dump(manifest, file, indent=1)
                    _flush(file.fileno())
                if final.exists():
                    shutil.rmtree(final)
                os.rename(temporary, final)
                _point(self.folder / "last", final.name)
                _flush_folder(self.folder)
                # steps behind this one were passed over when the run went on: they must not push out the whole ones
                for old in [s for s in self._steps() if s <= step][: -self.keep]:
                    shutil.rmtree(self.folder / f"step-{old:08d}", ignore_errors=True)
            self.world.barrier()
        except (OSError, RuntimeError) as error:
            free = shutil.disk_usage(self.folder).free
            raise StorageError(
                f"checkpoint of step {step} could not be written to {self.folder} ({free / 1e9:.2f} GB free): {error}; "
                "older checkpoints are intact, make room and run the same command again"
            ) from error
        return final

    def load_newest(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(state, manifest) of the newest checkpoint that is whole, or None when there is none at all.

        Raises StorageError when there are some and none is whole.
        """
        steps = self._steps()
        for step in reversed(steps):
            path = self.folder / f"step-{step:08d}"
            try:
                return self._load(path)
            except StorageError as error:
                log.warning(f"checkpoint {path.name} is passed over: {error}")
        if steps:
            raise StorageError(f"none of {len(steps)} checkpoints in {self.folder} is whole; restore one or start anew")
        return None

    def _load(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        manifest = read_manifest(path)
        if path.name != f"step-{manifest['step']:08d}":
            raise StorageError(f"{MANIFEST} says step {manifest['step']}")
        for name, expected in manifest["files"].items():
            file = path / name
            whole = {"bytes": file.stat().st_size, "sha256": _digest(file)} if file.is_file() else None
            if whole != expected:
                raise StorageError(f"{name} is missing or differs from its checksum")
        state = {
            Path(name).stem: _read(path / name) for name in manifest["files"] if not name.startswith("statistics-")
        }
        state["task"].update(self._statistics(path, manifest["ranks"]))
        return state, manifest

    def _statistics(self, path: Path, ranks: int) -> dict[str, torch.Tensor]:
        """Running statistics of this rank; with another number of ranks the mean over those that were saved."""
        if ranks == 1:
            return {}
        saved = [_read(path / f"statistics-{r:05d}.pt") for r in range(ranks)]
        if ranks == self.world.size:
            return saved[self.world.rank]
        return {k: torch.stack([s[k] for s in saved]).float().mean(0).to(v.dtype) for k, v in saved[0].items()}

    def _steps(self) -> list[int]:
        found = [_NAME.match(p.name) for p in self.folder.glob("step-*")]
        return sorted(int(m[1]) for m in found if m)


def read_manifest(path: Path) -> dict[str, Any]:
    """Raises StorageError when it is missing, unreadable, or of a format this version does not know."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"no readable {MANIFEST} ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StorageError(f"{MANIFEST} is not of format {FORMAT}, which this version reads")
    kinds = {"step": int, "ranks": int, "files": dict}
    if any(not isinstance(manifest.get(name), kind) for name, kind in kinds.items()) or manifest["ranks"] < 1:
        raise StorageError(f"{MANIFEST} is damaged: it lacks step, ranks or files")
    return manifest


def _write(path: Path, value: Any) -> None:
    with open(path, "wb") as file:
        torch.save(value, file)
        _flush(file.fileno())


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise StorageError(f"{path.name} is cut, or holds more than tensors and plain values: {error}") from error


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point(link: Path, target: str) -> None:
    temporary = link.with_name(".last.writing")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
