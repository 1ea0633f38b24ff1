"""Reads a folder of loose images as one shard, nested as it likes, in the order of the names; or a list, in its own.

Ten million names as Python strings would take a gigabyte: here they are one block of bytes and a column of offsets, about
their own length each. Folders are walked one by one with their entries sorted ("x/" sorts as the folder x), which gives
the order of the whole relative paths without ever holding them as a list. Links are followed, but not into a folder that
the walk is already in.

Of what lies beside an image (`a.txt`, `a.json`, `a.cls`, `a.mask.png`), no name is kept: only which endings any image of the
folder has beside it, and these are looked for when an image is read.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from seer.core.errors import RequestError, StorageError
from seer.core.log import log
from seer.core.records import Sample, SampleRef
from seer.data.shards.index import MOST_SAMPLE, open_plain
from seer.data.shards.names import IMAGE_ENDINGS, LOOSE, WITH_COMPANIONS, Asked, Endings, split
from seer.data.shards.tar import TarError

_CHUNK = 65_536  # names held as Python objects at a time
ENDINGS = tuple(f".{extension}" for extension in sorted(IMAGE_ENDINGS))
_ENDINGS = tuple(ending.encode() for ending in ENDINGS)
_TRIED = 1000  # files of one ending that are asked whether they have an image, before it is taken for granted


class FolderShard:
    """Holds loose images as one shard. Raises StorageError for an image that is gone, TarError for one that is
    no plain file or too large.

    classes: none, since what lies in folders is named by them.
    names: of images, in short lists; those in the folder itself when they are not given. base: what they begin from.
    """

    classes: tuple[str, ...] | None = None

    def __init__(
        self,
        path: Path,
        names: Iterable[list[bytes]] | None = None,
        base: Path | None = None,
        asked: Asked | None = None,
    ):
        self.path, self._base = path, str(path if base is None else base)
        self._endings = WITH_COMPANIONS if asked is None else asked.over(WITH_COMPANIONS)
        self._listed = names is not None
        beside = _Beside(self._endings)
        blob, ends, digest = bytearray(), [np.zeros(1, dtype=np.int64)], hashlib.sha256()
        at, kinds = 0, set[bytes]()
        for some in _walk(os.fsencode(path), b"", (), beside) if names is None else names:
            digest.update((b"\n" if at else b"") + b"\n".join(some))
            blob += b"".join(some)
            kinds.update(name[name.rfind(b".") :] for name in some)
            lengths = np.fromiter(map(len, some), dtype=np.int64, count=len(some))
            ends.append(at + np.cumsum(lengths))
            at = len(blob)
        self._blob, self._ends = bytes(blob), np.concatenate(ends)  # name i is blob[ends[i]:ends[i + 1]]
        self._beside = tuple(sorted(beside.found))
        self._doubled = self._same_names() if len(kinds) > 1 and names is None else frozenset()
        named = "" if asked is None else f":{asked}"
        self.identity = f"{path.name}:{len(self)}:{digest.hexdigest()[:16]}{named}"
        beside.tell(path)

    def _same_names(self) -> frozenset[int]:
        """Returns the rows whose name another one has, too, with another ending: their keys keep it."""
        rows = range(len(self))
        hashes = np.fromiter((hash(self._split(row)[0]) for row in rows), dtype=np.int64, count=len(self))
        _, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        return frozenset(np.flatnonzero(counts[which] > 1).tolist())

    def _split(self, row: int) -> tuple[str, str]:
        """Returns the key without what is the same in others, and the ending. A list names images, whatever
        they are called."""
        return split(self.name(row)) if self._listed else self._endings.split(self.name(row))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def base(self) -> str:
        """Returns what the names begin from."""
        return self._base

    def name(self, row: int) -> str:
        """Returns the relative path of an image."""
        return os.fsdecode(self._blob[self._ends[row] : self._ends[row + 1]])

    def read(self, number: int, row: int) -> Sample:
        name = self.name(row)
        stem, extension = self._split(row)
        data = self._bytes(name)
        assert data is not None
        fields = {extension if self._listed else self._endings.called(extension): data}
        for ending in self._beside:
            more = self._bytes(f"{stem}.{ending}", absent=True)
            if more is not None:
                fields[self._endings.called(ending)] = more
        return Sample(SampleRef(number, row), self.key(row), fields)

    def _bytes(self, name: str, absent: bool = False) -> bytes | None:
        """Returns the bytes of a file; absent: None for one that is not there. Raises StorageError, TarError."""
        path = os.path.join(self._base, name)
        try:
            file = open_plain(path)
        except OSError as error:
            if absent and isinstance(error, FileNotFoundError):
                return None
            raise StorageError(f"{path}: {error.strerror}") from error
        except StorageError as error:
            raise TarError(str(error)) from error
        with open(file, "rb") as opened:
            size = os.fstat(file).st_size
            if size > MOST_SAMPLE:
                raise TarError(f"{size} bytes, more than {MOST_SAMPLE}")
            try:
                return opened.read(size)
            except OSError as error:
                raise StorageError(f"{path}: {error.strerror}") from error

    def is_there(self, row: int) -> bool:
        """Returns whether the folder of an image can be listed, so that it is the file and not the storage that
        failed."""
        try:
            with os.scandir(os.path.dirname(os.path.join(self._base, self.name(row))) or ".") as entries:
                return next(entries, None) is not None
        except OSError:
            return False

    def key(self, row: int) -> str:
        return self.name(row) if row in self._doubled else self._split(row)[0]

    def iter_keys(self) -> Iterator[str]:
        return (self.key(row) for row in range(len(self)))

    def iter_labels(self, rows: Iterable[int], ending: str = "cls") -> Iterator[tuple[str | None, bytes | None]]:
        label = next((one for one in self._beside if self._endings.called(one) == ending), None)
        for row in rows:
            yield self.key(row), self._bytes(f"{self._split(row)[0]}.{label}", absent=True) if label else None

    def keys(self) -> list[str]:
        return list(self.iter_keys())


def listed_in(file: Path) -> FolderShard:
    """Opens the images that a file names, one path a line, from the file's own folder where they are relative.

    They are looked for when they are read. Raises RequestError for a line that names no image, or one again.
    """
    shard = FolderShard(file, _lines(file), file.parent)
    hashes = np.fromiter((hash(shard.name(row)) for row in range(len(shard))), dtype=np.int64, count=len(shard))
    order = np.argsort(hashes, kind="stable")
    for first in np.flatnonzero(np.diff(hashes[order]) == 0).tolist():
        one, other = int(order[first]), int(order[first + 1])
        if shard.name(one) == shard.name(other):
            raise RequestError(f"{file}: {shard.name(one)} is listed twice; list each image once")
    return shard


def these(paths: Sequence[str]) -> FolderShard:
    """Opens images named one by one."""
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
                        f"{file}, line {number}: {name[:200]!r} is no image; a list has one path a line, each ending "
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


class _Beside:
    """Learns what lies beside the images of a folder. found: endings that some image has beside it."""

    def __init__(self, endings: Endings):
        self._rule, self.found = endings, set[str]()
        self._loose = {*LOOSE, *(ending for ending, _ in endings.given)}
        self._tried: dict[str, int] = {}
        self._alone, self._first_alone = 0, ""

    def is_image(self, name: bytes) -> bool:
        """Returns whether a file that ends as images do is one; a name with one dot is told at a glance, of millions."""
        return (self._rule.plain and name.count(b".") == 1) or self._rule.is_image(
            self._rule.split(os.fsdecode(name))[1]
        )

    def look_at(self, folder: bytes, name: bytes) -> None:
        """Looks at a file that is no image: notes its ending where an image lies beside it, counts companions
        without one."""
        stem, ending = self._rule.split(os.fsdecode(name))
        companion = self._rule.is_companion(ending)
        if not (companion or ending in self._loose) or (ending in self.found and not companion):
            return
        if os.fsdecode(name)[len(stem) + 1 :] != ending:
            return  # capital letters: it would not be found again
        self._tried[ending] = self._tried.get(ending, 0) + 1
        if self._tried[ending] > _TRIED and not companion:
            self.found.add(ending)
        elif self._has_image(os.path.join(os.fsdecode(folder), stem)):
            self.found.add(ending)
        elif companion:
            self._first_alone = self._first_alone or os.path.join(os.fsdecode(folder), os.fsdecode(name))
            self._alone += 1

    def _has_image(self, path: str) -> bool:
        ends = [self._rule.image] if self._rule.image else [e for e in IMAGE_ENDINGS if self._rule.is_image(e)]
        return any(os.path.exists(f"{path}.{form}") for end in ends for form in (end, end.upper(), end.capitalize()))

    def tell(self, path: Path) -> None:
        if self._alone:
            log.warning(
                f"{path}: {self._alone} files whose ending says that they belong to an image, the first "
                f"{self._first_alone[:200]!r}, have none of their name, and are not trained on; data.image= and "
                "data.fields= say otherwise"
            )


def _walk(path: bytes, prefix: bytes, above: tuple[tuple[int, int], ...], beside: _Beside) -> Iterator[list[bytes]]:
    """Yields relative names of images in the order of whole paths, in short lists. above: (device, inode) of
    the way here."""
    try:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in above:
            log.warning(f"{os.fsdecode(path)} is a link to a folder above it, passed over")
            return
        above = (*above, (status.st_dev, status.st_ino))
        entries = _entries(path, beside)
    except OSError as error:
        raise StorageError(f"{os.fsdecode(path)}: {error.strerror}") from error
    names: list[bytes] = []
    for entry in entries:
        name = bytes(entry)
        if name.endswith(b"/"):
            if names:
                yield names
                names = []
            yield from _walk(os.path.join(path, name[:-1]), prefix + name, above, beside)
        else:
            names.append(prefix + name)
            if len(names) == _CHUNK:
                yield names
                names = []
    if names:
        yield names


def _entries(path: bytes, beside: _Beside) -> np.ndarray:
    """Returns images and folders (with a slash behind) of one folder, sorted. bytes [n] of the longest name's width."""
    parts: list[np.ndarray] = []
    names: list[bytes] = []
    with os.scandir(path) as found:
        for entry in found:
            name = entry.name
            if entry.is_dir():
                names.append(name + b"/")
            elif name.startswith(b"."):
                continue
            elif name.lower().endswith(_ENDINGS) and beside.is_image(name):
                names.append(name)
            else:
                beside.look_at(path, name)
            if len(names) == _CHUNK:
                parts.append(np.array(names))
                names = []
    parts.append(np.array(names, dtype=np.bytes_) if not names else np.array(names))
    return np.sort(np.concatenate(parts))
