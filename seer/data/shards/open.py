"""Opens shards: tar files of images with a sidecar index (`index`), so that row i is one seek and one read.

A tar without an index is walked once at the start (15 us a row: headers alone are read, so its rows have no CRC to be
checked by), and nothing is written beside it. With an index and a manifest that agree with the archive's size, opening
costs two look-ups in the file system: the index itself is read when a row is first wanted. Open archives and indexes in
memory are bounded apart from each other, since a descriptor is scarce and an index dear: with 100,000 shards an archive
that is opened again finds its index still there. A folder of loose images acts as one shard (`folder`).

webdataset writes the archives (`writing`) and can read them; reading is ours. Next: remote URLs (a cache on local disk).
"""

import hashlib
import json
import os
import resource
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from zlib_ng.zlib_ng import crc32

from seer.core.errors import RequestError, StorageError
from seer.core.log import log
from seer.core.records import Sample, SampleRef
from seer.data.shards import archives
from seer.data.shards import index as indexes
from seer.data.shards.folder import FolderShard, listed_in, these
from seer.data.shards.index import (
    INDEX_SUFFIX,
    KEEPS_ENDING,
    MARK,
    MOST_SAMPLE,
    Notes,
    build_index,
    mapped,
    named_by,
    read_index,
)
from seer.data.shards.names import IMAGE_ENDINGS, WITH_COMPANIONS, Asked, Endings, asked
from seer.data.shards.source import Found, expand, is_image, is_list, refuse_unfinished
from seer.data.shards.tar import HEAD, ChecksumError, TarError, plain_member, walk
from seer.data.shards.writer import JOURNAL, SHARDS_MANIFEST, write_shards

__all__ = [
    "SHARDS_MANIFEST",
    "FolderShard",
    "Shard",
    "TarShard",
    "build_index",
    "class_names",
    "fingerprint",
    "folder_of",
]
__all__ += ["image_of", "open_shards", "read_index", "write_shards"]
MOST_OPEN = 65_536  # archives, where the system allows twice as many descriptors
MOST_INDEXED = 256 << 20  # bytes of indexes in memory: 16 million rows


