"""The run folder: whose it is, and what the files in it say.

RUN/config.yaml  train.log  metrics.jsonl  tensorboard/  skipped.jsonl  result.json  checkpoints/  bundle/
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from seer.cli.config import flat
from seer.core.errors import RequestError, StorageError
from seer.core.log import keep_copy
from seer.core.records import Skipped
from seer.engine.metrics import read_rows
from seer.parallel.world import World

CONFIG = "config.yaml"
# Keys that may differ when a run goes on: how it is watched, how fast it goes, where its data lies; never what it learns.
FREE = ("output", "every.", "log.", "eval.", "parallel.", "data.threads", "data.prefetch", "data.source")


def claim(folder: Path, wanted: Mapping[str, Any], world: World) -> None:
    """Make the folder ours, or find that it is. Raises RequestError when it belongs to another run or to something else."""
    kept = folder / CONFIG
    if kept.exists():
        before = flat(OmegaConf.to_container(OmegaConf.load(kept)))
        now = flat(dict(wanted))
        differ = [k for k in {**before, **now} if before.get(k) != now.get(k) and not k.startswith(FREE)]
        if differ:
            changes = ", ".join(f"{k}: {before.get(k)} -> {now.get(k)}" for k in differ[:5])
            raise RequestError(
                f"output={folder} belongs to another run ({changes}); give another output= or the same words"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise RequestError(f"output={folder} is not empty and holds no run; give another output=")
    world.barrier()
    if world.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = folder / f".{CONFIG}.writing"
            OmegaConf.save(OmegaConf.create(dict(wanted)), temporary)
            temporary.replace(kept)
            keep_copy(folder / "train.log")
        except OSError as error:
            raise StorageError(f"output={folder} cannot be written: {error.strerror}") from error
    world.barrier()


def ledger(folder: Path, world: World, first_step: int) -> Callable[[int, Sequence[Skipped]], int]:
    """A function that appends what a step skipped to `skipped.jsonl` and returns the count so far (of this rank).

    Each rank keeps its own file; a run that goes on first drops what was written behind its checkpoint.
    """
    path = folder / ("skipped.jsonl" if world.size == 1 else f"skipped-{world.rank:05d}.jsonl")
    rows = [row for row in read_rows(path) if row["step"] < first_step] if path.exists() else []
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    count = len(rows)

    def keep(step: int, skipped: Sequence[Skipped]) -> int:
        nonlocal count
        if skipped:
            with open(path, "a", encoding="utf-8") as file:
                for one in skipped:
                    file.write(json.dumps({"step": step, **asdict(one)}) + "\n")
            count += len(skipped)
        return count

    return keep


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
    return values
