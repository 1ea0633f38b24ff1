"""Shards: tar files of pictures with a sidecar index (`index`), so that row i is one seek and one read.

A tar without an index is walked once at the start (5 us a member), and nothing is written beside it. With an index and a
manifest that agree with the archive's size, opening costs two look-ups in the file system: the index itself is read when
a row is first wanted, and archives are kept open a bounded number at a time, so 100,000 shards need neither 100,000
descriptors nor their indexes in memory. A folder of loose pictures acts as one shard (`folder`).

webdataset writes the archives (`writing`) and can read them; reading is ours. Next: remote URLs (a cache on local disk).
"""

import hashlib
import json
import os
import resource
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seer.core.errors import RequestError, StorageError
from seer.core.records import Sample, SampleRef
from seer.data import index as indexes
from seer.data.folder import FolderShard
from seer.data.index import INDEX, INDEX_SUFFIX, MOST_SAMPLE, PICTURES, build_index, mapped, read_index, split
from seer.data.source import expand
from seer.data.tar import BLOCK, ChecksumError, TarError, plain_member, walk
from seer.data.writing import MANIFEST, write_shards

__all__ = ["MANIFEST", "FolderShard", "Shard", "TarShard", "build_index", "class_names", "fingerprint", "folder_of"]
__all__ += ["open_shards", "picture_of", "read_index", "write_shards"]
MOST_OPEN = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)  # archives; a smaller part of what we may


class Shard(Protocol):
    """Rows of samples. `identity` names the content for fingerprints; `read` may be called from any thread."""

    path: Path
    identity: str

    def __len__(self) -> int: ...

    def read(self, number: int, row: int) -> Sample: ...

    def key(self, row: int) -> str: ...

    def iter_keys(self) -> Iterator[str]: ...

    def keys(self) -> list[str]: ...


class _Open:
    """An open archive and its index. Closed when nobody holds it any more, so no reader loses it to the limit."""

    def __init__(self, path: Path, index: np.ndarray):
        try:
            self.file = indexes.open_plain(path)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error
        self.index = index

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)


