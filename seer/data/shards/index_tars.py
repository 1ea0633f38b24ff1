"""Writes an index for each of many tars at hand, in any number of processes, and one manifest; the tars stay as they are."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from seer.core.errors import RequestError, StorageError
from seer.data.shards.bad_archives import BadArchives
from seer.data.shards.index import INDEX_SUFFIX, Notes, build_index, checksum, read_index, write_index
from seer.data.shards.journaled_pool import Entry, locked, run_pieces
from seer.data.shards.names import IMAGE_ENDINGS
from seer.data.shards.open import tell
from seer.data.shards.output_folder import finished_before, make
from seer.data.shards.tar import TarError
from seer.data.shards.writer import (
    SHARDS_MANIFEST,
    write_manifest,
)

INDEXING = ".indexing.jsonl"  # not JOURNAL: the tars are whole before their indexes are


def index_archives(
    paths: Sequence[str],
    output: Path,
    *,
    processes: int,
    progress: Callable[[int], object],
    bad: BadArchives | None = None,
) -> dict[str, Any]:
    """Writes an index for each tar, and a manifest of all in `output`; the tars are read and never changed or copied.
    bad: how many may be passed over that cannot be read, and receives them.

    An index lies beside its tar where that lies in `output`, and else in `output`: tars may be on a read-only disk.
    """
    make(output)
    try:
        status = [(path, (found := os.stat(path)).st_size, found.st_mtime_ns) for path in paths]
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from error
    request = hashlib.sha256(json.dumps([1, "index", status]).encode()).hexdigest()[:16]
    if (output / SHARDS_MANIFEST).exists():
        return finished_before(output, request, indexes=True)
    with locked(output / INDEXING) as journal:
        if (output / SHARDS_MANIFEST).exists():
            manifest = finished_before(output, request, indexes=True)
        else:
            bad = BadArchives() if bad is None else bad
            manifest = _index(paths, output, journal, request, bad, processes=processes, progress=progress)
        (output / INDEXING).unlink()
    return manifest


def _index(
    paths: Sequence[str],
    output: Path,
    journal: IO[str],
    request: str,
    bad: BadArchives,
    *,
    processes: int,
    progress: Callable[[int], object],
) -> dict[str, Any]:
    names = _names(paths, output)

    def work(number: int, tick: Callable[[], None]) -> Entry:
        path, name = Path(paths[number]), names[number]
        sidecar = output / name.get("sidecar", name["name"] + INDEX_SUFFIX)
        notes = Notes()
        try:
            index = build_index(path, notes=notes)
            if len(index) == 1:
                raise RequestError(f"no images in {path}; looked for {', '.join(sorted(IMAGE_ENDINGS))}")
        except (TarError, RequestError) as error:
            tick()
            return {"path": str(path), "bad": str(error), "status": error.exit_status}
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not _holds(sidecar, path, index):
                sidecar.parent.mkdir(parents=True, exist_ok=True)
                write_index(index, sidecar)
        except OSError as error:
            raise StorageError(
                f"the index {sidecar} cannot be written: {error.strerror}; give an output= where it can: indexes and "
                "their manifest then lie there, and that folder is the source to train from"
            ) from error
        tick()
        size = int(index[-1]["offset"])
        entry = {**name, "count": len(index) - 1, "bytes": size, "sha256": digest, "index": checksum(index)}
        notes.inside = [f"{path}/{one}" for one in notes.inside]
        return {**entry, "notes": asdict(notes)}

    def finished(entry: Entry) -> None:
        if "bad" in entry:
            kind = TarError if entry["status"] == TarError.exit_status else RequestError
            bad.pass_over(entry["path"], kind(entry["bad"]), len(paths))

    entries = run_pieces(work, len(paths), journal, request, processes=processes, progress=progress, finished=finished)
    bad.check_rest(list(map(str, paths)), sum("bad" not in entry for entry in entries))
    entries = [entry for entry in entries if "bad" not in entry]
    notes = Notes()
    for entry in entries:
        notes.add(Notes.of(entry.pop("notes", {})))
    tell(notes)
    card: dict[str, Any] = {"request": request, "skipped": 0, "data": notes.census.plain()}
    return write_manifest(output, entries, card | ({"bad_archives": bad.found} if bad.found else {}))


def _names(paths: Sequence[str], output: Path) -> list[dict[str, str]]:
    """Returns the names of tars as the manifest of `output` tells them, and of their indexes where these do not
    lie beside them."""
    root = os.path.join(os.path.realpath(output), "")
    real = {folder: os.path.join(os.path.realpath(folder), "") for folder in {os.path.dirname(path) for path in paths}}
    inside = [real[os.path.dirname(path)].startswith(root) for path in paths]
    whole = [os.path.abspath(path) for path in paths]
    away = {os.path.dirname(path) for path, within in zip(whole, inside) if not within}
    common = os.path.commonpath(away) if away else ""
    names = [
        {"name": os.path.relpath(real[os.path.dirname(path)] + os.path.basename(path), root)}
        if within
        else {"name": at, "sidecar": os.path.relpath(at, common) + INDEX_SUFFIX}
        for path, at, within in zip(paths, whole, inside)
    ]
    places = Counter(name.get("sidecar", name["name"] + INDEX_SUFFIX) for name in names)
    if len(places) < len(names):
        raise RequestError(
            f"output={output}: indexes of {places.most_common(1)[0][1]} tars would all be "
            f"{places.most_common(1)[0][0]} there; give an output= apart from them, or one for each folder"
        )
    return names


def _holds(sidecar: Path, path: Path, index: np.ndarray) -> bool:
    try:
        return sidecar.exists() and np.array_equal(read_index(sidecar, path), index)
    except StorageError:  # unreadable, or of another archive
        return False
