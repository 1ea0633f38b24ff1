"""Saving and resuming: a checkpoint exists whole and checked, or not at all.

A save goes into a folder of a fresh name; every rank writes its share of the tensors as safetensors, through
torch.distributed.checkpoint; plain values go to `state.json`; every file is flushed and hashed; `manifest.json`, with the
hashes, is written last; the folder is renamed to `step-00001000`; `last` points to it. Killed anywhere, the older
checkpoints are untouched and the half-made folder is known by its name. Loading verifies the hashes, each rank its share
of the files, and falls back one by one, saying why. Nothing is pickled, so nothing that is read can run.

Surprising here:

- In the background (`background=True`) training waits only until its tensors are copied to the host; a thread writes them,
  and the ranks' threads talk over a group of their own. There is never more than one save under way.
- A save that storage refuses does not end the run: it is told at once, and the next one tries anew. The last one must
  succeed (`settle`), and TRIES failures on end are enough.
- Running statistics of batch norm differ between the groups of ranks that share them. The first rank of each group
  saves them; whoever goes on with as many groups finds its own, with another number their mean.
- Sharded tensors (DTensor) are saved as they lie and read as they are needed, so the number of ranks may change.
"""

import json
import os
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from seer.core.errors import StorageError
from seer.core.log import log
from seer.engine.manifest import (
    FORMAT,
    MANIFEST,
    described,
    flush_folder,
    point,
    read_json,
    read_manifest,
    sealed,
    write_json,
)
from seer.engine.retention import Keep, passed, steps_in
from seer.engine.state import flatten, names, unflatten
from seer.parallel.batchnorm import STATISTICS, mean_of_sets
from seer.parallel.collectives import Group, gather_text, share_text, waited
from seer.parallel.world import World

