"""Reads one tar of samples with its sidecar index (`index`), so that row i is one seek and one read.

Open archives and indexes in memory are bounded apart from each other, since a descriptor is scarce and an index dear: with
100,000 shards an archive that is opened again finds its index still there. webdataset writes the archives (`writer`) and can
read them; reading is ours.
"""

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng.zlib_ng import crc32

from seer.core.errors import StorageError
from seer.core.records import Sample, SampleRef
from seer.data.shards import index as indexes
from seer.data.shards.census import Census
from seer.data.shards.index import (
    INDEX_SUFFIX,
    KEEPS_ENDING,
    MARK,
    MOST_SAMPLE,
    Notes,
    build_index,
    follows,
    is_linked,
    mapped,
    named_by,
    read_index,
)
from seer.data.shards.links import Links, there
from seer.data.shards.names import BY_LAST_DOT, WITH_COMPANIONS, Asked, Endings
from seer.data.shards.tar import HEAD, ChecksumError, TarError, plain_member, walk

MOST_OPEN = 65_536  # archives, where the system allows twice as many descriptors


MOST_INDEXED = 256 << 20  # bytes of indexes in memory: 16 million rows


class _Archive:
    """Holds an open archive. Closed when nobody holds it any more, so no reader loses it to the limit."""

    __slots__ = ("file", "links")

    def __init__(self, path: str):
        self.links: Links | None = None  # once they were asked for
        try:
            self.file = indexes.open_plain(path)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)


class Opened:
    """Keeps archives open and indexes in memory; of each kind the one used longest ago goes first."""

    def __init__(self) -> None:
        self._most = _most_open()
        self._archives: OrderedDict[str, _Archive] = OrderedDict()
        self._indexes: OrderedDict[str, np.ndarray] = OrderedDict()
        self._indexed = 0  # bytes
        self.notes = Notes()  # of the tars that were walked, names as TAR/NAME
        self._lock = threading.Lock()

    def get(self, shard: "TarShard") -> tuple[_Archive, np.ndarray]:
        """Returns a shard's archive and its index, INDEX [rows + 1]."""
        path = shard.name
        with self._lock:
            archive, index = self._archives.get(path), self._indexes.get(path)
            if archive is not None and index is not None:
                self._archives.move_to_end(path)
                self._indexes.move_to_end(path)
                return archive, index
        index = shard.load_index() if index is None else index
        archive = _Archive(path) if archive is None else archive
        with self._lock:
            self._archives[path] = archive
            self._archives.move_to_end(path)
            while len(self._archives) > self._most:
                self._archives.popitem(last=False)
            if path not in self._indexes:
                self._indexed += index.nbytes
            self._indexes[path] = index
            self._indexes.move_to_end(path)
            while self._indexed > MOST_INDEXED and len(self._indexes) > 1:
                self._indexed -= self._indexes.popitem(last=False)[1].nbytes
        return archive, index


