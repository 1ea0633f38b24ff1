"""One checkpoint in its folder: all ranks write it together, it is whole and checked or does not exist, and any read it.

A save goes into a folder of a fresh name; every rank writes its share of the tensors as safetensors, through
torch.distributed.checkpoint; plain values go to `state.json`; every file is flushed and hashed; `manifest.json`, with the
hashes, is written last; the folder is renamed to `step-00001000`; `last` points to it. Killed anywhere, the older
checkpoints are untouched and the half-made folder is known by its name. Before a checkpoint is read its hashes are
verified, each rank its share of the files. Nothing is pickled, so nothing that is read can run.

Surprising here:

- Running statistics of batch norm differ between the groups of ranks that share them. The first rank of each group
  saves them; whoever goes on with as many groups finds its own, with another number their mean.
- Sharded tensors (DTensor) are saved as they lie and read as they are needed, so the number of ranks may change.

When a run saves, in the background or not, and what it does when that fails is `saving`'s.
"""

import json
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from seer.core.errors import StorageError
from seer.engine.manifest import (
    CHECKPOINT_FORMAT,
    CHECKPOINT_MANIFEST,
    file_digest,
    flush_folder,
    read_json,
    read_manifest,
    replace_symlink,
    with_checksum,
    write_json,
)
from seer.engine.retention import BEST, Keep, best_in, expired
from seer.engine.state_tree import flatten, names, unflatten
from seer.parallel.batchnorm import STATISTICS, mean_of_sets
from seer.parallel.collectives import Group, broadcast_text, gather_text
from seer.parallel.world import World

