"""Makes and reads the index beside a tar shard: where each sample lies, so that row i is one seek and one read.

Beside `x.tar` lies `x.tar.index.npy`, or in a folder of indexes whose manifest tells where: one record a sample (offset
of its first header, bytes up to the end of its last member, CRC32 of those bytes) and a last record that holds the
archive's size, by which a stale index is known.

A *sample* is a run of neighbouring members of one name, at least one of them an image (`a/0001.jpg`, `a/0001.cls`). A name
ends at the last dot, or before an ending of a closed list (`names.COMPANIONS`: `a/0001.mask.png`). Names never become paths.

Surprising: offsets are multiples of 512, and the bits below that say which of the images of its run a row is (`MARK`): two
images of one name are two rows. The `size` of the last record is the version of the rule for names, 0 wherever the older
one gives the same rows, so that indexes and fingerprints of plain names stay what they were. Its `crc` is LINKED where
members are links: the bytes that these name count for the CRC of their row, behind those of its run; with FOLLOWED there are
links among them that earlier versions passed over (`links`).
"""

import mmap
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from zlib_ng.zlib_ng import crc32

from seer.core.errors import RequestError, StorageError
from seer.data.shards import archives
from seer.data.shards.census import Census, kind_of
from seer.data.shards.links import Links
from seer.data.shards.names import (
    BY_LAST_DOT,
    FOUR_ENDINGS,
    OLDER_IMAGE_ENDINGS,
    WITH_COMPANIONS,
    Endings,
    split,
    up_to_first_dot,
)
from seer.data.shards.same_names import SameNames
from seer.data.shards.tar import TAR_BLOCK, Member, Oddities, TarError, walk

_ARCHIVES = (".tar", *archives.ENDINGS)
_LAST = frozenset(ending.rpartition(".")[2] for ending in _ARCHIVES)  # which `split` has found already
INDEX = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc", "<u4")])
INDEX_SUFFIX = ".index.npy"
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = len(_MAGIC) + 2  # the two bytes give the length of the description that follows
KEEPS_ENDING = 1  # in MARK: another row has the same name, so the key of this one is the whole name of its image
MARK = TAR_BLOCK - 1  # bits of an offset: KEEPS_ENDING, and above it which of the images of its run a row is
MOST_IMAGES = TAR_BLOCK // 2  # of one run
LINKED, FOLLOWED = 1, 2  # in the `crc` of the last record
VERSION_2 = 2  # of the rule for names: companions are taken off
VERSION = 3  # images have more endings, and hidden members are passed over; where that gives other rows than VERSION_2
_RULES = {0: BY_LAST_DOT, VERSION_2: FOUR_ENDINGS, VERSION: WITH_COMPANIONS}
MOST_SAMPLE = 256 << 20  # bytes of one sample; what is larger costs its row and is never read


@dataclass
class Notes:
    """Holds what somebody should hear of the names in archives: other archives in them, companions without an
    image, images whose names agree up to their first dot, or that some disks take for one; of archives that are sound: links
    that are passed over, and more zeros at the end than tar writes unasked; and the counts of all that lies in them."""

    inside: list[str] = field(default_factory=list)
    alone: int = 0
    first_alone: str = ""
    alike: int = 0
    first_alike: tuple[str, str] = ("", "")
    same: int = 0
    first_same: tuple[str, str] = ("", "")
    links: int = 0
    first_link: str = ""
    dangling: int = 0
    first_dangling: str = ""
    padded: list[str] = field(default_factory=list)  # archives
    census: Census = field(default_factory=Census)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Notes":
        """Returns what `dataclasses.asdict` was given."""
        return cls(**{**plain, "census": Census(**plain["census"])}) if "census" in plain else cls(**plain)

    def lead_nowhere(self, link: Member, kind: str) -> None:
        """Counts a link that leads to no file of its archive."""
        self.census.pass_over(kind)
        told = f"{link.name} -> {link.link}"
        if link.symbolic:
            self.links, self.first_link = self.links + 1, self.first_link or told
        else:
            self.dangling, self.first_dangling = self.dangling + 1, self.first_dangling or told

    def add(self, other: "Notes") -> None:
        self.inside += other.inside
        self.census.add(other.census)
        self.first_alone, self.first_alike = (
            self.first_alone or other.first_alone,
            self.first_alike if self.alike else other.first_alike,
        )
        self.alone, self.alike = self.alone + other.alone, self.alike + other.alike
        self.first_same = self.first_same if self.same else other.first_same
        self.first_link, self.first_dangling = (
            self.first_link or other.first_link,
            self.first_dangling or other.first_dangling,
        )
        self.same, self.links, self.dangling = (
            self.same + other.same,
            self.links + other.links,
            self.dangling + other.dangling,
        )
        self.padded += other.padded


