"""The run folder: whose it is, and what the files in it say.

RUN/config.yaml  train.log  metrics.jsonl  tensorboard/  skipped.jsonl  result.json  checkpoints/  bundle/

Surprising: `skipped.jsonl` is both an account of the run and a list that its user may give as `data.exclude`. So a run that
goes back to a checkpoint takes no line out of it; those that count no more are marked.
"""

import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from seer.core.config import flat
from seer.core.errors import LostPeer, RequestError, StorageError
from seer.core.lines import Lines
from seer.core.log import keep_copy, log
from seer.core.records import Skipped
from seer.data.ledger import Ledger, shown
from seer.engine.lock import NAME as LOCK
from seer.engine.lock import RunLock
from seer.engine.metrics import read_rows
from seer.engine.retention import steps_in
from seer.parallel.agreement import same_request
from seer.parallel.collectives import all_reduce_sum, share_text
from seer.parallel.world import World

CONFIG = "config.yaml"
SKIPPED = "skipped.jsonl"
# Keys that may differ when a run goes on: how it is watched, how fast it goes, where its data lies; never what it learns.
# data.exclude moves no picture but those it names (`data.ledger`); data.lanes is held against the checkpoint's plan.
FREE = (
    *("output", "every.", "log.", "eval.", "parallel.", "augment.device"),
    *(
        "data.lanes",
        "data.threads",
        "data.prefetch",
        "data.prefetch_gb",
        "data.source",
        "data.exclude",
        "data.max_bad",
        "data.check_crc",
    ),
)
MAKING = (LOCK, f".{CONFIG}.writing")  # what a run leaves behind that was killed before its config was written
BEFORE_TRAINING = (*MAKING, CONFIG, "train.log", "result.json", ".result.json.writing")  # and one that was refused
CHECK = 10  # steps between two looks at the limits of the ledger where ranks have to talk for it
NAMED = 20  # pictures named in the log for each kind of reason


