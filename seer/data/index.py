"""The index beside a tar shard: where each sample lies, so that row i is one seek and one read.

Beside `x.tar` lies `x.tar.index.npy`, or in a folder of indexes whose manifest tells where: one record a sample (offset
of its first header, bytes up to the end of its last member, CRC32 of those bytes) and a last record that holds the
archive's size, by which a stale index is known.

A *sample* is a run of neighbouring members that share a name up to the last dot, exactly one of them a picture
(`a/0001.jpg`, `a/0001.cls`). Names are names: they never become paths.
"""

import mmap
import os
import stat
from pathlib import Path
from typing import Literal

import numpy as np
from zlib_ng.zlib_ng import crc32

from seer.core.errors import RequestError, StorageError
from seer.data import archives
from seer.data.tar import TarError, walk

PICTURES = frozenset({"jpg", "jpeg", "png", "webp"})
_ARCHIVES = (".tar", *archives.ENDINGS)
_LAST = frozenset(ending.rpartition(".")[2] for ending in _ARCHIVES)  # which `split` has found already
INDEX = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc", "<u4")])
INDEX_SUFFIX = ".index.npy"
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = len(_MAGIC) + 2  # the two bytes give the length of the description that follows
MOST_SAMPLE = 256 << 20  # bytes of one sample; what is larger costs its row and is never read


def build_index(path: Path, data: bool = True, inside: list[str] | None = None) -> np.ndarray:
    """Walk a tar once. INDEX [rows + 1]; the last record holds the archive's size. Raises TarError, StorageError, and
    RequestError for what is an archive of another kind.

    data: read all bytes for their CRC; otherwise headers alone are read, and `crc` is that of each sample's headers: it
    tells other names and sizes, but rows cannot be checked by it. inside: receives names of archives in the tar.
    """
    with mapped(path) as buffer:
        try:
            return _indexed(buffer, data, [] if inside is None else inside)
        except TarError as error:
            what = None if _begins(buffer) else archives.what_it_is(path, bytes(buffer[:512]))
            if what is None:
                raise
            raise RequestError(what) from error


def _begins(buffer: memoryview) -> bool:
    """Whether the first header is that of a tar."""
    try:
        return next(walk(buffer), None) is not None
    except TarError:
        return False


def _indexed(buffer: memoryview, data: bool, inside: list[str]) -> np.ndarray:
    records: list[tuple[int, int, int]] = []
    seen: set[str] = set()
    group: list[tuple[int, int, int, str]] = []  # first byte, first byte of data, end, extension
    group_key: str | None = None

    def close() -> None:
        pictures = sum(extension in PICTURES for *_, extension in group)
        if pictures > 1:
            raise TarError(f"sample {group_key!r} at byte {group[0][0]} has {pictures} pictures; one is allowed")
        if pictures:
            assert group_key is not None
            if group_key in seen:
                raise TarError(f"sample {group_key!r} occurs again at byte {group[0][0]}; names must be unique")
            seen.add(group_key)
            first, last = group[0][0], group[-1][2]
            if last - first > 0xFFFFFFFF:
                raise TarError(f"sample {group_key!r} at byte {first} holds {last - first} bytes; 4 GiB are too many")
            crc = 0
            for start, end in ((first, last),) if data else ((one[0], one[1]) for one in group):
                crc = crc32(buffer[start:end], crc)
            records.append((first, last - first, crc))

    for member in walk(buffer):
        key, extension = split(member.name)
        if extension in _LAST and member.name.lower().endswith(_ARCHIVES):
            inside.append(member.name)
        if key != group_key:
            close()
            group, group_key = [], key
        group.append((member.start, member.data, member.end, extension))
    close()
    records.append((len(buffer), 0, 0))
    return np.array(records, dtype=INDEX)


def read_index(sidecar: Path, path: Path) -> np.ndarray:
    """Raises StorageError when the index is unreadable or was made from another archive, with the command that heals."""
    remedy = f"delete {sidecar.name} (a new one is made) or write the shards again with `seer shard`"
    try:
        size = path.stat().st_size
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    try:
        index = _records(sidecar.read_bytes())
    except (OSError, ValueError) as error:
        raise StorageError(f"{sidecar}: unreadable index ({error}); {remedy}") from error
    if len(index) == 0 or index[-1]["offset"] != size:
        raise StorageError(f"{sidecar}: made from another archive than the {size} bytes beside it; {remedy}")
    rows = index[:-1]
    if (rows["offset"] > size).any() or (rows["offset"] + rows["size"] > size).any() or (rows["size"] == 0).any():
        raise StorageError(f"{sidecar}: points outside the {size} bytes beside it; {remedy}")
    return index


def _records(npy: bytes) -> np.ndarray:
    """What np.load gives, for an array of INDEX alone. Raises ValueError.

    np.load reads the header with `ast`, and CPython 3.11 fails on that now and then when several threads do it at once
    (SystemError: AST constructor recursion depth mismatch); loaders open shards from several threads.
    """
    if len(npy) < _HEADER or npy[: len(_MAGIC)] != _MAGIC:
        raise ValueError("not an .npy file of version 1.0")
    start = _HEADER + int.from_bytes(npy[len(_MAGIC) : _HEADER], "little")
    rows, rest = divmod(len(npy) - start, INDEX.itemsize)
    wanted = f"{{'descr': {INDEX.descr!r}, 'fortran_order': False, 'shape': ({rows},), }}"
    if npy[_HEADER:start].split() != wanted.encode().split() or rest:
        raise ValueError(f"not an array of {INDEX.descr}, or cut off")
    return np.frombuffer(npy, INDEX, rows, start)


def write_index(index: np.ndarray, sidecar: Path) -> None:
    """All or nothing: under another name first, which a later try overwrites."""
    temporary = sidecar.with_name(f".{sidecar.name}.writing")
    try:
        with open(temporary, "wb") as file:
            np.save(file, index)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, sidecar)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def fits(size: int, rows: int) -> bool:
    """Whether an index of so many rows may be a file of that size; versions of numpy differ in their header."""
    return 0 < size - (rows + 1) * INDEX.itemsize <= 256


def checksum(index: np.ndarray) -> str:
    """Names an index, and by the CRCs in it the archive. 8 hexadecimal digits."""
    return f"{crc32(index.tobytes()):08x}"


def split(name: str) -> tuple[str, str]:
    """Key and lower-case extension: "a/x.1.JPG" -> ("a/x.1", "jpg")."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.rpartition(".")
    return (folder + slash + stem, extension.lower()) if dot else (name, "")


class mapped:
    """A file mapped for reading; an empty file maps to no bytes. Anything but a plain file raises StorageError.

    few: little of it will be looked at, so storage need not read ahead.
    """

    def __init__(self, path: Path, *, few: bool = False):
        self.path, self._few = path, few

    def __enter__(self) -> memoryview:
        try:
            file = open_plain(self.path)
            try:
                size = os.fstat(file).st_size
                self._map = mmap.mmap(file, 0, access=mmap.ACCESS_READ) if size else None
                if self._map is not None and self._few:
                    self._map.madvise(mmap.MADV_RANDOM)
            finally:
                os.close(file)
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error
        self._view = memoryview(self._map) if self._map is not None else memoryview(b"")
        return self._view

    def __exit__(self, *_: object) -> Literal[False]:
        # Slices of the view may outlive us inside a traceback; the map then closes when they go.
        return False


def open_plain(path: Path | str) -> int:
    """A descriptor for reading a plain file. A pipe or device is not waited for: StorageError. Raises OSError, too."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise StorageError(f"{path} is not a plain file; pipes and devices are not read")
    return file