def build_index(
    path: Path, data: bool = True, notes: Notes | None = None, endings: Endings = WITH_COMPANIONS
) -> np.ndarray:
    """Walks a tar once. Returns INDEX [rows + 1]; the last record holds the archive's size. Raises TarError,
    StorageError, and RequestError for what is an archive of another kind.

    data: read all bytes for their CRC; otherwise headers alone are read, and `crc` is that of each sample's headers: it
    tells other names and sizes, but rows cannot be checked by it. notes: receives what is to be told of names.
    """
    notes = Notes() if notes is None else notes
    with mapped(path) as buffer:
        try:
            rows, oddities = _Rows(buffer, data, endings, notes), Oddities()
            for member in walk(buffer, oddities=oddities, symbolic=endings.links):
                if rows.holds(member):
                    rows.add(member)
            notes.links, notes.first_link = notes.links + oddities.links, notes.first_link or oddities.first_link
            notes.padded += [str(path)] if oddities.padding else []
            return rows.index()
        except TarError as error:
            what = None if _begins(buffer) else archives.what_it_is(path, bytes(buffer[:512]))
            if what is None:
                raise
            raise RequestError(what) from error


def _begins(buffer: memoryview) -> bool:
    """Returns whether the first header is that of a tar."""
    try:
        return next(walk(buffer), None) is not None
    except TarError:
        return False


class _Rows:
    """Collects the rows of an archive, member by member."""

    def __init__(self, buffer: memoryview, data: bool, endings: Endings, notes: Notes):
        self._buffer, self._data, self._endings, self._notes = buffer, data, endings, notes
        self._records: list[tuple[int, int, int]] = []
        self._first: dict[str, int] = {}  # the first row of each name
        self._images: set[str] = set()  # whole names
        self._run: list[tuple[Member, str]] = []
        self._key: str | None = None
        self._version, self._concealed = 0, False  # whether a member of the run going on was passed over
        self._before = ("", "", "")  # name up to the first dot, key and name of the last image
        self._links: Links | None = None  # from the first link on
        self._linked = False  # whether there was a hard one
        self._followed = False  # whether earlier versions would pass over links that are members
        self._same = SameNames()

    def holds(self, member: Member) -> bool:
        """Returns whether the archive holds the bytes of a member; a link may name what is elsewhere, and is counted then."""
        if member.link is None:
            return True
        if self._links is None:
            self._links = Links(self._buffer, self._endings.links)
        self._linked |= not member.symbolic
        kind = self._endings.conceal(member.name)
        if self._links.place(member) is not None:
            self._followed |= kind is None and self._links.is_new(member)
            return True
        self._notes.lead_nowhere(member, kind or self._links.kind(member))
        return False

    def add(self, member: Member) -> None:
        kind = self._endings.conceal(member.name)
        if kind is not None:
            self._conceal(member, kind)
            return
        key, ending = self._endings.split(member.name)
        if ending in _LAST and member.name.lower().endswith(_ARCHIVES):
            self._notes.inside.append(member.name)
        if key != self._key:
            self._close()
            self._run, self._key = [], key
        elif self._concealed:
            self._version = VERSION  # two runs by the older rules
        self._concealed = False
        self._run.append((member, ending))

    def _conceal(self, member: Member, kind: str) -> None:
        """Counts a member that is none of a sample. A run goes on behind it: `._x.cls` may lie between `x.jpg` and `x.cls`."""
        self._notes.census.pass_over(kind)
        self._concealed = True
        if split(member.name)[1] in OLDER_IMAGE_ENDINGS:
            self._version = VERSION  # a row by the older rules

    def index(self) -> np.ndarray:
        """Returns INDEX [rows + 1], once all members were added."""
        self._close()
        self._notes.same, self._notes.first_same = self._same.count, self._same.first
        flags = (LINKED if self._linked else 0) | (LINKED | FOLLOWED if self._followed else 0)
        return np.array([*self._records, (len(self._buffer), self._version, flags)], dtype=INDEX)

    def _close(self) -> None:
        images = [member for member, ending in self._run if self._endings.is_image(ending)]
        self._count(len(images))
        companions = [member for member, ending in self._run if self._endings.is_companion(ending)]
        if images:
            assert self._key is not None
            if companions:
                self._version = max(self._version, VERSION_2)
            if any(split(image.name)[1] not in OLDER_IMAGE_ENDINGS for image in images):
                self._version = VERSION
            self._add_rows(self._key, images)
        elif companions:
            self._notes.first_alone = self._notes.first_alone or companions[0].name
            self._notes.alone += len(companions)
            if any(split(member.name)[1] in OLDER_IMAGE_ENDINGS for member in companions):
                self._version = max(self._version, VERSION_2)  # these were rows by the older rule

    def _count(self, images: int) -> None:
        census, rule = self._notes.census, self._endings
        if images:
            folder = self._run[0][0].name.rpartition("/")[0].rpartition("/")[2]
            census.use("" if folder == "." else folder, images)
        for member, ending in self._run if len(self._run) > images else ():
            if rule.is_image(ending):
                continue
            if images and rule.belongs(ending):
                census.belong(ending)
            else:
                census.pass_over(kind_of(member.name, ending))

    def _add_rows(self, key: str, images: list[Member]) -> None:
        first, last = self._run[0][0].start, self._run[-1][0].end
        if last - first > 0xFFFFFFFF:
            raise TarError(f"sample {key!r} at byte {first} holds {last - first} bytes; 4 GiB are too many")
        if len(images) > MOST_IMAGES:
            raise TarError(f"sample {key!r} at byte {first} has {len(images)} images; {MOST_IMAGES} are allowed")
        crc = 0
        for start, end in ((first, last),) if self._data else ((one.start, one.data) for one, _ in self._run):
            crc = crc32(self._buffer[start:end], crc)
        if self._data and self._links is not None:
            for at, size in self._links.places(one for one, _ in self._run):
                crc = crc32(self._buffer[at : at + size], crc)
        keeps = len(images) > 1 or key in self._first
        if keeps:
            self._version = max(self._version, VERSION_2)
        if key in self._first:
            other = self._first[key]
            offset, size, its_crc = self._records[other]
            self._records[other] = offset | KEEPS_ENDING, size, its_crc
        self._first.setdefault(key, len(self._records))
        for number, image in enumerate(images):
            if image.name in self._images:
                raise TarError(
                    f"sample {key!r} occurs again at byte {image.start}; names must be unique: unpack the archive, which "
                    "keeps the last of each name, and pack it again"
                )
            self._images.add(image.name)
            self._same.add(image.name)
            self._tell_alike(key, image.name)
            self._records.append((first | (number << 1 | keeps), last - first, crc))

    def _tell_alike(self, key: str, name: str) -> None:
        stem, (before, its_key, its_name) = up_to_first_dot(name), self._before
        if stem == before and key != its_key and stem[-1:] not in ("", "/"):
            self._notes.first_alike = self._notes.first_alike if self._notes.alike else (its_name, name)
            self._notes.alike += 1
        self._before = stem, key, name


