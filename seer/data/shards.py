"""Shards: tar files of pictures with a sidecar index, so that row i is one seek and one read.

A *sample* is a run of neighbouring members that share a name up to the last dot, exactly one of them a picture
(`a/0001.jpg`, `a/0001.cls`). Beside `x.tar` lies `x.tar.index.npy`: one record a sample (offset of its first header,
bytes up to the end of its last member, CRC32 of those bytes) and a last record that holds the archive's size, by which
a stale index is known. A tar without an index is walked once at the start (5 us a member), and nothing is written
beside it. A folder of loose pictures acts as one shard.

webdataset writes the archives and can read them; reading is ours. Next: remote URLs (a cache on local disk).
"""

import glob
import hashlib
import json
import mmap
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from seer.core.errors import RequestError, StorageError
from seer.core.records import Sample, SampleRef
from seer.data.tar import ChecksumError, TarError, walk

PICTURES = frozenset({"jpg", "jpeg", "png", "webp"})
INDEX = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc", "<u4")])
INDEX_SUFFIX = ".index.npy"
MANIFEST = "manifest.json"


class Shard(Protocol):
    """Rows of samples. `identity` names the content for fingerprints; `read` may be called from any thread."""

    path: Path
    identity: str

    def __len__(self) -> int: ...

    def read(self, number: int, row: int) -> Sample: ...

    def key(self, row: int) -> str: ...

    def keys(self) -> list[str]: ...


class TarShard:
    """One tar file. Reads by `pread`, so threads and forked processes share the descriptor without a lock."""

    def __init__(self, path: Path, check_crc: bool = True):
        self.path, self._check_crc = path, check_crc
        sidecar = Path(str(path) + INDEX_SUFFIX)
        index = read_index(sidecar, path) if sidecar.exists() else build_index(path)
        self.index = index[:-1]
        self.identity = f"{path.name}:{len(self.index)}:{index[-1]['offset']}:{zlib.crc32(index.tobytes()):08x}"
        self._file = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, number: int, row: int) -> Sample:
        """Raises TarError when the bytes are not those the index was made from, StorageError when they cannot be had."""
        entry = self.index[row]
        offset, size = int(entry["offset"]), int(entry["size"])
        try:
            data = os.pread(self._file, size, offset)
        except OSError as error:
            raise StorageError(f"{self.path}: reading {size} bytes at {offset} failed: {error}") from error
        if len(data) != size:
            raise TarError(f"short read at byte {offset}: {len(data)} of {size} bytes")
        if self._check_crc and zlib.crc32(data) != entry["crc"]:
            raise ChecksumError(f"checksum differs from the index at byte {offset}")
        members = list(walk(memoryview(data), whole=False))
        fields = {_split(m.name)[1]: data[m.data : m.data + m.size] for m in members}
        return Sample(SampleRef(number, row), _split(members[0].name)[0], fields)

    def key(self, row: int) -> str:
        """The name of a row, from its headers alone. Raises TarError."""
        with _mapped(self.path) as buffer:
            return self._key(buffer, row)

    def keys(self) -> list[str]:
        with _mapped(self.path) as buffer:
            return [self._key(buffer, row) for row in range(len(self))]

    def _key(self, buffer: memoryview, row: int) -> str:
        first, size = int(self.index[row]["offset"]), int(self.index[row]["size"])
        for member in walk(buffer[first : first + size], whole=False):
            return _split(member.name)[0]
        raise TarError(f"no member at byte {first}")


class FolderShard:
    """A folder of loose pictures, nested as it likes, in the order of their names."""

    def __init__(self, path: Path):
        self.path = path
        self.files = sorted(
            str(Path(folder, name).relative_to(path))
            for folder, _, names in os.walk(path, followlinks=True)
            for name in names
            if _split(name)[1] in PICTURES and not name.startswith(".")
        )
        digest = hashlib.sha256("\n".join(self.files).encode()).hexdigest()[:16]
        self.identity = f"{path.name}:{len(self.files)}:{digest}"

    def __len__(self) -> int:
        return len(self.files)

    def read(self, number: int, row: int) -> Sample:
        key, extension = _split(self.files[row])
        try:
            data = (self.path / self.files[row]).read_bytes()
        except OSError as error:
            raise StorageError(f"{self.path / self.files[row]}: {error.strerror}") from error
        return Sample(SampleRef(number, row), key, {extension: data})

    def key(self, row: int) -> str:
        return _split(self.files[row])[0]

    def keys(self) -> list[str]:
        return [_split(name)[0] for name in self.files]


def open_shards(source: str | Path | Sequence[str | Path], *, check_crc: bool = True) -> list[Shard]:
    """What a source names, in a fixed order: a folder of tars or of pictures, a tar, a glob, `{000..009}`, or a list.

    check_crc: compare the bytes of every row that is read with its index; without it a flipped byte of data passes.
    Raises RequestError (status 78) when there is nothing, naming the source; TarError for a damaged archive.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    paths = [path for one in sources for path in _expand(str(one))]
    repeated = [path for path, times in Counter(paths).items() if times > 1]
    if repeated:
        raise RequestError(f"shard {repeated[0]} is listed twice; list each shard once")
    shards: list[Shard] = []
    for path in paths:
        try:
            shard: Shard = FolderShard(path) if path.is_dir() else TarShard(path, check_crc)
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
    return sorted({folder_of(key) for shard in shards for key in shard.keys()})


def folder_of(key: str) -> str:
    return key.rsplit("/", 2)[-2] if "/" in key else ""


def picture_of(sample: Sample) -> bytes:
    """The one picture among a sample's members."""
    return next(data for extension, data in sample.fields.items() if extension in PICTURES)