def _most_open() -> int:
    """Returns half of the descriptors that this process may have, for which it first asks for more: the usual
    1024 are meant for programs that call select(2), which fails beyond; nothing here does, nor do torch and
    gloo, which poll. The hard limit may be a thousand million, so no more is asked for than is of use, as other
    programs close all that they might have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, 2 * MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # forbidden: then as many as there are
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return MOST_OPEN if soft == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, soft // 2))


class TarShard:
    """Reads one tar file, by `pread`, so threads and forked processes share a descriptor without a lock.

    entry: what the manifest says of it; classes: what it names for all; asked: of the names of members; rule: of names, by
    which a tar without an index is walked. Raises TarError, StorageError. There may be 100,000, hence strings and slots.
    """

    __slots__ = (
        "_asked",
        "_check_crc",
        "_checksum",
        "_count",
        "_opened",
        "_own",
        "_rule",
        "_sidecar",
        "_size",
        "_walks_by",
        "classes",
        "name",
    )

    def __init__(
        self,
        path: Path | str,
        check_crc: bool = True,
        *,
        entry: Mapping[str, Any] | None = None,
        opened: Opened | None = None,
        classes: tuple[str, ...] | None = None,
        asked: Asked | None = None,
        rule: Endings = WITH_COMPANIONS,
    ):
        self._walks_by = rule
        self.name, self._check_crc, self._opened, self._asked = str(path), check_crc, opened or Opened(), asked
        self.classes = classes
        self._rule: Endings | None = None
        self._own: np.ndarray | None = None  # the index of a tar without a sidecar
        self._checksum: str | None = None
        self._sidecar: str | None = entry.get("sidecar") if entry else None  # where it does not lie beside the tar
        other = asked is not None and (asked.splits(rule) or (asked.dotted and self._older()))
        if entry is not None and not other and self._agrees(entry):
            self._count, self._size, self._checksum = entry["count"], entry["bytes"], entry["index"]
        else:
            if other or not os.path.exists(self.sidecar):
                self._walk(other)
            index = self.load_index()
            self._count, self._size, self._checksum = len(index) - 1, int(index[-1]["offset"]), indexes.checksum(index)

    @property
    def census(self) -> Census:
        """Returns the counts of all tars that were opened with this one and had to be walked."""
        return self._opened.notes.census

    @property
    def walked(self) -> bool:
        return self._own is not None

    @property
    def path(self) -> Path:
        return Path(self.name)

    @property
    def identity(self) -> str:
        named = "" if self._asked is None else f":{self._asked}"
        return f"{self.name.rpartition('/')[2]}:{self._count}:{self._size}:{self._checksum}{named}"

    @property
    def sidecar(self) -> str:
        return self._sidecar or self.name + INDEX_SUFFIX

    def _older(self) -> bool:
        """Returns whether the sidecar was made by the older rule, so that companions may be rows of it."""
        if not os.path.exists(self.sidecar):
            return False
        return named_by(read_index(Path(self.sidecar), self.path)) is BY_LAST_DOT

    def _walk(self, other: bool) -> None:
        """Makes an index of its own. other: rows are others than those of the sidecar, whose CRCs are taken where they are
        of the same runs."""
        notes = Notes()
        self._own = build_index(self.path, data=False, notes=notes, endings=self._endings(None))
        if self._asked is None:
            self._rule = None  # that of the index gives the same rows, and mostly in less time
        notes.inside = [f"{self.name}/{name}" for name in notes.inside]
        self._opened.notes.add(notes)
        known: dict[tuple[int, int], int] = {}
        if other and self._check_crc and os.path.exists(self.sidecar):
            before = read_index(Path(self.sidecar), self.path)
            if follows(before) == follows(self._own):
                known = {(at & ~MARK, size): crc for at, size, crc in before.tolist()}
        runs = [(at & ~MARK, size) for at, size, _ in self._own[:-1].tolist()]
        self._check_crc = bool(known) and all(run in known for run in runs)
        if self._check_crc:
            self._own["crc"][:-1] = [known[run] for run in runs]

    def _endings(self, index: np.ndarray | None) -> Endings:
        """Returns the rule by which members are named: that of the index, or today's; and what was asked for."""
        if self._rule is None:
            rule = self._walks_by if index is None else named_by(index)
            self._rule = rule if self._asked is None else self._asked.over(rule)
        return self._rule

    def _agrees(self, entry: Mapping[str, Any]) -> bool:
        """Returns whether the sizes of the archive and of its index are those of the manifest: good enough to
        read the index later."""
        try:
            sidecar = os.stat(self.sidecar).st_size
            return indexes.fits(sidecar, entry["count"]) and os.stat(self.name).st_size == entry["bytes"]
        except OSError:
            return False

    def __len__(self) -> int:
        return self._count

    @property
    def index(self) -> np.ndarray:
        """Returns INDEX [rows]."""
        return self._opened.get(self)[1][:-1]

    def load_index(self) -> np.ndarray:
        """Returns INDEX [rows + 1], from the sidecar where there was one at the start. Raises StorageError."""
        if self._own is not None:
            return self._own
        index = read_index(Path(self.sidecar), self.path)
        if self._checksum not in (None, indexes.checksum(index)):
            raise StorageError(
                f"{self.sidecar}: its checksum is {indexes.checksum(index)}, that of the manifest {self._checksum}; "
                "restore it, or write the shards again with `seer shard`"
            )
        return index

    def read(self, number: int, row: int) -> Sample:
        """Reads a row as a sample. Raises TarError when the bytes are not those the index was made from,
        StorageError when they cannot be had."""
        archive, index = self._opened.get(self)
        file = archive.file  # which stays open as long as `archive` is held
        offset, size, crc = index.item(row)
        mark, endings = offset & MARK, self._endings(index)
        offset -= mark
        if size > MOST_SAMPLE:
            raise TarError(f"sample of {size} bytes at byte {offset}, more than {MOST_SAMPLE}")
        if is_linked(index):
            members = self._read_linked(archive, index, endings, offset, size, crc)
            return _sample(SampleRef(number, row), members, endings, mark, offset)
        # The first member is nearly always the image: read by itself, its bytes need not be copied out of a longer run.
        head = self._pread(file, offset, HEAD if size > HEAD else size)
        member = plain_member(head, size)
        body = self._pread(file, offset + member.data, member.size) if member else b""
        members = []
        if member:
            members.append((member.name, body))
            if member.end == size and not self._check_crc:  # zeros follow, of which only the CRC knows
                return _sample(SampleRef(number, row), members, endings, mark, offset)
            head = head[: member.data]
        begun = len(head) + len(body)
        rest = self._pread(file, offset + begun, size - begun)
        if self._check_crc and crc32(rest, crc32(body, crc32(head))) != crc:
            raise ChecksumError(f"checksum differs from the index at byte {offset}")
        data, base = (rest[member.end - begun :], member.end) if member else (head + rest, 0)
        for one in walk(memoryview(data), whole=False, base=base) if data else ():
            members.append((one.name, data[one.data : one.data + one.size]))
        return _sample(SampleRef(number, row), members, endings, mark, offset)

    def _read_linked(
        self, archive: _Archive, index: np.ndarray, endings: Endings, offset: int, size: int, crc: int
    ) -> list[tuple[str, bytes]]:
        """Returns the members of a run in an archive with links, which may be some. Raises as `read` does."""
        data, links = self._pread(archive.file, offset, size), self._links(archive, index)
        assert links is not None
        found = crc32(data)
        try:
            run = walk(memoryview(data), whole=False, symbolic=links.symbolic)
            members = [one for one in run if there(one, links) and not endings.conceal(one.name)]
        except TarError:
            members = []  # damaged: the CRC says so, where there is one
            if not self._check_crc:
                raise
        places = links.places(members)
        if size + sum(length for _, length in places) > MOST_SAMPLE:
            raise TarError(f"sample of more than {MOST_SAMPLE} bytes at byte {offset}")
        linked = [self._pread(archive.file, at, length) for at, length in places]
        for one in linked:
            found = crc32(one, found)
        if self._check_crc and found != crc:
            raise ChecksumError(f"checksum differs from the index at byte {offset}")
        others = iter(linked)
        return [(m.name, data[m.data : m.data + m.size] if m.link is None else next(others)) for m in members]

    def _links(self, archive: _Archive, index: np.ndarray) -> Links | None:
        """Returns where the bytes of links lie: by three walks, once for as long as the archive stays open; None where there are
        no links among the members."""
        if archive.links is None and is_linked(index):
            with mapped(self.path) as buffer:
                archive.links = Links(buffer, follows(index))
        return archive.links

    def _pread(self, file: int, offset: int, size: int) -> bytes:
        try:
            data = os.pread(file, size, offset)
        except OSError as error:
            raise StorageError(f"{self.name}: reading {size} bytes at {offset} failed: {error}") from error
        if len(data) != size:
            raise TarError(f"short read at byte {offset}: {len(data)} of {size} bytes")
        return data

    def key(self, row: int) -> str:
        """Returns the name of a row, from its headers alone. Raises TarError."""
        archive, index = self._opened.get(self)
        links = self._links(archive, index)
        with mapped(self.path) as buffer:
            return _key(buffer, index[row], self._endings(index), links)

    def image_name(self, row: int) -> str:
        """Returns the whole name of the member that is the image, from headers alone. Raises TarError."""
        archive, index = self._opened.get(self)
        links = self._links(archive, index)
        record = index[row : row + 1].copy()
        record["offset"] |= KEEPS_ENDING  # by which a key is a whole name
        with mapped(self.path, few=True) as buffer:
            return _key(buffer, record[0], self._endings(index), links)

    def iter_keys(self) -> Iterator[str]:
        archive, index = self._opened.get(self)
        endings = self._endings(index)
        links = self._links(archive, index)
        with mapped(self.path) as buffer:
            for record in index[:-1]:
                yield _key(buffer, record, endings, links)

    def iter_labels(self, rows: Iterable[int], ending: str = "cls") -> Iterator[tuple[str | None, bytes | None]]:
        """Reads headers and the bytes of one member: some microseconds a row, whatever the images weigh."""
        archive, index = self._opened.get(self)
        endings = self._endings(index)
        links = self._links(archive, index)
        with mapped(self.path, few=True) as buffer:
            for row in rows:
                offset, size, _ = index.item(row)
                mark, first = offset & MARK, offset & ~MARK
                names: list[str] = []
                cls: bytes | None = None
                try:
                    for member in walk(buffer[first : first + size], whole=False, symbolic=_symbolic(links)):
                        if not there(member, links) or endings.conceal(member.name):
                            continue
                        names.append(member.name)
                        if endings.called(endings.split(member.name)[1]) == ending:
                            place = links.place(member) if links and member.link is not None else None
                            at, length = place or (first + member.data, member.size)
                            cls = bytes(buffer[at : at + length])
                    yield (_key_of(names, endings, mark) if names else None), cls
                except TarError:
                    yield None, None

    def keys(self) -> list[str]:
        return list(self.iter_keys())