class Opened:
    """The archives that are open now, at most MOST_OPEN; the one used longest ago goes first."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, _Open] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, shard: "TarShard") -> _Open:
        with self._lock:
            found = self._open.get(shard.path)
            if found is not None:
                self._open.move_to_end(shard.path)
                return found
        found = _Open(shard.path, shard.load_index())
        with self._lock:
            self._open[shard.path] = found
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return found


class TarShard:
    """One tar file. Reads by `pread`, so threads and forked processes share a descriptor without a lock.

    entry: what the manifest says of it. Raises TarError, StorageError.
    """

    def __init__(
        self,
        path: Path,
        check_crc: bool = True,
        *,
        entry: Mapping[str, Any] | None = None,
        opened: Opened | None = None,
    ):
        self.path, self._check_crc, self._opened = path, check_crc, opened or Opened()
        self._sidecar = Path(str(path) + INDEX_SUFFIX)
        self._own: np.ndarray | None = None  # the index of a tar without a sidecar
        self._checksum: str | None = None
        if entry is not None and self._agrees(entry):
            self._count, size, self._checksum = int(entry["count"]), int(entry["bytes"]), str(entry["index"])
            checksum = self._checksum
        else:
            index = self.load_index()
            if not self._sidecar.exists():
                self._own = index
            self._count, size, checksum = len(index) - 1, int(index[-1]["offset"]), indexes.checksum(index)
        self.identity = f"{path.name}:{self._count}:{size}:{checksum}"

    def _agrees(self, entry: Mapping[str, Any]) -> bool:
        """Sizes of the archive and of its index are those of the manifest: good enough to read the index later."""
        try:
            header = self._sidecar.stat().st_size - (int(entry["count"]) + 1) * INDEX.itemsize
            return self.path.stat().st_size == entry["bytes"] and 0 < header <= 256
        except OSError:
            return False

    def __len__(self) -> int:
        return self._count

    @property
    def index(self) -> np.ndarray:
        """INDEX [rows]."""
        return self._opened.get(self).index[:-1]

    def load_index(self) -> np.ndarray:
        """INDEX [rows + 1] from the sidecar, or by walking the archive. Raises StorageError, TarError."""
        if self._own is not None:
            return self._own
        if not self._sidecar.exists():
            return build_index(self.path)
        index = read_index(self._sidecar, self.path)
        if self._checksum not in (None, indexes.checksum(index)):
            raise StorageError(
                f"{self._sidecar}: its checksum is {indexes.checksum(index)}, that of the manifest {self._checksum}; restore "
                "it, or write the shards again with `seer shard`"
            )
        return index

    def read(self, number: int, row: int) -> Sample:
        """Raises TarError when the bytes are not those the index was made from, StorageError when they cannot be had."""
        opened = self._opened.get(self)
        offset, size, crc = opened.index[row].item()
        if size > MOST_SAMPLE:
            raise TarError(f"sample of {size} bytes at byte {offset}, more than {MOST_SAMPLE}")
        # The first member is nearly always the picture: read by itself, its bytes need not be copied out of a longer run.
        head = self._pread(opened.file, offset, min(size, BLOCK))
        member = plain_member(head, size)
        body = self._pread(opened.file, offset + BLOCK, member.size) if member else b""
        begun = len(head) + len(body)
        alone = member is not None and member.end == size  # nothing follows but zeros, of which only the CRC knows
        rest = self._pread(opened.file, offset + begun, size - begun) if self._check_crc or not alone else b""
        if self._check_crc and zlib.crc32(rest, zlib.crc32(body, zlib.crc32(head))) != crc:
            raise ChecksumError(f"checksum differs from the index at byte {offset}")
        key, fields = None, {}
        if member:
            key, extension = split(member.name)
            fields[extension] = body
        data, base = (rest[member.end - begun :], member.end) if member else (head + rest, 0)
        for one in walk(memoryview(data), whole=False, base=base) if data else ():
            name, extension = split(one.name)
            key = name if key is None else key
            fields[extension] = data[one.data : one.data + one.size]
        if key is None or not fields.keys() & PICTURES:
            raise TarError(f"no picture at byte {offset}, where the index has one")
        return Sample(SampleRef(number, row), key, fields)

    def _pread(self, file: int, offset: int, size: int) -> bytes:
        try:
            data = os.pread(file, size, offset)
        except OSError as error:
            raise StorageError(f"{self.path}: reading {size} bytes at {offset} failed: {error}") from error
        if len(data) != size:
            raise TarError(f"short read at byte {offset}: {len(data)} of {size} bytes")
        return data

    def key(self, row: int) -> str:
        """The name of a row, from its headers alone. Raises TarError."""
        with mapped(self.path) as buffer:
            return self._key(buffer, row)

    def iter_keys(self) -> Iterator[str]:
        with mapped(self.path) as buffer:
            for row in range(len(self)):
                yield self._key(buffer, row)

    def keys(self) -> list[str]:
        return list(self.iter_keys())

    def _key(self, buffer: memoryview, row: int) -> str:
        offset, size, _ = self.index[row].item()
        for member in walk(buffer[offset : offset + size], whole=False):
            return split(member.name)[0]
        raise TarError(f"no member at byte {offset}")


def open_shards(source: str | Path | Sequence[str | Path], *, check_crc: bool = True) -> list[Shard]:
    """What a source names, in a fixed order: a folder of tars or of pictures, a tar, a glob, `{000..009}`, or a list.

    check_crc: compare the bytes of every row that is read with its index; without it a flipped byte of data passes.

    Raises RequestError (status 78) when there is nothing, naming the source; TarError for a damaged archive.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    paths = [Path(path) for one in sources for path in expand(str(one))]
    repeated = [path for path, times in Counter(paths).items() if times > 1]
    if repeated:
        raise RequestError(f"shard {repeated[0]} is listed twice; list each shard once")
    shards: list[Shard] = []
    opened, manifests = Opened(), {folder: _manifest(folder) for folder in {path.parent for path in paths}}
    for path in paths:
        try:
            shard: Shard = (
                FolderShard(path)
                if path.is_dir()
                else TarShard(path, check_crc, entry=manifests[path.parent].get(path.name), opened=opened)
            )
        except TarError as error:
            raise TarError(f"{path}: {error}") from error
        if len(shard) == 0:
            raise RequestError(f"no pictures in {path}; looked for {', '.join(sorted(PICTURES))}")
        shards.append(shard)
    return shards


def fingerprint(shards: Iterable[Shard]) -> str:
    """Names the data: shards in order with their counts and index checksums. 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(s.identity for s in shards).encode()).hexdigest()[:16]


def class_names(shards: Sequence[Shard]) -> list[str]:
    """Names of the folders that directly hold the pictures, sorted: class i is the i-th."""
    return sorted({folder_of(key) for shard in shards for key in shard.iter_keys()})


def folder_of(key: str) -> str:
    return key.rsplit("/", 2)[-2] if "/" in key else ""


def picture_of(sample: Sample) -> bytes:
    """The one picture among a sample's members."""
    return next(data for extension, data in sample.fields.items() if extension in PICTURES)


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries by file name; none where there is no manifest, or one without checksums of indexes."""
    try:
        shards = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["shards"]
        return {one["name"]: one for one in shards if {"count", "bytes", "index"} <= one.keys()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # a file of this name that is not ours; the indexes say the same