def build_index(path: Path) -> np.ndarray:
    """Walk a tar once. INDEX [rows + 1]; the last record holds the archive's size. Raises TarError, StorageError."""
    records: list[tuple[int, int, int]] = []
    seen: set[str] = set()
    with _mapped(path) as buffer:
        group: list[tuple[int, int, str]] = []
        group_key: str | None = None

        def close() -> None:
            pictures = sum(extension in PICTURES for _, _, extension in group)
            if pictures > 1:
                raise TarError(f"sample {group_key!r} at byte {group[0][0]} has {pictures} pictures; one is allowed")
            if pictures:
                assert group_key is not None
                if group_key in seen:
                    raise TarError(f"sample {group_key!r} occurs again at byte {group[0][0]}; names must be unique")
                seen.add(group_key)
                first, last = group[0][0], group[-1][1]
                records.append((first, last - first, zlib.crc32(buffer[first:last])))

        for member in walk(buffer):
            key, extension = _split(member.name)
            if key != group_key:
                close()
                group, group_key = [], key
            group.append((member.start, member.end, extension))
        close()
        records.append((len(buffer), 0, 0))
    return np.array(records, dtype=INDEX)


def read_index(sidecar: Path, path: Path) -> np.ndarray:
    """Raises StorageError when the index is unreadable or was made from another archive, with the command that heals."""
    remedy = f"delete {sidecar.name} (a new one is made) or write the shards again with `seer shard`"
    try:
        index = np.load(sidecar, allow_pickle=False)
        size = path.stat().st_size
    except (OSError, ValueError, EOFError) as error:
        raise StorageError(f"{sidecar}: unreadable index ({error}); {remedy}") from error
    if index.dtype != INDEX or len(index) == 0 or index[-1]["offset"] != size:
        raise StorageError(f"{sidecar}: made from another archive than the {size} bytes beside it; {remedy}")
    return index


def write_shards(
    samples: Iterable[tuple[str, dict[str, bytes]]],
    output: Path,
    *,
    total: int,
    per_shard: int,
    card: dict | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict:
    """Write samples as tars of equal count (they differ by one at most), an index beside each, one manifest.

    samples: (key, {extension: bytes}), exactly `total` of them. card: what else the manifest should say.
    Returns the manifest. The manifest comes last: a folder without one is unfinished.
    """
    import webdataset  # 0.6 s to import, needed by this function alone

    output.mkdir(parents=True, exist_ok=True)
    count = max(1, -(-total // per_shard))
    digits = max(6, len(str(count - 1)))
    stream, shards, written = iter(samples), [], 0
    for number in range(count):
        path = output / f"shard-{number:0{digits}d}.tar"
        temporary = output / f".{path.name}.writing"
        rows = total * (number + 1) // count - total * number // count
        with webdataset.TarWriter(str(temporary), encoder=False, mtime=0.0) as writer:
            for key, fields in _take(stream, rows):
                writer.write({"__key__": key, **fields})
                written += 1
                if progress:
                    progress(written)
        index = build_index(temporary)
        if len(index) - 1 != rows:
            raise StorageError(f"{path}: {rows} samples expected, {len(index) - 1} can be read back")
        np.save(str(path) + INDEX_SUFFIX, index)
        _sync(temporary)
        os.replace(temporary, path)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shards.append({"name": path.name, "count": rows, "bytes": path.stat().st_size, "sha256": digest})
    manifest = {"format": 1, "samples": written, "shards": shards, **(card or {})}
    temporary = output / f".{MANIFEST}.writing"
    temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, output / MANIFEST)
    return manifest


def _take(stream: Iterator[tuple[str, dict[str, bytes]]], n: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    for _ in range(n):
        try:
            yield next(stream)
        except StopIteration:
            raise StorageError("the source ended before all announced pictures were read") from None


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


class _mapped:
    """A file mapped for reading; an empty file maps to no bytes."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> memoryview:
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error
        self._view = memoryview(self._map) if self._map is not None else memoryview(b"")
        return self._view

    def __exit__(self, *_: object) -> Literal[False]:
        # Slices of the view may outlive us inside a traceback; the map then closes when they go.
        return False


def _split(name: str) -> tuple[str, str]:
    """Key and lower-case extension: "a/x.1.JPG" -> ("a/x.1", "jpg")."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.rpartition(".")
    return (folder + slash + stem, extension.lower()) if dot else (name, "")


def _expand(source: str) -> list[Path]:
    if re.match(r"^[a-z][a-z0-9+.-]*:", source) and not os.path.exists(source):
        scheme = source.split(":", 1)[0]
        if scheme == "file":
            source = source.removeprefix("file://").removeprefix("file:")
        else:
            raise RequestError(f"source {source!r}: scheme {scheme!r} is not read; give a local or mounted path")
    path = Path(source)
    if path.is_dir():
        tars = sorted(p for p in path.rglob("*.tar") if not p.name.startswith("."))
        return tars or [path]
    if path.exists():
        return [path]
    found = [Path(p) for one in _braces(source) for p in (sorted(glob.glob(one)) if glob.has_magic(one) else [one])]
    missing = [p for p in found if not p.exists()]
    if missing or not found:
        raise RequestError(f"source {source!r}: {missing[0] if missing else 'nothing'} does not exist; check the path")
    return found


def _braces(source: str) -> list[str]:
    found = re.search(r"\{([^{}]*)\}", source)
    if not found:
        return [source]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span:
        width = len(span[1])
        parts = [f"{i:0{width}d}" for i in range(int(span[1]), int(span[2]) + 1)]
    else:
        parts = found[1].split(",")
    return [full for part in parts for full in _braces(source[: found.start()] + part + source[found.end() :])]
