"""Runs `seer shard`: images -> tar shards of equal count, an index beside each, one manifest; or indexes for
tars at hand."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seer.cli import config
from seer.core.errors import RequestError
from seer.core.log import log
from seer.data.ledger import share
from seer.data.shards.open import class_names, open_shards
from seer.data.shards.rewrite import Part, index_archives, keep_apart, make, write_part
from seer.data.shards.source import expand, is_list, is_picture

EVERY_S = 30.0  # between lines of progress


def run(words: Sequence[str], output: list[Path]) -> dict[str, Any]:
    """Returns what was written, for the JSON line."""
    wanted = config.read("shard", words)
    processes = _check(wanted)
    target, start = Path(wanted["output"]), time.monotonic()
    told = (_index if wanted["index_only"] else _write)(wanted, target, processes, output)
    seconds = time.monotonic() - start
    log.info(f"{told['pictures']} pictures in {seconds:.1f} s -> {target}")
    return {"output": str(target), **told, "seconds": round(seconds, 2)}


def _check(wanted: Mapping[str, Any]) -> int:
    """Returns the number of processes. Raises RequestError for what can be told wrong before anything is opened."""
    if wanted["labels"] not in (None, "folder"):
        raise RequestError(f"labels={wanted['labels']}: folder, or null for none")
    if wanted["per_shard"] < 1 or wanted["holdout"] < 0:
        raise RequestError(f"per_shard={wanted['per_shard']}, holdout={wanted['holdout']}: at least 1, at least 0")
    for name in ("max_side", "quality", "processes"):
        if wanted[name] is not None and not isinstance(wanted[name], int):
            raise RequestError(f"{name}={wanted[name]!r}: a whole number, or null")
    share(wanted["max_bad"])
    changes = [k for k in ("labels", "holdout", "max_side", "quality", "image", "fields") if wanted[k]]
    if wanted["index_only"] and changes:
        raise RequestError(f"index_only=true copies nothing, so {', '.join(changes)} cannot be asked for with it")
    processes = len(os.sched_getaffinity(0)) if wanted["processes"] is None else wanted["processes"]
    if processes < 1:
        raise RequestError(f"processes={processes}: at least 1")
    return processes


def _index(wanted: Mapping[str, Any], target: Path, processes: int, output: list[Path]) -> dict[str, Any]:
    source = wanted["source"]
    paths = [path for one in ([source] if isinstance(source, str) else source) for path in expand(str(one)).paths]
    loose = [path for path in paths if not os.path.isfile(path) or is_list(path) or is_picture(path)]
    if loose:
        raise RequestError(f"index_only=true is for tars; {loose[0]} is none")
    make(target)
    output.append(target)
    with _progress("indexing", len(paths), "tars") as progress:
        manifest = index_archives(paths, target, processes=processes, progress=progress)
    return {"pictures": manifest["samples"], "parts": {"all": _told(manifest)}}


def _write(wanted: Mapping[str, Any], target: Path, processes: int, output: list[Path]) -> dict[str, Any]:
    shards = open_shards(wanted["source"], image=wanted["image"], fields=wanted["fields"])
    total, holdout = sum(len(s) for s in shards), wanted["holdout"]
    if holdout >= total:
        raise RequestError(f"holdout={holdout} of {total} pictures leaves none; make it smaller")
    classes = class_names(shards) if wanted["labels"] == "folder" else None
    if classes is not None and len(classes) < 2:
        raise RequestError(
            f"labels=folder: the pictures lie in {len(classes)} folder, so every label would be the same"
        )
    spans = {"test": (0, holdout), "train": (holdout, total - holdout)} if holdout else {"all": (0, total)}
    how = {name: wanted[name] for name in ("per_shard", "shuffle", "seed", "max_side", "quality")}
    parts = {name: Part(shards, first, rows, classes=classes, **how) for name, (first, rows) in spans.items()}
    words = [wanted["source"]] if isinstance(wanted["source"], str) else wanted["source"]
    keep_apart([word for word in map(str, words) if os.path.isdir(word)], shards, target)
    make(target)
    output.append(target)
    written = {}
    for name, part in parts.items():
        folder = target if name == "all" else target / name
        with _progress(f"shards {name}", part.total, "pictures") as progress:
            manifest = write_part(part, folder, processes=processes, max_bad=wanted["max_bad"], progress=progress)
        written[name] = _told(manifest)
    skipped = sum(one["skipped"] for one in written.values())
    if skipped:
        log.warning(f"{skipped} pictures cannot be used and were left out; skipped.jsonl beside the shards names them")
    pictures = sum(one["pictures"] for one in written.values())
    return {"pictures": pictures, "skipped": skipped, "classes": classes, "parts": written}


@contextmanager
def _progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """Yields what is to be called with what has been done since; at first with what an earlier run did. A bar
    on a terminal, and a line now and then where nobody would see one move, as in the log of a batch job."""
    if sys.stderr.isatty():
        with tqdm(total=total, unit=unit, desc=what) as bar:
            yield bar.update
        return
    start = told = time.monotonic()
    done, before = 0, -1

    def update(n: int) -> None:
        nonlocal done, before, told
        done += n
        before = done if before < 0 else before
        now = time.monotonic()
        if now - told >= EVERY_S:
            told, rate = now, (done - before) / (now - start)
            left = f"{(total - done) / rate / 60:.0f} min left" if rate else "none yet"
            log.info(f"{what}: {done} of {total} {unit}, {rate:.1f}/s, {left}")

    yield update


def _told(manifest: Mapping[str, Any]) -> dict[str, int]:
    return {"shards": len(manifest["shards"]), "pictures": manifest["samples"], "skipped": manifest["skipped"]}
