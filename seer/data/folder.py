"""A folder of loose pictures as one shard, nested as it likes, in the order of the names; or a list, in its own.

Ten million names as Python strings would take a gigabyte: here they are one block of bytes and a column of offsets, about
their own length each. Folders are walked one by one with their entries sorted ("x/" sorts as the folder x), which gives
the order of the whole relative paths without ever holding them as a list. Links are followed, but not into a folder that
the walk is already in.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from seer.core.errors import RequestError, StorageError
from seer.core.log import log
from seer.core.records import Sample, SampleRef
from seer.data.index import MOST_SAMPLE, PICTURES, open_plain, split
from seer.data.tar import TarError

_CHUNK = 65_536  # names held as Python objects at a time
ENDINGS = tuple(f".{extension}" for extension in sorted(PICTURES))
_ENDINGS = tuple(ending.encode() for ending in ENDINGS)


class FolderShard:
    """Raises StorageError for a picture that is gone, TarError for one that is no plain file or too large.

    classes: none, since what lies in folders is named by them.
    names: of pictures, in short lists; those in the folder itself when they are not given. base: what they begin from.
    """

    classes: tuple[str, ...] | None = None

    def __init__(self, path: Path, names: Iterable[list[bytes]] | None = None, base: Path | None = None):
        self.path, self._base = path, str(path if base is None else base)
        blob, ends, digest = bytearray(), [np.zeros(1, dtype=np.int64)], hashlib.sha256()
        at = 0
        for some in _walk(os.fsencode(path), b"", ()) if names is None else names:
            digest.update((b"\n" if at else b"") + b"\n".join(some))
            blob += b"".join(some)
            lengths = np.fromiter(map(len, some), dtype=np.int64, count=len(some))
            ends.append(at + np.cumsum(lengths))
            at = len(blob)
        self._blob, self._ends = bytes(blob), np.concatenate(ends)  # name i is blob[ends[i]:ends[i + 1]]
        self.identity = f"{path.name}:{len(self)}:{digest.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._ends) - 1

    def name(self, row: int) -> str:
        """Relative path of a picture."""
        return os.fsdecode(self._blob[self._ends[row] : self._ends[row + 1]])

    def read(self, number: int, row: int) -> Sample:
        name = self.name(row)
        key, extension = split(name)
        path = os.path.join(self._base, name)
        try:
            file = open_plain(path)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error
        except StorageError as error:
            raise TarError(str(error)) from error
        with open(file, "rb") as opened:
            size = os.fstat(file).st_size
            if size > MOST_SAMPLE:
                raise TarError(f"{size} bytes, more than {MOST_SAMPLE}")
            try:
                data = opened.read(size)
            except OSError as error:
                raise StorageError(f"{path}: {error.strerror}") from error
        return Sample(SampleRef(number, row), key, {extension: data})

    def is_there(self, row: int) -> bool:
        """Whether the folder of a picture can be listed, so that it is the file and not the storage that failed."""
        try:
            with os.scandir(os.path.dirname(os.path.join(self._base, self.name(row))) or ".") as entries:
                return next(entries, None) is not None
        except OSError:
            return False

    def key(self, row: int) -> str:
        return split(self.name(row))[0]

    def iter_keys(self) -> Iterator[str]:
        return (self.key(row) for row in range(len(self)))

    def iter_labels(self, rows: Iterable[int]) -> Iterator[tuple[str | None, bytes | None]]:
        return ((self.key(row), None) for row in rows)

    def keys(self) -> list[str]:
        return list(self.iter_keys())


def listed_in(file: Path) -> FolderShard:
    """The pictures that a file names, one path a line, from the file's own folder where they are relative.

    They are looked for when they are read. Raises RequestError for a line that names no picture, or one again.
    """
    shard = FolderShard(file, _lines(file), file.parent)
    hashes = np.fromiter((hash(shard.name(row)) for row in range(len(shard))), dtype=np.int64, count=len(shard))
    order = np.argsort(hashes, kind="stable")
    for first in np.flatnonzero(np.diff(hashes[order]) == 0).tolist():
        one, other = int(order[first]), int(order[first + 1])
        if shard.name(one) == shard.name(other):
            raise RequestError(f"{file}: {shard.name(one)} is listed twice; list each picture once")
    return shard


def these(paths: Sequence[str]) -> FolderShard:
    """Pictures named one by one."""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [os.fsencode(os.path.relpath(path, folder or ".")) for path in paths]
    return FolderShard(Path(folder), [names])


def _lines(file: Path) -> Iterator[list[bytes]]:
    names: list[bytes] = []
    try:
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                name = line.rstrip(b"\r\n")
                if name and not name.lower().endswith(_ENDINGS):
                    raise RequestError(
                        f"{file}, line {number}: {name[:200]!r} is no picture; a list has one path a line, each ending "
                        f"in {', '.join(ENDINGS)}, or each in .tar"
                    )
                names += [name] if name else []
                if len(names) == _CHUNK:
                    yield names
                    names = []
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}") from error
    if names:
        yield names


def _walk(path: bytes, prefix: bytes, above: tuple[tuple[int, int], ...]) -> Iterator[list[bytes]]:
    """Relative names of pictures in the order of whole paths, in short lists. above: (device, inode) of the way here."""
    try:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in above:
            log.warning(f"{os.fsdecode(path)} is a link to a folder above it, passed over")
            return
        above = (*above, (status.st_dev, status.st_ino))
        entries = _entries(path)
    except OSError as error:
        raise StorageError(f"{os.fsdecode(path)}: {error.strerror}") from error
    names: list[bytes] = []
    for entry in entries:
        name = bytes(entry)
        if name.endswith(b"/"):
            if names:
                yield names
                names = []
            yield from _walk(os.path.join(path, name[:-1]), prefix + name, above)
        else:
            names.append(prefix + name)
            if len(names) == _CHUNK:
                yield names
                names = []
    if names:
        yield names


def _entries(path: bytes) -> np.ndarray:
    """Pictures and folders (with a slash behind) of one folder, sorted. bytes [n] of the longest name's width."""
    parts: list[np.ndarray] = []
    names: list[bytes] = []
    with os.scandir(path) as found:
        for entry in found:
            name = entry.name
            if entry.is_dir():
                names.append(name + b"/")
            elif name.lower().endswith(_ENDINGS) and not name.startswith(b"."):
                names.append(name)
            if len(names) == _CHUNK:
                parts.append(np.array(names))
                names = []
    parts.append(np.array(names, dtype=np.bytes_) if not names else np.array(names))
    return np.sort(np.concatenate(parts))