def _sample(ref: SampleRef, members: Sequence[tuple[str, bytes]], endings: Endings, mark: int, offset: int) -> Sample:
    """Returns a row made of the members of its run, in their order. Of several images one is the row's, and the
    others are none of its fields. Raises TarError."""
    if not mark and endings.plain:  # nearly every row there is, 1 us less of 23
        key, fields = "", {}
        for name, data in members:
            stem, ending = endings.split(name)
            key = key or stem
            fields[ending] = data
        if fields.keys().isdisjoint(endings.images):
            raise TarError(f"no image at byte {offset}, where the index has one")
        return Sample(ref, key, fields)
    members = [(name, data) for name, data in members if not endings.conceal(name)]
    found = [(*endings.split(name), data) for name, data in members]
    images = [i for i, (_, ending, _) in enumerate(found) if endings.is_image(ending)]
    if mark >> 1 >= len(images):
        raise TarError(f"no image at byte {offset}, where the index has one")
    own = images[mark >> 1]
    key = members[own][0] if mark & KEEPS_ENDING else found[0][0]
    fields = {
        name: data
        for i, (_, ending, data) in enumerate(found)
        if (name := endings.called(ending)) not in endings.images or i == own
    }
    return Sample(ref, key, fields)


def _key_of(names: Sequence[str], endings: Endings, mark: int) -> str:
    """Returns the key of a row from the names in its run. Raises TarError."""
    if not mark & KEEPS_ENDING:
        return endings.split(names[0])[0]
    images = [name for name in names if endings.is_image(endings.split(name)[1])]
    if mark >> 1 >= len(images):
        raise TarError(f"{len(images)} images in a run of which the index has more")
    return images[mark >> 1]


def _symbolic(links: Links | None) -> bool:
    return links is not None and links.symbolic


def _key(buffer: memoryview, record: np.void, endings: Endings, links: Links | None) -> str:
    offset, size, _ = record.item()
    first, names = offset & ~MARK, []
    for member in walk(buffer[first : first + size], whole=False, symbolic=_symbolic(links)):
        if not there(member, links) or endings.conceal(member.name):
            continue
        names.append(member.name)
        if not offset & KEEPS_ENDING:
            break
    if not names:
        raise TarError(f"no member at byte {first}")
    return _key_of(names, endings, offset & MARK)
