"""Reads a folder of loose images as one shard, nested as it likes, in the order of the names; or a list, in its own.

Ten million names as Python strings would take a gigabyte: here they are one block of bytes and a column of offsets, about
their own length each. Folders are walked one by one with their entries sorted ("x/" sorts as the folder x), which gives
the order of the whole relative paths without ever holding them as a list. Links are followed, but not into a folder that
the walk is already in. Hidden files and folders are passed over; all that is not read is counted by kind (`census`).

Of what lies beside an image (`a.txt`, `a.json`, `a.cls`, `a.mask.png`), no name is kept: only which endings any image of the
folder has beside it, and these are looked for when an image is read. So it is for images that a list names.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from seer.core.errors import RequestError, StorageError
from seer.core.log import log
from seer.core.records import Sample, SampleRef
from seer.data.shards.census import BROKEN_LINK, HIDDEN, LINK_ABOVE, Census, concealed, kind_of
from seer.data.shards.index import MOST_SAMPLE, open_plain
from seer.data.shards.lists import numbered_lines
from seer.data.shards.names import IMAGE_ENDINGS, WITH_COMPANIONS, Asked, Endings, split
from seer.data.shards.parallel_folder import ParallelFolder
from seer.data.shards.same_names import SameNames, among, is_plain
from seer.data.shards.tar import TarError

_CHUNK = 65_536  # names held as Python objects at a time
ENDINGS = tuple(f".{extension}" for extension in sorted(IMAGE_ENDINGS))
_ENDINGS = tuple(ending.encode() for ending in ENDINGS)


class FolderShard:
    """Holds loose images as one shard. Raises StorageError for an image that is gone, TarError for one that is
    no plain file or too large.

    classes: none, since what lies in folders is named by them.
    names: of images, in short lists; those in the folder itself when they are not given. base: what they begin from.
    rule: of names. census: what was found in the folder.
    """

    classes: tuple[str, ...] | None = None

    def __init__(
        self,
        path: Path,
        names: Iterable[list[bytes]] | None = None,
        base: Path | None = None,
        asked: Asked | None = None,
        rule: Endings = WITH_COMPANIONS,
    ):
        self.path, self._base = path, str(path if base is None else base)
        self._endings = rule if asked is None else asked.over(rule)
        self._listed = names is not None
        self.census = Census()
        walk = _Walk(self._endings, self.census)
        blob, ends, digest = bytearray(), [np.zeros(1, dtype=np.int64)], hashlib.sha256()
        at, kinds, folders, plain = 0, set[bytes](), set[bytes](), True
        for some in walk.names(os.fsencode(path)) if names is None else names:
            if names is not None:
                self._count(some)
            digest.update((b"\n" if at else b"") + b"\n".join(some))
            blob += (joined := b"".join(some))
            plain = plain and is_plain(joined)
            kinds.update(name[name.rfind(b".") :] for name in some)
            if self._listed:
                folders.update(name[: name.rfind(b"/") + 1] for name in some)
            lengths = np.fromiter(map(len, some), dtype=np.int64, count=len(some))
            ends.append(at + np.cumsum(lengths))
            at = len(blob)
        self._blob, self._ends = bytes(blob), np.concatenate(ends)  # name i is blob[ends[i]:ends[i + 1]]
        for folder in folders:
            walk.look_around(os.path.join(os.fsencode(self._base), folder))
        self._beside = tuple(sorted(walk.found))
        self._doubled = self._same_names() if len(kinds) > 1 and names is None else frozenset()
        named = "" if asked is None or self._listed else f":{asked}"  # of a list, rows are the same whatever is asked
        self.identity = f"{path.name}:{len(self)}:{digest.hexdigest()[:16]}{named}"
        folders_asked = () if asked is None else asked.folders
        self._parallel = [
            ParallelFolder(name, place, self._base, lambda row: self._split(row)[0], len(self), self._listed)
            for name, place in folders_asked
        ]
        if not plain:
            _tell_same(path, among(len(self), self.name))
        if not self._listed:  # what lies beside what a list leaves out is nobody's concern
            walk.tell(path)

    def _count(self, names: Iterable[bytes]) -> None:
        for name in names:
            self.census.use(os.fsdecode(name.rpartition(b"/")[0].rpartition(b"/")[2]), 1)

    def _same_names(self) -> frozenset[int]:
        """Returns the rows whose name another one has, too, with another ending: their keys keep it."""
        rows = range(len(self))
        hashes = np.fromiter((hash(self._split(row)[0]) for row in rows), dtype=np.int64, count=len(self))
        _, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        return frozenset(np.flatnonzero(counts[which] > 1).tolist())

    def _split(self, row: int) -> tuple[str, str]:
        """Returns the key without what is the same in others, and the ending. A list names images, whatever
        they are called."""
        key, ending = self._endings.split(self.name(row))
        return split(self.name(row)) if self._listed and not self._endings.is_image(ending) else (key, ending)

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
        named = self._listed and not self._endings.is_image(extension)  # whatever it would be in a folder
        fields = {extension if named else self._endings.called(extension): data}
        for ending in self._beside:
            more = self._bytes(f"{stem}.{ending}", absent=True)
            if more is not None:
                fields[self._endings.called(ending)] = more
        for parallel in self._parallel:
            for called, path in parallel.candidates(stem):
                more = self._bytes(path, absent=True)
                if more is not None:
                    fields[called] = more
                    break
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

    def image_name(self, row: int) -> str:
        return self.name(row)

    def iter_keys(self) -> Iterator[str]:
        return (self.key(row) for row in range(len(self)))

    def iter_labels(self, rows: Iterable[int], ending: str = "cls") -> Iterator[tuple[str | None, bytes | None]]:
        label = next((one for one in self._beside if self._endings.called(one) == ending), None)
        for row in rows:
            yield self.key(row), self._bytes(f"{self._split(row)[0]}.{label}", absent=True) if label else None

    def keys(self) -> list[str]:
        return list(self.iter_keys())


def file_name(shard: object, row: int) -> str | None:
    """Returns what the file of a row is called, with its ending; None for a row of an archive."""
    return shard.name(row) if isinstance(shard, FolderShard) else None


def place_of(shard: Any, row: int) -> str:
    """Returns where people find an image: the path of its file, or of its archive with the number of the row."""
    name = file_name(shard, row)
    return f"{shard.path} row {row}" if name is None else os.path.join(shard.base, name)


def listed_in(file: Path, asked: Asked | None = None) -> FolderShard:
    """Opens the images that a file names, one path a line, from the file's own folder where they are relative.

    They are looked for when they are read. Raises RequestError for a line that names no image, or one again.
    """
    shard = FolderShard(file, _lines(file), file.parent, asked)
    hashes = np.fromiter((hash(shard.name(row)) for row in range(len(shard))), dtype=np.int64, count=len(shard))
    order = np.argsort(hashes, kind="stable")
    for first in np.flatnonzero(np.diff(hashes[order]) == 0).tolist():
        one, other = int(order[first]), int(order[first + 1])
        if shard.name(one) == shard.name(other):
            raise RequestError(f"{file}: {shard.name(one)} is listed twice; list each image once")
    return shard


def these(paths: Sequence[str], asked: Asked | None = None) -> FolderShard:
    """Opens images named one by one."""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [os.fsencode(os.path.relpath(path, folder or ".")) for path in paths]
    return FolderShard(Path(folder), [names], asked=asked)


def _tell_same(path: Path, same: SameNames) -> None:
    if same.count:
        log.warning(
            f"{path}: {same.count} images differ in their name from another one by case or the spelling of accents alone, like "
            f"{' and '.join(repr(name[:200]) for name in same.first)}: each is read here; copied to a disk that takes such names "
            "for one, one of them would be lost"
        )


def _lines(file: Path) -> Iterator[list[bytes]]:
    names: list[bytes] = []
    for number, name in numbered_lines(file):
        if not name.lower().endswith(_ENDINGS):
            raise RequestError(
                f"{file}, line {number}: {name[:200]!r} is no image by its ending; a list has one path a line, each ending "
                f"in {', '.join(ENDINGS)}, or each in .tar"
            )
        names.append(name)
        if len(names) == _CHUNK:
            yield names
            names = []
    if names:
        yield names


class _Walk:
    """Walks a folder. found: endings of what some image has beside it. census: receives the counts. endings: the rule for
    names; by an older one hidden folders are walked like others, and links that lead nowhere are images."""

    def __init__(self, endings: Endings, census: Census):
        self._rule, self._census, self.found = endings, census, set[str]()
        self._ends = tuple(f".{ending}".encode() for ending in sorted(endings.images))
        self._alone, self._first_alone = 0, ""

    def names(
        self, path: bytes, prefix: bytes = b"", above: tuple[tuple[int, int], ...] = (), kind: str | None = None
    ) -> Iterator[list[bytes]]:
        """Yields relative names of images in the order of whole paths, in short lists. above: (device, inode) of the way
        here. kind: why nothing is taken from here on."""
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in above:
                log.warning(f"{os.fsdecode(path)} is a link to a folder above it, passed over")
                self._census.pass_over(LINK_ABOVE)
                return
            above = (*above, (status.st_dev, status.st_ino))
            entries = self._entries(path, kind)
        except OSError as error:
            if kind is not None:  # nothing would be read of it
                self._census.pass_over(kind)
                return
            raise StorageError(f"{os.fsdecode(path)}: {error.strerror}") from error
        folder = os.path.basename(os.path.dirname(os.fsdecode(prefix)))
        names: list[bytes] = []
        for entry in entries:
            name = bytes(entry)
            if name.endswith(b"/"):
                if names:
                    self._census.use(folder, len(names))
                    yield names
                    names = []
                inside = os.path.join(path, name[:-1])
                yield from self.names(
                    inside, prefix + name, above, kind or self._rule.conceal(f"{name.decode('latin')}x")
                )
                continue
            names.append(prefix + name)
            if len(names) == _CHUNK:
                self._census.use(folder, len(names))
                yield names
                names = []
        if names:
            self._census.use(folder, len(names))
            yield names

    def _entries(self, path: bytes, kind: str | None) -> np.ndarray:
        """Returns images and folders (with a slash behind) of one folder, sorted. bytes [n] of the longest name's width."""
        taken, others = _Names(), _Names()
        with os.scandir(path) as found:
            for entry in found:
                name = entry.name
                if _is_folder(entry):
                    taken.add(name + b"/")
                elif kind is not None:
                    self._census.pass_over(kind)
                elif name.startswith(b"."):
                    self._census.pass_over(concealed(os.fsdecode(name)) or HIDDEN)
                elif self._rule.conceals and entry.is_symlink() and _is_broken(entry):
                    self._census.pass_over(BROKEN_LINK)
                elif name.lower().endswith(self._ends) and self._is_image(name):
                    taken.add(name)
                elif self._may_belong(name):
                    others.add(name)
                else:
                    text = os.fsdecode(name)
                    self._census.pass_over(kind_of(text, self._rule.split(text)[1]))
        names = taken.array()
        if others:
            self._sort_out(path, names, others.array())
        return np.sort(names)

    def _is_image(self, name: bytes) -> bool:
        """Returns whether a file that ends as images do is one; a name with one dot is told at a glance, of millions."""
        if self._rule.ordinary and name.count(b".") == 1:
            return True
        return self._rule.is_image(self._rule.split(os.fsdecode(name))[1])

    def look_around(self, folder: bytes) -> None:
        """Learns what lies beside the images of a folder, for those that a list names; one that cannot be listed says so when
        an image is read."""
        taken, others = _Names(), _Names()
        with suppress(OSError), os.scandir(folder or b".") as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(b"."):
                    continue
                if name.lower().endswith(self._ends) and self._is_image(name):
                    taken.add(name)
                elif self._may_belong(name):
                    others.add(name)
        if others:
            stems = {self._rule.split(os.fsdecode(name))[0] for name in _each(taken.array())}
            for name in _each(others.array()):
                stem, ending = self._rule.split(os.fsdecode(name))
                if stem in stems:
                    self.found.add(ending)

    def _may_belong(self, name: bytes) -> bool:
        """Returns whether a file is read with an image of its name, where there is one. Capital letters: it would not be
        found again."""
        text = os.fsdecode(name)
        stem, ending = self._rule.split(text)
        return self._rule.belongs(ending) and text[len(stem) + 1 :] == ending

    def _sort_out(self, path: bytes, names: np.ndarray, others: np.ndarray) -> None:
        """Counts the files of a folder that belong to its images, and those that would if there were one of their name.

        names, others: bytes [n]. Eight bytes a name are held besides, and no name as a Python string.
        """
        rule = self._rule
        images = (rule.split(os.fsdecode(name))[0] for name in _each(names) if not name.endswith(b"/"))
        stems = np.fromiter(map(hash, images), dtype=np.int64)
        own = np.fromiter((hash(rule.split(os.fsdecode(name))[0]) for name in _each(others)), dtype=np.int64)
        for name, has in zip(_each(others), np.isin(own, stems).tolist(), strict=True):
            text = os.fsdecode(name)
            ending = rule.split(text)[1]
            if has:
                self._census.belong(ending)
                self.found.add(ending)
                continue
            self._census.pass_over(kind_of(text, ending))
            if rule.is_companion(ending):
                self._first_alone = self._first_alone or os.path.join(os.fsdecode(path), text)
                self._alone += 1

    def tell(self, path: Path) -> None:
        """Warns of companions without an image, where there are some."""
        if self._alone:
            log.warning(
                f"{path}: {self._alone} files whose ending says that they belong to an image, the first "
                f"{self._first_alone[:200]!r}, have none of their name, and are not trained on; data.image= and "
                "data.fields= say otherwise"
            )


class _Names:
    """Collects names as numpy's bytes, since Python's are three times as large."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._some: list[bytes] = []

    def add(self, name: bytes) -> None:
        self._some.append(name)
        if len(self._some) == _CHUNK:
            self._parts.append(np.array(self._some))
            self._some = []

    def __bool__(self) -> bool:
        return bool(self._parts or self._some)

    def array(self) -> np.ndarray:
        """Returns bytes [n] of the longest name's width."""
        last = np.array(self._some) if self._some else np.array([], dtype=np.bytes_)
        return np.concatenate([*self._parts, last])


def _each(names: np.ndarray) -> Iterator[bytes]:
    for first in range(0, len(names), _CHUNK):
        yield from names[first : first + _CHUNK].tolist()


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    """Returns whether an entry is a folder or a link to one. A link to itself is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def _is_broken(link: os.DirEntry[bytes]) -> bool:
    """Returns whether a link leads nowhere. Whatever else is wrong with it is told when it is read."""
    try:
        link.stat()
    except FileNotFoundError:
        return True
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