class Shard(Protocol):
    """Holds rows of samples. `identity` names the content for fingerprints; `read` may be called from any
    thread. classes: what the numbers in `cls` members mean, where a manifest tells. iter_labels: the key and
    the `cls` of each of some rows, with no image read; a key of None where the headers of a row are damaged."""

    @property
    def path(self) -> Path: ...

    @property
    def identity(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    def __len__(self) -> int: ...

    def read(self, number: int, row: int) -> Sample: ...

    def key(self, row: int) -> str: ...

    def iter_keys(self) -> Iterator[str]: ...

    def iter_labels(self, rows: Iterable[int]) -> Iterator[tuple[str | None, bytes | None]]: ...

    def keys(self) -> list[str]: ...


class _Archive:
    """Holds an open archive. Closed when nobody holds it any more, so no reader loses it to the limit."""

    __slots__ = ("file",)

    def __init__(self, path: str):
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

    entry: what the manifest says of it; classes: what it names for all; asked: of the names of members. Raises TarError,
    StorageError. There may be 100,000, hence strings and slots.
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
    ):
        self.name, self._check_crc, self._opened, self._asked = str(path), check_crc, opened or Opened(), asked
        self.classes = classes
        self._rule: Endings | None = None
        self._own: np.ndarray | None = None  # the index of a tar without a sidecar
        self._checksum: str | None = None
        self._sidecar: str | None = entry.get("sidecar") if entry else None  # where it does not lie beside the tar
        other = asked is not None and (asked.splits or (asked.dotted and self._older()))
        if entry is not None and not other and self._agrees(entry):
            self._count, self._size, self._checksum = entry["count"], entry["bytes"], entry["index"]
        else:
            if other or not os.path.exists(self.sidecar):
                self._walk(other)
            index = self.load_index()
            self._count, self._size, self._checksum = len(index) - 1, int(index[-1]["offset"]), indexes.checksum(index)

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
        return named_by(read_index(Path(self.sidecar), self.path)) is not WITH_COMPANIONS

    def _walk(self, other: bool) -> None:
        """Makes an index of its own. other: rows are others than those of the sidecar, whose CRCs are taken where they are
        of the same runs."""
        notes = Notes()
        self._own = build_index(self.path, data=False, notes=notes, endings=self._endings(None))
        notes.inside = [f"{self.name}/{name}" for name in notes.inside]
        self._opened.notes.add(notes)
        known: dict[tuple[int, int], int] = {}
        if other and self._check_crc and os.path.exists(self.sidecar):
            known = {(at & ~MARK, size): crc for at, size, crc in read_index(Path(self.sidecar), self.path).tolist()}
        runs = [(at & ~MARK, size) for at, size, _ in self._own[:-1].tolist()]
        self._check_crc = bool(known) and all(run in known for run in runs)
        if self._check_crc:
            self._own["crc"][:-1] = [known[run] for run in runs]

    def _endings(self, index: np.ndarray | None) -> Endings:
        """Returns the rule by which members are named: that of the index, or today's; and what was asked for."""
        if self._rule is None:
            rule = WITH_COMPANIONS if index is None else named_by(index)
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
        # The first member is nearly always the image: read by itself, its bytes need not be copied out of a longer run.
        head = self._pread(file, offset, HEAD if size > HEAD else size)
        member = plain_member(head, size)
        body = self._pread(file, offset + member.data, member.size) if member else b""
        members: list[tuple[str, bytes]] = []
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
        index = self._opened.get(self)[1]
        with mapped(self.path) as buffer:
            return _key(buffer, index[row], self._endings(index))

    def iter_keys(self) -> Iterator[str]:
        index = self._opened.get(self)[1]
        endings = self._endings(index)
        with mapped(self.path) as buffer:
            for record in index[:-1]:
                yield _key(buffer, record, endings)

    def iter_labels(self, rows: Iterable[int]) -> Iterator[tuple[str | None, bytes | None]]:
        """Reads headers and the bytes of `cls`: some microseconds a row, whatever the images weigh."""
        index = self._opened.get(self)[1]
        endings = self._endings(index)
        with mapped(self.path, few=True) as buffer:
            for row in rows:
                offset, size, _ = index.item(row)
                mark, first = offset & MARK, offset & ~MARK
                names: list[str] = []
                cls: bytes | None = None
                try:
                    for member in walk(buffer[first : first + size], whole=False):
                        names.append(member.name)
                        if endings.called(endings.split(member.name)[1]) == "cls":
                            cls = bytes(buffer[first + member.data : first + member.data + member.size])
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
        if fields.keys().isdisjoint(IMAGE_ENDINGS):
            raise TarError(f"no image at byte {offset}, where the index has one")
        return Sample(ref, key, fields)
    found = [(*endings.split(name), data) for name, data in members]
    images = [i for i, (_, ending, _) in enumerate(found) if endings.is_image(ending)]
    if mark >> 1 >= len(images):
        raise TarError(f"no image at byte {offset}, where the index has one")
    own = images[mark >> 1]
    key = members[own][0] if mark & KEEPS_ENDING else found[0][0]
    fields = {
        name: data
        for i, (_, ending, data) in enumerate(found)
        if (name := endings.called(ending)) not in IMAGE_ENDINGS or i == own
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


def _key(buffer: memoryview, record: np.void, endings: Endings) -> str:
    offset, size, _ = record.item()
    first, names = offset & ~MARK, []
    for member in walk(buffer[first : first + size], whole=False):
        names.append(member.name)
        if not offset & KEEPS_ENDING:
            break
    if not names:
        raise TarError(f"no member at byte {first}")
    return _key_of(names, endings, offset & MARK)


def open_shards(
    source: str | Path | Sequence[str | Path],
    *,
    check_crc: bool = True,
    image: str | None = None,
    fields: Mapping[str, str] | None = None,
) -> list[Shard]:
    """Opens what a source names, in a fixed order: a folder of tars or of images, a tar, a glob, `{000..009}`,
    a .txt with a path a line, or a list of any of these.

    check_crc: compare the bytes of every row that is read with its index; without it a flipped byte of data passes.
    image: the ending of the image, where samples have several. fields: what else belongs to it, by its ending: {"mask":
    "png"} makes `a.png` the mask of `a.jpg`.

    Raises RequestError (status 78) when there is nothing, or a set of shards that is not finished, naming the source;
    StorageError when tars are missing that a folder's manifest names; TarError for a damaged archive.
    """
    names = asked(image, fields)
    sources = [source] if isinstance(source, str | Path) else list(source)
    paths: list[str] = []
    entries: dict[str, Mapping[str, Any] | None] = {}
    classes: dict[str, tuple[str, ...]] = {}  # by path
    for one in sources:
        found = expand(str(one))
        named = {path: entry for folder in found.manifests for path, entry in _manifest(folder, classes).items()}
        paths += _all_named(found, named) if named else found.paths
        entries.update(named)
    if len(set(paths)) < len(paths):
        repeated = next(path for path, times in Counter(paths).items() if times > 1)
        raise RequestError(f"shard {repeated} is listed twice; list each shard once")
    for folder in dict.fromkeys(path[: path.rfind("/") + 1] for path in paths if path not in entries):
        if os.path.exists(folder + JOURNAL):
            refuse_unfinished(folder)
        entries.update(_manifest(folder, classes))
    shards: list[Shard] = []
    opened = Opened()
    for path in _joined(paths):
        entry = entries.get(path) if isinstance(path, str) else None
        shard: Shard
        try:
            if not isinstance(path, str):
                shard = these(path)
            elif entry is None and os.path.isdir(path):
                shard = FolderShard(Path(path), asked=names)
            elif entry is None and is_list(path):
                shard = listed_in(Path(path))
            else:
                shard = TarShard(path, check_crc, entry=entry, opened=opened, classes=classes.get(path), asked=names)
        except TarError as error:
            raise TarError(f"{path}: {error}") from error
        if len(shard) == 0:
            looked = f"by {names}" if names else f"looked for {', '.join(sorted(IMAGE_ENDINGS))}"
            raise RequestError(f"no images in {shard.path}; {looked}")
        shards.append(shard)
    tell(opened.notes)
    return shards


def tell(notes: Notes) -> None:
    """Warns of what the names in tars say, where there is something to say."""
    archives.tell("archives in tars", notes.inside)
    if notes.alone:
        log.warning(
            f"{notes.alone} members whose ending says that they belong to an image, the first {notes.first_alone[:200]!r}, "
            "have no image of their name, and are not trained on; where the images are called otherwise, like "
            "NAME.input.jpg, data.image=input.jpg joins them, and data.fields={depth: deep.png} says what else is theirs (of "
            "`seer shard`: image=, fields=)"
        )
    if notes.alike:
        log.warning(
            f"{notes.alike} images have the name of the one before them up to the first dot, like "
            f"{' and '.join(repr(name[:200]) for name in notes.first_alike)}: each is a sample of its own; where they belong together, "
            "data.image=left.jpg says which is the image and data.fields={right: right.jpg} what is beside it (of "
            "`seer shard`: image=, fields=)"
        )


def _joined(paths: Iterable[str]) -> Iterator[str | list[str]]:
    """Joins images that are named one after the other to one shard."""
    images: list[str] = []
    for path in paths:
        if is_image(path) and not os.path.isdir(path):
            images.append(path)
            continue
        if images:
            yield images
            images = []
        yield path
    if images:
        yield images


def fingerprint(shards: Iterable[Shard]) -> str:
    """Names the data: shards in order with their counts and index checksums. 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(s.identity for s in shards).encode()).hexdigest()[:16]


def class_names(shards: Sequence[Shard]) -> list[str]:
    """Returns the names of the folders that directly hold the images, sorted: class i is the i-th."""
    return sorted({folder_of(key) for shard in shards for key in shard.iter_keys()})


def folder_of(key: str) -> str:
    return key.rsplit("/", 2)[-2] if "/" in key else ""


def image_of(sample: Sample) -> bytes:
    """Returns the one image among a sample's members."""
    return next(data for extension, data in sample.fields.items() if extension in IMAGE_ENDINGS)


def _all_named(found: Found, named: Mapping[str, object]) -> list[str]:
    """Returns the paths of a searched folder with manifests. Tars that these name must be there, or lie
    elsewhere where they name indexes alone; tars that they do not name (an index may be older) are read."""
    there, folders = set(found.paths), tuple(folder for folder in found.manifests if folder)
    absent = [path for path in named if path not in there]
    elsewhere = [path for path in absent if path.startswith("/") and not path.startswith(folders)]
    if len(elsewhere) < len(absent):
        missing = sorted(set(absent) - set(elsewhere))
        raise StorageError(
            f"{len(missing)} of {len(named)} tars that {SHARDS_MANIFEST} names are missing, the first {missing[0]}; restore "
            f"them, or delete {SHARDS_MANIFEST} beside them to go on with those that are left"
        )
    if elsewhere and found.loose:
        raise RequestError(
            f"{found.manifests[0] or '.'}{SHARDS_MANIFEST} names tars that lie elsewhere, like {elsewhere[0]}, beside loose "
            f"images, like {found.loose}; keep them in folders of their own"
        )
    if len(there) == 1 and os.path.isdir(found.paths[0]):  # there is no tar
        return elsewhere or found.paths
    more = [path for path in found.paths if path not in named and path.startswith(tuple(found.manifests))]
    if more:
        log.warning(f"{len(more)} tars are read that {SHARDS_MANIFEST} beside them does not name, the first {more[0]}")
    return found.paths + elsewhere


def _manifest(folder: str, classes: dict[str, tuple[str, ...]]) -> dict[str, Mapping[str, Any] | None]:
    """Returns entries by path, or None for one without the checksum of its index; nothing where there is no manifest.

    folder: with its slash. A name may be the whole path of a tar that lies elsewhere. classes: receives, by path, the
    names of the classes where the manifest has them.
    """
    try:
        with open(folder + SHARDS_MANIFEST, encoding="utf-8") as file:
            manifest = json.load(file)
        entries: dict[str, Mapping[str, Any] | None] = {
            one["name"] if one["name"].startswith("/") else folder + one["name"]: _entry(folder, one)
            for one in manifest["shards"]
        }
        names = manifest.get("classes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # a file of this name that is not ours; the indexes say the same
    if isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
        classes.update(dict.fromkeys(entries, tuple(names)))
    return entries


def _entry(folder: str, one: dict[str, Any]) -> dict[str, Any] | None:
    if not (type(one.get("count")) is type(one.get("bytes")) is int and type(one.get("index")) is str):
        return None
    if "sidecar" in one:
        one["sidecar"] = folder + one["sidecar"]
    return one