STATE = "state.json"
UNREADABLE = (OSError, CheckpointException, SafetensorError, KeyError, TypeError)
# one process saves without a process group, as it is told to
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class CheckpointFiles:
    """Writes and reads the checkpoints in a folder, one at a time. All ranks call `write`, `verified`, `read`
    and `on_first` together, and the outcome is the same on all.

    keep: which stay when a newer one is whole. statistics: how many groups of ranks share batch statistics, each with a set
    of its own. broken: steps that were found damaged, which push out no whole one.
    """

    def __init__(self, folder: Path, world: World, keep: Keep, statistics: int):
        self.folder, self.world, self.keep, self.statistics = folder, world, keep, statistics
        self.broken: set[int] = set()
        if world.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for half_made in folder.glob("*.writing"):
                if half_made.is_symlink():  # killed while `last` was moved
                    half_made.unlink()
                else:
                    shutil.rmtree(half_made)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    # writing

    def local_tensors(self, state: Mapping[str, Any], *, copied: bool) -> tuple[dict[str, torch.Tensor], Any]:
        """Returns what this rank brings to a checkpoint of a state: the tensors that it writes, and all plain
        values with names in the tensors' places.

        copied: onto the host, into memory of their own. Raises TypeError for a value of another kind.
        """
        tensors, plain = flatten(state)
        mine = self._of_this_rank(tensors)
        return (_copied(mine) if copied else mine), plain

    def write(
        self,
        step: int,
        tensors: dict[str, torch.Tensor],
        plain: Any,
        facts: Mapping[str, Any],
        group: Group | None,
    ) -> None:
        """Writes one checkpoint. tensors, plain: what `local_tensors` gave. facts: of the run, for the manifest. group:
        of all ranks, None of one process.

        Raises StorageError, on all ranks, when it cannot be written; older checkpoints are untouched then.
        """
        final = self.path(step)
        temporary: Path | None = None
        try:
            temporary = self.folder / self.on_first(lambda: _made(final), group)
            writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
            self.on_first(lambda: write_json(temporary / STATE, plain), group)
            files = self._described(temporary, group)
            manifest = {
                "format": CHECKPOINT_FORMAT,
                "step": step,
                "ranks": self.world.size,
                "statistics": self.statistics,
            }
            self.on_first(lambda: self._publish(temporary, final, {**manifest, **facts, "files": files}), group)
        except (OSError, CheckpointException) as error:
            if self.world.rank == 0 and temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            raise StorageError(
                f"checkpoint of step {step} could not be written to {self.folder} ({_free(self.folder)}): "
                f"{_cause(error)}; older checkpoints are intact, make room"
            ) from error

    def _described(self, folder: Path, group: Group | None) -> dict[str, Any]:
        """Returns sizes and hashes of all files, read back from the disk, each rank its share."""

        def mine() -> dict[str, Any]:
            paths = sorted(folder.iterdir())[self.world.rank :: self.world.size]
            return {path.name: file_digest(path) for path in paths}

        found: dict[str, Any] = {}
        for part in gather_text(_outcome(mine), group):
            found |= _heard(part) or {}
        return dict(sorted(found.items()))

    def _publish(self, temporary: Path, final: Path, facts: dict[str, Any]) -> None:
        """Makes a checkpoint of the folder, on the first rank: from here on it counts, and older ones may go."""
        kept = self.keep.for_ever(self.folder, facts["step"], time.time())
        write_json(temporary / CHECKPOINT_MANIFEST, with_checksum({**facts, "saved_at": time.time(), "kept": kept}))
        flush_folder(temporary)
        if final.exists():  # a broken one that was passed over, or the same step again
            os.rename(final, final.with_name(f"{final.name}.old.writing"))
        os.rename(temporary, final)
        replace_symlink(self.folder / "last", final.name)
        flush_folder(self.folder)
        self.broken.discard(facts["step"])
        self.name_best(facts.get("best"), facts["step"])
        may_go = expired(self.folder, facts["step"], self.keep.newest, self.broken)
        for path in [*may_go, *self.folder.glob("*.old.writing")]:
            shutil.rmtree(path, ignore_errors=True)

    def name_best(self, best: Mapping[str, Any] | None, step: int) -> None:
        """Points `best` to the checkpoint that one of `step`, written or gone on from, says is the best so far.

        A kill may fall between that checkpoint and the link: each save and each start sees to it again. A link ahead of `step` is
        of steps that are no part of the run any more. Called by the first rank alone.
        """
        link, now = self.folder / BEST, best_in(self.folder)
        if best and best["step"] != now and self.path(best["step"]).is_dir():
            replace_symlink(link, self.path(best["step"]).name)
            flush_folder(self.folder)
        elif link.is_symlink() and (now is None or now > step):
            link.unlink()

    def _of_this_rank(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the tensors that this rank writes: its shards, its part of what every rank holds whole, and
        the running statistics only if it is the first of its group. The rest need not be copied."""
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
        """Returns the rank that writes each tensor which all hold alike: the largest first, to the rank with
        the least so far. The same on all ranks, from names and sizes alone."""
        load, owners = [0] * self.world.size, {}
        for name in sorted(tensors, key=lambda n: (-tensors[n].nbytes, n)):
            owners[name] = load.index(min(load))
            load[owners[name]] += tensors[name].nbytes
        return owners

    def _group_of_statistics(self) -> int:
        return self.world.rank * self.statistics // self.world.size

    def on_first(self, action: Callable[[], Any], group: Group | None) -> Any:
        """Runs an action on the first rank while the others wait, and gives all its answer. Raises OSError on
        all when it fails."""
        return _heard(broadcast_text(_outcome(action) if self.world.rank == 0 else "", group))

    # reading

    def verified(self, step: int) -> dict[str, Any]:
        """Returns the manifest, once all files are found to be what it says. Raises StorageError, on every rank
        the same."""

        path = self.path(step)
        manifest: dict[str, Any] = {}

        def problem() -> str:
            nonlocal manifest
            try:
                manifest = read_manifest(path)
            except StorageError as error:
                return str(error)
            return _damage(path, manifest, self.world.rank, self.world.size)

        problems = [p for p in gather_text(problem(), self.world.group) if p]
        if problems:
            raise StorageError(problems[0])
        return manifest

    def read(self, manifest: Mapping[str, Any], like: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Returns the state that was saved. manifest: what `verified` gave. like: see `Checkpoints.load_newest`.

        Raises StorageError, on every rank, for what cannot be read or does not fit.
        """
        path = self.path(manifest["step"])
        reader, sets = HuggingFaceStorageReader(str(path)), range(manifest["statistics"])
        plain: Any = None
        targets: dict[str, torch.Tensor] = {}

        def problem() -> str:
            nonlocal plain
            try:
                plain = read_json(path / STATE)
                targets.update(_targets(names(plain), sets, reader, like))
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
            return _mean(targets, name, sets)

        return unflatten(plain, tensor)


def read_part(path: Path, prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Returns the tensors of a checkpoint whose names begin so, without the prefix, whole and on the CPU, and its manifest.

    For whoever only looks at a run, which may be going: this process alone, without a lock, and nothing is written. Running
    statistics of several groups come as their mean. path: the folder. Raises StorageError when it is not whole, does not
    have its name, or is deleted meanwhile.
    """
    manifest = read_manifest(path)
    if damage := _damage(path, manifest):
        raise StorageError(damage)
    sets = range(manifest["statistics"])
    try:
        reader = _LooksOnce(str(path))
        names_wanted = [name for name in names(read_json(path / STATE)) if name.startswith(prefix)]
        targets = _targets(names_wanted, sets, reader, {})
        dcp.load(targets, storage_reader=reader, no_dist=True)
    except UNREADABLE as error:
        raise StorageError(f"its tensors cannot be read: {_cause(error)}") from error
    found = {name: _mean(targets, name, sets) if _is_statistic(name) else targets[name] for name in names_wanted}
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}, manifest


class _LooksOnce(HuggingFaceStorageReader):
    """Keeps what the headers of the files say: torch asks again, and of a folder that is gone by then it prints a traceback."""

    def read_metadata(self) -> Metadata:
        if not hasattr(self, "_known"):
            self._known = super().read_metadata()
        return self._known


def _damage(path: Path, manifest: Mapping[str, Any], rank: int = 0, ranks: int = 1) -> str:
    """Returns what is wrong with this rank's share of the files; "" when they are what the manifest says."""
    if STATE not in manifest["files"]:
        return f"{CHECKPOINT_MANIFEST} names no {STATE}"
    for name in sorted(manifest["files"])[rank::ranks]:
        file = path / name
        try:
            if not file.is_file() or file_digest(file) != manifest["files"][name]:
                return f"{name} is missing or differs from its checksum"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return ""


def _targets(
    names_wanted: Iterable[str], sets: range, reader: HuggingFaceStorageReader, like: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Returns empty tensors into which those of a state are read, by their names in the files, of every group's
    statistics too."""
    saved: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    keys = [key for name in names_wanted for key in ([_set(s, name) for s in sets] if _is_statistic(name) else [name])]
    return {key: _target(saved[key].size, saved[key].properties.dtype, like, key) for key in keys}


def _mean(tensors: Mapping[str, torch.Tensor], name: str, sets: range) -> torch.Tensor:
    """Returns one running statistic for all groups: their mean, or that of a single group, bit by bit."""
    each = [tensors[_set(s, name)] for s in sets]
    return each[0] if len(each) == 1 else mean_of_sets(torch.stack(each))


def drop_tracebacks(error: BaseException) -> None:
    """Drops the tracebacks of an error and of its causes, whose frames keep a copy of the state alive up to the
    next save. Those that torch's CheckpointException holds, one a rank, are causes too."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        todo += [one.__cause__, one.__context__]
        if isinstance(one, CheckpointException):
            todo += [cause for cause, _ in one.failures.values()]


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB free"
    except OSError as error:  # it has gone away
        return f"which does not answer: {error.strerror}"


def _made(final: Path) -> str:
    """Makes a new, empty folder to write in and returns its name."""
    temporary = final.with_name(f"{final.name}.{secrets.token_hex(4)}.writing")
    temporary.mkdir()
    return temporary.name


def _is_statistic(name: str) -> bool:
    return name.startswith("task/") and name.endswith(STATISTICS)


def _set(index: int, name: str) -> str:
    return f"statistics-{index:05d}/{name}"


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns copies on the host, in memory of their own: what the next step overwrites must not be what is
    being written.

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
    """Returns an empty tensor for a saved one: a shard where `like` has one, else whole and on the CPU. Raises
    StorageError for a sharded one of another shape or dtype."""
    shard = like.get(name)
    if shard is None:
        owner = like.get(name.rpartition("/")[0])
        shard = owner if owner is not None and owner.shape == size else None
        return torch.empty(size, dtype=dtype) if shard is None else torch.empty_like(shard, dtype=dtype)
    if shard.shape != size or shard.dtype != dtype:
        raise StorageError(f"{name} is {list(size)} {dtype}, this model's {list(shard.shape)} {shard.dtype}")
    return torch.empty_like(shard)


def _outcome(action: Callable[[], Any]) -> str:
    """Returns the outcome of an action as text that can travel."""
    try:
        return json.dumps({"value": action()})
    except OSError as error:
        return json.dumps({"error": str(error)})


def _heard(text: str) -> Any:
    """Returns the value of an outcome. Raises OSError when the action failed."""
    outcome = json.loads(text)
    if "error" in outcome:
        raise OSError(outcome["error"])
    return outcome["value"]


def _cause(error: BaseException) -> str:
    """Returns one line that says what failed, and on which rank."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {_cause(cause)}"
    text = str(error)
    with suppress(IndexError):
        text = text.strip().splitlines()[-1]
    return f"{type(error).__name__}: {text}" if not isinstance(error, OSError) else text