def is_linked(index: np.ndarray) -> bool:
    """Returns whether the archive has links among its members."""
    return bool(index.item(len(index) - 1)[2] & LINKED)


def follows(index: np.ndarray) -> bool:
    """Returns whether symbolic links are members, and hard links whose target is spelled otherwise."""
    return bool(index.item(len(index) - 1)[2] & FOLLOWED)


def named_by(index: np.ndarray) -> Endings:
    """Returns the rule for names by which an index was made."""
    return _RULES[index.item(len(index) - 1)[1]]


def read_index(sidecar: Path, path: Path) -> np.ndarray:
    """Returns the index of an archive. Raises StorageError when it is unreadable or was made from another
    archive, with the command that heals."""
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
    if index.item(len(index) - 1)[1] not in _RULES:
        raise StorageError(f"{sidecar}: made by a later version of SEER; {remedy}")
    first, sizes = index[:-1]["offset"] & ~np.uint64(MARK), index[:-1]["size"]
    if (first > size).any() or (first + sizes > size).any() or (sizes == 0).any():
        raise StorageError(f"{sidecar}: points outside the {size} bytes beside it; {remedy}")
    return index


def _records(npy: bytes) -> np.ndarray:
    """Returns what np.load gives, for an array of INDEX alone. Raises ValueError.

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
    """Writes all or nothing: under another name first, which a later try overwrites."""
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
    """Returns whether an index of so many rows may be a file of that size; versions of numpy differ in their header."""
    return 0 < size - (rows + 1) * INDEX.itemsize <= 256


def checksum(index: np.ndarray) -> str:
    """Names an index, and by the CRCs in it the archive. 8 hexadecimal digits."""
    return f"{crc32(index.tobytes()):08x}"


class mapped:
    """Maps a file for reading, as a context; an empty file maps to no bytes. Anything but a plain file raises
    StorageError.

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
    """Returns a descriptor for reading a plain file. A pipe or device is not waited for: StorageError. Raises
    OSError, too."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise StorageError(f"{path} is not a plain file; pipes and devices are not read")
    return file