@contextmanager
def claim(folder: Path, wanted: Mapping[str, Any], world: World) -> Iterator[None]:
    """Make the folder ours, or find that it is, and keep other jobs out. Raises RequestError when it belongs to another run,
    to something else, or to a job that runs now.

    A run that ended before it had pictures, metrics or checkpoints holds nothing to lose: whoever corrects a wrong word
    goes on in the same folder. What ranks skipped is gathered at both ends.
    """
    kept = folder / CONFIG
    if kept.exists():
        before = flat(read_config(folder))
        now = flat(dict(wanted))
        differ = [k for k in {**before, **now} if before.get(k) != now.get(k) and not k.startswith(FREE)]
        if differ and any(path.name not in BEFORE_TRAINING for path in folder.iterdir()):
            changes = ", ".join(f"{k}: {before.get(k)} -> {now.get(k)}" for k in differ[:5])
            raise RequestError(
                f"output={folder} belongs to another run ({changes}); give another output= or the same words"
            )
        for key in ("data.exclude", "data.max_bad"):
            if before.get(key) != now.get(key):
                log.info(f"{key}: {before.get(key)} before, {now.get(key)} from here on")
    elif folder.exists() and any(path.name not in MAKING for path in folder.iterdir()):
        raise RequestError(f"output={folder} is not empty and holds no run; give another output=")
    world.barrier()
    with ExitStack() as held:
        problem = ""
        if world.rank == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(RunLock(folder))
                temporary = folder / f".{CONFIG}.writing"
                temporary.write_text(
                    yaml.safe_dump(dict(wanted), sort_keys=False, allow_unicode=True), encoding="utf-8"
                )
                temporary.replace(kept)
                keep_copy(folder / "train.log")
                gather(folder)
            except RequestError as error:
                problem = str(error)
            except OSError as error:
                raise StorageError(f"output={folder} cannot be written: {error.strerror}") from error
        if problem := share_text(problem, world.group):
            raise RequestError(problem)
        try:
            yield
        finally:
            if world.rank == 0:
                with suppress(OSError):  # what ended the run is told; the next start gathers
                    gather(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the config of the run in this folder, as plain values. Raises OSError, and ValueError for what is none."""
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} holds no keys")
    return {str(key): value for key, value in config.items()}


def begun_with(folder: Path, key: str) -> Any:
    """What the run in this folder has for a key; None where there is no run."""
    try:
        return flat(read_config(folder)).get(key)
    except FileNotFoundError:
        return None


def same_everywhere(wanted: Mapping[str, Any], data: str, world: World) -> None:
    """Raises RequestError when ranks were started with other words, code, libraries or pictures."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(path.read_bytes())
    libraries = {"torch": torch.__version__, "Python": platform.python_version()}
    words = {key: str(value) for key, value in flat(dict(wanted)).items()}
    same_request({**words, "the code": code.hexdigest()[:12], **libraries, "the data": data}, world.group)


class SkippedLines:
    """Appends what a step skipped to `skipped.jsonl`; a call returns the count so far (of this rank), and the counts by reason
    (of all ranks, as of the last look at the limits), or raises BadDataError (limits).

    Ranks above 0 keep files of their own, `skipped-00001.jsonl`, which `gather` joins to `skipped.jsonl`. excluded(shard, row):
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
            for row in _counted(folder / SKIPPED):
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
        """Of a step that did not come about."""
        if not skipped:
            return
        self._lines.append("".join(json.dumps({"step": self._next, **asdict(one)}) + "\n" for one in skipped))
        for one in skipped:
            self._named[one.kind] += 1
            if self._named[one.kind] <= NAMED:
                more = "; more of this kind are in skipped.jsonl alone" if self._named[one.kind] == NAMED else ""
                log.warning(f"skipped {shown(one.member)} in {one.shard}: {shown(one.reason)}{more}")

    def close(self) -> None:
        """A last try to write what storage has not taken."""
        self._lines.close()


def over_ranks(world: World) -> Callable[[np.ndarray], np.ndarray]:
    """What a Ledger sums its counts with."""

    def total(counts: np.ndarray) -> np.ndarray:
        return all_reduce_sum(torch.from_numpy(counts).to(world.device), world.group).cpu().numpy()

    return total


def lists(exclude: str | Sequence[str] | None) -> list[str]:
    """The files of `data.exclude`: beside the list of a run that was killed there may be those of its other ranks."""
    files = [exclude] if isinstance(exclude, str) else [*(exclude or [])]
    parts = [str(part) for file in files if Path(file).name == SKIPPED for part in _parts(Path(file).parent)]
    return list(dict.fromkeys([*files, *parts]))


def gather(folder: Path) -> None:
    """All ranks' lines into skipped.jsonl, a last line that a kill cut short left out: by rank 0, before the list is read and
    at every end.

    Kills of this, too, lose and double no line: what `.skipped.jsonl.whole` holds stands in no other file any more.
    """
    path, whole = folder / SKIPPED, folder / f".{SKIPPED}.whole"
    parts = _parts(folder)
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


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("skipped-[0-9]*.jsonl"))


def _cut(path: Path) -> bool:
    """Whether the last line has no end."""
    if not path.exists() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _undo(folder: Path, first_step: int) -> None:
    """A run goes on at first_step: lines of steps behind it stay, since the list may be in use as data.exclude and they would
    not be written again, but are marked as undone, to count no more. Each of these pictures keeps one line, which goes when
    the picture is skipped again. Line by line: there may be millions."""
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


def _counted(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a ledger that count: those of steps that are part of the run."""
    return (row for row in _lines(path) if "undone" not in row)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a ledger; a last line cut short by a kill is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def kept(folder: Path, lost: LostPeer) -> LostPeer:
    """The same with what is left of the run: exit 75 where running again goes on."""
    if lost.exit_status != 75:
        return lost
    steps = steps_in(folder / "checkpoints")
    if steps:
        words = f"step {steps[-1]} is saved: run the same command again to go on from it"
        return LostPeer(f"{lost}; {words}", tells=lost.tells)
    return LostPeer(f"{lost}; nothing was saved yet, the run starts anew", 70, tells=lost.tells)


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that is done, None for any other."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.get("exit") == 0 else None


def summary(folder: Path) -> dict[str, Any]:
    """What `metrics.jsonl` says in the end (last values, and for kNN also the first, of the untrained backbone), and the counts
    of `skipped.jsonl`."""
    rows = read_rows(folder / "metrics.jsonl")
    trained = [row for row in rows if "loss" in row]
    probed = [row["knn_top1"] for row in rows if "knn_top1" in row]
    values: dict[str, Any] = {}
    if trained:
        rates = sorted(row["images_per_s"] for row in trained)
        values = {"loss": trained[-1]["loss"], "images_per_s": rates[len(rates) // 2]}
    if probed:
        values |= {"knn_top1": probed[-1], "knn_top1_untrained": probed[0], "knn_curve": probed}
    for row in rows:
        values |= {k: v for k, v in row.items() if k in ("knn_pixels", "knn_colours")}
    parts = (folder / SKIPPED, *_parts(folder))
    reasons = Counter(row["kind"] for part in parts for row in _counted(part))
    values |= {"skipped": reasons.total(), "skipped_by_reason": dict(reasons.most_common())}
    return values
