"""Writes shards: tars of equal count, an index beside each, one manifest with hashes.

The archives are webdataset's, byte for byte the same each time. A shard gets its name only when it is whole and has been
read back; the manifest comes last, so a folder without one is unfinished.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from seer.core.errors import StorageError
from seer.data.shards.index import INDEX_SUFFIX, build_index, checksum, write_index

SHARDS_MANIFEST = "manifest.json"
JOURNAL = ".unfinished.jsonl"  # lies beside shards until all are written
Member = tuple[str, dict[str, bytes]]  # key, {extension: bytes}


def write_shards(
    samples: Iterable[Member],
    output: Path,
    *,
    total: int,
    per_shard: int,
    card: dict | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict:
    """Writes samples as tars of equal count (they differ by one at most), an index beside each, one manifest.

    samples: (key, {extension: bytes}), exactly `total` of them. card: what else the manifest should say.
    Returns the manifest. Raises StorageError when the samples end too early.
    """
    output.mkdir(parents=True, exist_ok=True)
    count, stream, written, entries = shard_count(total, per_shard), iter(samples), 0, []
    for number in range(count):
        first, last = shard_rows(number, count, total)
        entries.append(write_shard(shard_path(output, number, count), _take(stream, last - first)))
        written += last - first
        if progress:
            progress(written)
    return write_manifest(output, entries, card)


def shard_count(total: int, per_shard: int) -> int:
    return max(1, -(-total // per_shard))


def shard_rows(number: int, count: int, total: int) -> tuple[int, int]:
    """Returns the first row of a shard and the one behind its last."""
    return total * number // count, total * (number + 1) // count


def shard_path(output: Path, number: int, count: int) -> Path:
    return output / f"shard-{number:0{max(6, len(str(count - 1)))}d}.tar"


def write_shard(path: Path, samples: Iterable[Member]) -> dict[str, Any]:
    """Writes one tar and its index. Returns its entry of the manifest. Raises StorageError when it does not
    read back whole."""
    import webdataset  # 0.6 s to import, needed by this function alone

    temporary = path.with_name(f".{path.name}.writing")  # a piece that was killed is written again under the same name
    rows = 0
    try:
        with webdataset.TarWriter(str(temporary), encoder=False, mtime=0) as writer:
            for key, fields in samples:
                writer.write({"__key__": key, **fields})
                rows += 1
        index = build_index(temporary)
        if len(index) - 1 != rows:
            raise StorageError(f"{path}: {rows} samples were written, {len(index) - 1} can be read back")
        with open(temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        write_index(index, Path(str(path) + INDEX_SUFFIX))
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    size = int(index[-1]["offset"])
    return {"name": path.name, "count": rows, "bytes": size, "sha256": digest, "index": checksum(index)}


def write_manifest(output: Path, entries: list[dict[str, Any]], card: dict | None = None) -> dict[str, Any]:
    """Writes all or nothing, and returns it. Raises StorageError."""
    manifest = {"format": 1, "samples": sum(e["count"] for e in entries), "shards": entries, **(card or {})}
    temporary = output / f".{SHARDS_MANIFEST}.writing"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(manifest, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, output / SHARDS_MANIFEST)
    except OSError as error:
        raise StorageError(f"{output / SHARDS_MANIFEST} cannot be written: {error.strerror or error}") from error
    return manifest


def _take(stream: Iterator[Member], n: int) -> Iterator[Member]:
    for _ in range(n):
        try:
            yield next(stream)
        except StopIteration:
            raise StorageError("the source ended before all announced images were read") from None
