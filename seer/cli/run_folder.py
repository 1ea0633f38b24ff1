"""The run folder: whose it is, and what the files in it say.

RUN/config.yaml  train.log  metrics.jsonl  tensorboard/  skipped.jsonl  result.json  checkpoints/  bundle/
"""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

import seer
from seer.cli.config import flat
from seer.core.errors import LostPeer, RequestError, StorageError
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
# Keys that may differ when a run goes on: how it is watched, how fast it goes, where its data lies; never what it learns.
# data.exclude moves no picture but those it names (`data.ledger`).
FREE = (
    *("output", "every.", "log.", "eval.", "parallel.", "augment.device"),
    *(
        "data.threads",
        "data.prefetch",
        "data.prefetch_gb",
        "data.source",
        "data.exclude",
        "data.max_bad",
        "data.check_crc",
    ),
)
BEFORE_TRAINING = (CONFIG, "train.log", "result.json", LOCK)  # what a run that was refused leaves behind
CHECK = 10  # steps between two looks at the limits of the ledger where ranks have to talk for it
NAMED = 20  # pictures named in the log for each kind of reason


@contextmanager
def claim(folder: Path, wanted: Mapping[str, Any], world: World) -> Iterator[None]:
    """Make the folder ours, or find that it is, and keep other jobs out. Raises RequestError when it belongs to another run,
    to something else, or to a job that runs now.

    A run that ended before it had pictures, metrics or checkpoints holds nothing to lose: whoever corrects a wrong word
    goes on in the same folder.
    """
    kept = folder / CONFIG
    if kept.exists():
        before = flat(OmegaConf.to_container(OmegaConf.load(kept)))
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
    elif folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise RequestError(f"output={folder} is not empty and holds no run; give another output=")
    world.barrier()
    with ExitStack() as held:
        problem = ""
        if world.rank == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(RunLock(folder))
                temporary = folder / f".{CONFIG}.writing"
                OmegaConf.save(OmegaConf.create(dict(wanted)), temporary)
                temporary.replace(kept)
                keep_copy(folder / "train.log")
            except RequestError as error:
                problem = str(error)
            except OSError as error:
                raise StorageError(f"output={folder} cannot be written: {error.strerror}") from error
        if problem := share_text(problem, world.group):
            raise RequestError(problem)
        yield


def same_everywhere(wanted: Mapping[str, Any], data: str, world: World) -> None:
    """Raises RequestError when ranks were started with other words, code, libraries or pictures."""
    code = hashlib.sha256()
    for path in sorted(Path(seer.__file__).parent.rglob("*.py")):
        code.update(path.read_bytes())
    libraries = {"torch": torch.__version__, "Python": platform.python_version()}
    words = {key: str(value) for key, value in flat(dict(wanted)).items()}
    same_request({**words, "the code": code.hexdigest()[:12], **libraries, "the data": data}, world.group)


def ledger(
    folder: Path, world: World, first_step: int, limits: Ledger, batch: int
) -> Callable[[int, Sequence[Skipped]], tuple[int, Mapping[str, int]]]:
    """A function that appends what a step skipped to `skipped.jsonl` and returns the count so far (of this rank), and the counts
    by reason (of all ranks, as of the last look at the limits).

    Ranks above 0 keep files of their own, `skipped-00001.jsonl`. A run that goes on first gathers them into
    `skipped.jsonl`, without what was written behind its checkpoint. The function raises BadDataError (limits).
    """
    if world.rank == 0:
        _gather(folder, first_step)
    world.barrier()
    path = folder / ("skipped.jsonl" if world.rank == 0 else f"skipped-{world.rank:05d}.jsonl")
    limits.restore(_lines(folder / "skipped.jsonl"), first_step, batch, counts_shards=world.rank == 0)
    world.barrier()  # rank 0 appends to what the others were reading
    count = sum(limits.by_kind.values()) if world.rank == 0 else 0
    named: Counter[str] = Counter()

    def keep(step: int, skipped: Sequence[Skipped]) -> tuple[int, Mapping[str, int]]:
        nonlocal count
        if skipped:
            with open(path, "a", encoding="utf-8") as file:
                for one in skipped:
                    file.write(json.dumps({"step": step, **asdict(one)}) + "\n")
                    named[one.kind] += 1
                    if named[one.kind] <= NAMED:
                        more = "; more of this kind are in skipped.jsonl alone" if named[one.kind] == NAMED else ""
                        log.warning(f"skipped {shown(one.member)} in {one.shard}: {shown(one.reason)}{more}")
            count += len(skipped)
        limits.add(batch, skipped)
        if world.size == 1 or (step + 1) % CHECK == 0:
            limits.check()
        return count, limits.by_kind

    return keep


def over_ranks(world: World) -> Callable[[np.ndarray], np.ndarray]:
    """What a Ledger sums its counts with."""

    def total(counts: np.ndarray) -> np.ndarray:
        return all_reduce_sum(torch.from_numpy(counts).to(world.device), world.group).cpu().numpy()

    return total


def _gather(folder: Path, first_step: int) -> None:
    """All ranks' lines before first_step into skipped.jsonl, line by line: there may be millions."""
    temporary = folder / ".skipped.jsonl.writing"
    parts = sorted(folder.glob("skipped*.jsonl"))
    with open(temporary, "w", encoding="utf-8") as file:
        for part in parts:
            file.writelines(json.dumps(row) + "\n" for row in _lines(part) if row["step"] < first_step)
    temporary.replace(folder / "skipped.jsonl")
    for part in parts:
        if part.name != "skipped.jsonl":
            part.unlink()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a ledger; a last line cut short by a kill is left out."""
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
    """What `metrics.jsonl` says in the end: last values, and for kNN also the first, of the untrained backbone."""
    rows = read_rows(folder / "metrics.jsonl")
    trained = [row for row in rows if "loss" in row]
    probed = [row["knn_top1"] for row in rows if "knn_top1" in row]
    values: dict[str, Any] = {}
    if trained:
        rates = sorted(row["images_per_s"] for row in trained)
        values = {"loss": trained[-1]["loss"], "images_per_s": rates[len(rates) // 2]}
        values |= {"images": int(trained[-1]["images"]), "skipped": int(trained[-1]["skipped"])}
    if probed:
        values |= {"knn_top1": probed[-1], "knn_top1_untrained": probed[0], "knn_curve": probed}
    for row in rows:
        values |= {k: v for k, v in row.items() if k in ("knn_pixels", "knn_colours")}
    reasons = Counter(row["kind"] for part in folder.glob("skipped*.jsonl") for row in _lines(part))
    values["skipped_by_reason"] = dict(reasons.most_common())
    return values