STATE = "state.json"
TRIES = 3
UNREADABLE = (OSError, CheckpointException, SafetensorError, KeyError, TypeError)
# one process saves without a process group, as it is told to
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class Checkpoints:
    """folder: made when missing. keep: which stay. statistics: how many groups of ranks share batch statistics, each
    with a set of its own. background: write while training goes on."""

    def __init__(
        self, folder: Path, world: World, keep: Keep | None = None, *, statistics: int = 1, background: bool = False
    ):
        self.folder, self.world, self.keep = folder, world, keep or Keep()
        self.statistics, self.background = statistics, background
        self._writing: threading.Thread | None = None
        self._failed: BaseException | None = None  # what came of the last save
        self._row, self._told = 0, False  # failures on end; whether the last was told
        if world.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for half_made in folder.glob("*.writing"):
                if half_made.is_symlink():  # killed while `last` was moved
                    half_made.unlink()
                else:
                    shutil.rmtree(half_made)

    def check_room(self, size: int) -> None:
        """size: bytes of one checkpoint, over all ranks. Raises StorageError when the disk cannot hold those that stay and
        one more; so a run that would fail after hours fails at once."""

        def problem() -> str:
            free = shutil.disk_usage(self.folder).free
            missing = max(1, self.keep.newest + 1 - len(steps_in(self.folder)))
            if free >= size * missing:
                return ""
            return (
                f"{missing} checkpoints of {size / 1e9:.2f} GB each do not fit into {free / 1e9:.2f} GB free on the disk of "
                f"{self.folder}; make room, give another output=, or lower every.keep={self.keep.newest}"
            )

        if told := self._on_first(problem, self.world.group):
            raise StorageError(told)

    def save(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
        """state: {"task": {...}, "optimizer": ..., ...} of tensors and plain values. facts: plain values for people too.

        Returns the folder, which is there once `settle` has returned. What storage refuses is told, and raised by
        `settle` alone, with the older checkpoints intact.
        """
        self._join()
        if isinstance(self._failed, StorageError):
            self._tell(self._failed)
        elif self._failed is not None:
            self.settle()
        self._failed, self._told = None, False
        tensors, plain = flatten(state)
        mine = self._of_this_rank(tensors)
        if self.background:
            mine = _copied(mine)
            self._writing = threading.Thread(
                target=self._try, args=(step, mine, plain, facts), name="checkpoint", daemon=True
            )
            self._writing.start()
        else:
            self._write_once(step, mine, plain, facts, self.world.group)
            self.look()
        return self.folder / _name(step)

    def look(self) -> bool:
        """Tell of a save that failed, once, without waiting for one under way. True when no more should be tried:
        `settle` raises why. Ranks may hear it a step apart."""
        failed = self._failed
        if failed is None:
            return False
        if not isinstance(failed, StorageError) or self._row >= TRIES:
            return True
        self._tell(failed)
        return False

    def _tell(self, failed: StorageError) -> None:
        if not self._told:
            self._told = True
            log.warning(f"{failed}: training goes on, and the next save tries anew")

    def settle(self) -> None:
        """Wait until the last save is on the disk. Raises what stopped it, on all ranks alike when that was storage."""
        self._join()
        failed, self._failed = self._failed, None
        if isinstance(failed, StorageError):
            again = f" (the last {self._row} saves failed)" if self._row > 1 else ""
            raise StorageError(f"{failed} and run the same command again{again}") from failed
        if failed is not None:
            raise failed

    def close(self, limit_s: float = 60.0) -> None:
        """At the end, also after an error of something else: give the last save time to end; its own error is told."""
        self._join(limit_s)
        if self._failed is not None and not self._told:
            log.error(str(self._failed))

    def _join(self, limit_s: float | None = None) -> None:
        thread, self._writing = self._writing, None
        if thread is not None:
            thread.join(limit_s)

    def load_newest(
        self, like: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(state, manifest) of the newest checkpoint that is whole, or None when there is none at all.

        like: sharded tensors by their names in the state ("task/backbone.stem.0.weight", or "optimizer/state/0" for all of
        a parameter's that have its shape); these are read into the same shards, all others as a whole, to the CPU. The same
        on all ranks. Raises StorageError when there are some and none is whole.
        """
        steps = json.loads(share_text(json.dumps(steps_in(self.folder)), self.world.group))
        for step in reversed(steps):
            path = self.folder / _name(step)
            try:
                manifest = self._verified(path)
                return self._read(path, manifest, like or {}), manifest
            except StorageError as error:
                log.warning(f"checkpoint {path.name} is passed over: {error}")
        if steps:
            raise StorageError(f"none of {len(steps)} checkpoints in {self.folder} is whole; restore one or start anew")
        return None

    # saving

    def _of_this_rank(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What this rank brings: its shards, its share of what every rank holds whole, and the running statistics only as
        the first of its group. The rest need not be copied."""
        own, found = self._group_of_statistics(), {}
        leads = self.world.rank % (self.world.size // self.statistics) == 0
        owners = self._shared_out(
            {n: t for n, t in tensors.items() if not _is_statistic(n) and not isinstance(t, DTensor)}
        )
        for name, tensor in tensors.items():
            if _is_statistic(name):
                if leads:
                    found[_set(own, name)] = tensor.detach().contiguous()
            elif owners.get(name, self.world.rank) == self.world.rank:
                found[name] = tensor.detach().contiguous()
        return found

    def _shared_out(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Which rank writes a tensor that all hold alike: the largest first, to the rank that has least by then. The same
        on all ranks, from names and sizes alone."""
        load, owners = [0] * self.world.size, {}
        for name in sorted(tensors, key=lambda n: (-tensors[n].nbytes, n)):
            owners[name] = load.index(min(load))
            load[owners[name]] += tensors[name].nbytes
        return owners

    def _group_of_statistics(self) -> int:
        return self.world.rank * self.statistics // self.world.size

    def _try(self, *save: Any) -> None:
        """The thread's body; what is no failure of storage waits for the next call, too."""
        waited.aside()
        try:
            with _stream_of_its_own(self.world.device):
                self._write_once(*save, self.world.side)
        except BaseException as error:  # CheckpointException is none of Exception
            self._failed = error

    def _write_once(self, *save: Any) -> None:
        """Keeps what storage refuses."""
        try:
            self._write(*save)
            self._row = 0
        except StorageError as error:
            self._row += 1
            self._failed = error

    def _write(
        self,
        step: int,
        tensors: dict[str, torch.Tensor],
        plain: Any,
        facts: Mapping[str, Any],
        group: Group | None,
    ) -> None:
        final = self.folder / _name(step)
        temporary: Path | None = None
        try:
            temporary = self.folder / self._on_first(lambda: _made(final), group)
            writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
            self._on_first(lambda: write_json(temporary / STATE, plain), group)
            files = self._described(temporary, group)
            manifest = {"format": FORMAT, "step": step, "ranks": self.world.size, "statistics": self.statistics}
            self._on_first(lambda: self._publish(temporary, final, {**manifest, **facts, "files": files}), group)
        except (OSError, CheckpointException) as error:
            if self.world.rank == 0 and temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            raise StorageError(
                f"checkpoint of step {step} could not be written to {self.folder} ({_free(self.folder)}): "
                f"{_cause(error)}; older checkpoints are intact, make room"
            ) from error

    def _described(self, folder: Path, group: Group | None) -> dict[str, Any]:
        """Sizes and hashes, read back from the disk, each rank its share of the files, all of which are there."""

        def mine() -> dict[str, Any]:
            paths = sorted(folder.iterdir())[self.world.rank :: self.world.size]
            return {path.name: described(path) for path in paths}

        found: dict[str, Any] = {}
        for part in gather_text(_told(mine), group):
            found |= _heard(part) or {}
        return dict(sorted(found.items()))

    def _publish(self, temporary: Path, final: Path, facts: dict[str, Any]) -> None:
        """The first rank's part: from here on it is a checkpoint, and older ones may go."""
        kept = self.keep.for_ever(self.folder, facts["step"], time.time())
        write_json(temporary / MANIFEST, sealed({**facts, "saved_at": time.time(), "kept": kept}))
        flush_folder(temporary)
        if final.exists():  # a broken one that was passed over, or the same step again
            os.rename(final, final.with_name(f"{final.name}.old.writing"))
        os.rename(temporary, final)
        point(self.folder / "last", final.name)
        flush_folder(self.folder)
        for path in [*passed(self.folder, facts["step"], self.keep.newest), *self.folder.glob("*.old.writing")]:
            shutil.rmtree(path, ignore_errors=True)

    def _on_first(self, action: Callable[[], Any], group: Group | None) -> Any:
        """Do it on the first rank while the others wait, and give all its answer. Raises OSError on all when it fails."""
        return _heard(share_text(_told(action) if self.world.rank == 0 else "", group))

    # loading

    def _verified(self, path: Path) -> dict[str, Any]:
        """The manifest, once all files are found to be what it says. Raises StorageError, on every rank the same."""

        manifest: dict[str, Any] = {}

        def problem() -> str:
            nonlocal manifest
            try:
                manifest = read_manifest(path)
            except StorageError as error:
                return str(error)
            if STATE not in manifest["files"]:
                return f"{MANIFEST} names no {STATE}"
            for name in sorted(manifest["files"])[self.world.rank :: self.world.size]:
                file = path / name
                if not file.is_file() or described(file) != manifest["files"][name]:
                    return f"{name} is missing or differs from its checksum"
            return ""

        problems = [p for p in gather_text(problem(), self.world.group) if p]
        if problems:
            raise StorageError(problems[0])
        return manifest

    def _read(self, path: Path, manifest: Mapping[str, Any], like: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        reader, sets = HuggingFaceStorageReader(str(path)), range(manifest["statistics"])
        plain: Any = None
        targets: dict[str, torch.Tensor] = {}

        def problem() -> str:
            nonlocal plain
            try:
                plain = read_json(path / STATE)
                saved: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
                for name in names(plain):
                    for key in [_set(s, name) for s in sets] if _is_statistic(name) else [name]:
                        targets[key] = _target(saved[key].size, saved[key].properties.dtype, like, key)
            except StorageError as error:
                return str(error)
            except UNREADABLE as error:
                return f"its tensors cannot be read: {_cause(error)}"
            return ""

        # agreed: a rank that failed alone would go on to another checkpoint while the others wait for it
        if problems := [p for p in gather_text(problem(), self.world.group) if p]:
            raise StorageError(problems[0])
        try:
            dcp.load(targets, storage_reader=reader, process_group=self.world.group, no_dist=self.world.group is None)
        except UNREADABLE as error:
            raise StorageError(f"its tensors cannot be read: {_cause(error)}") from error

        def tensor(name: str) -> torch.Tensor:
            if not _is_statistic(name):
                return targets[name]
            if len(sets) == self.statistics:
                return targets[_set(self._group_of_statistics(), name)]
            return mean_of_sets(torch.stack([targets[_set(s, name)] for s in sets]))

        return unflatten(plain, tensor)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB free"
    except OSError as error:  # it has gone away
        return f"which does not answer: {error.strerror}"


def _made(final: Path) -> str:
    """The name of a folder, new and empty, to write in."""
    temporary = final.with_name(f"{final.name}.{secrets.token_hex(4)}.writing")
    temporary.mkdir()
    return temporary.name


def _is_statistic(name: str) -> bool:
    return name.startswith("task/") and name.endswith(STATISTICS)


def _set(index: int, name: str) -> str:
    return f"statistics-{index:05d}/{name}"


@contextmanager
def _stream_of_its_own(device: torch.device) -> Iterator[None]:
    """For a thread, which starts on the first GPU and on the stream that training there uses: torch's writer waits for
    the current stream at every tensor, also those that lie on the host, and so for the step under way."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the host, in memory of their own: what the next step overwrites must not be what is being written.

    These copies have ended when this returns, so another stream may read them.
    """
    if any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        stager = DefaultStager(StagingOptions(False, False, False, False))
        try:
            return stager.stage(dict(tensors))  # type: ignore[return-value]  # a Future only with async staging
        finally:
            stager.close()
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}


def _target(size: torch.Size, dtype: torch.dtype, like: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """Where a saved tensor is read to. Raises StorageError for a sharded one of another shape or dtype."""
    shard = like.get(name)
    if shard is None:
        owner = like.get(name.rpartition("/")[0])
        shard = owner if owner is not None and owner.shape == size else None
        return torch.empty(size, dtype=dtype) if shard is None else torch.empty_like(shard, dtype=dtype)
    if shard.shape != size or shard.dtype != dtype:
        raise StorageError(f"{name} is {list(size)} {dtype}, this model's {list(shard.shape)} {shard.dtype}")
    return torch.empty_like(shard)


def _told(action: Callable[[], Any]) -> str:
    """The outcome of an action as text that can travel."""
    try:
        return json.dumps({"value": action()})
    except OSError as error:
        return json.dumps({"error": str(error)})


def _heard(text: str) -> Any:
    """The value of an outcome. Raises OSError when it failed."""
    outcome = json.loads(text)
    if "error" in outcome:
        raise OSError(outcome["error"])
    return outcome["value"]


def _cause(error: BaseException) -> str:
    """One line: what failed, and on which rank."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {_cause(cause)}"
    text = str(error)
    with suppress(IndexError):
        text = text.strip().splitlines()[-1]
    return f"{type(error).__name__}: {text}" if not isinstance(error, OSError) else text
