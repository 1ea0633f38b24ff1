"""Reads tar archives strictly: every byte is accounted for, or the archive is refused with the place and the reason.

Python's `tarfile` takes a bad header after the first for the end of the archive, so a flipped byte silently loses the
rest of a shard (`facts/reliability.md` 0.1). Here a wrong checksum, a member that runs past the end, a missing end mark
or data behind the end mark is an error, and so are more zeros than any end has (a download that stopped in a file of full
length). Plain files are members, and links, whose bytes are those of another member (`links`); folders are passed over;
devices and sparse files are refused with the remedy, and nothing is ever extracted.

Surprising: names may be bytes of any encoding. What is not UTF-8 is kept as Python keeps names of files (surrogateescape),
so that two names stay two.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from zlib_ng.zlib_ng import adler32

TAR_BLOCK = 512
HEAD = 3 * TAR_BLOCK  # an extended header, its records and the header of a member
MOST_PADDING = 22 * TAR_BLOCK  # zeros behind the last member: the end mark of two blocks, and up to a record of twenty
BLOCKING = (20, *(1 << power for power in range(5, 12)))  # blocks of a record: tar's own 20, and those of `tar -b`
MOST_NAME = 1 << 20  # bytes of an extended header: names need a few hundred
_ZERO = bytes(TAR_BLOCK)
_REFUSED = {
    b"3": ("a device", "pack the files again without it"),
    b"4": ("a device", "pack the files again without it"),
    b"6": ("a pipe", "pack the files again without it"),
    b"M": ("the rest of a file that began in another archive", "unpack the whole set and pack it as one archive"),
    b"S": ("a file with holes", "unpack it and pack it again without `--sparse`"),
}
_FIELDS = struct.Struct(
    "100s24x12s12x8sc188xB166x"
)  # of a header: name, size, checksum, kind, first byte of the prefix


class TarError(ValueError):
    """Says that the archive is damaged or holds what a shard may not hold: exit 65 where it ends a run."""

    exit_status = 65
    kind = "archive"  # of records.SKIP_REASONS: what it is counted by where it costs one row


class ChecksumError(TarError):
    """Says that the bytes of a row are not those that its index was made from."""

    kind = "checksum"


class Member(NamedTuple):
    name: str
    start: int  # offset of the first header that belongs to the member
    data: int  # offset of its data
    size: int  # bytes of data
    end: int  # offset behind its padding
    link: str | None = (
        None  # of a hard link: the name of the member whose bytes are its own; of a symbolic one: its target
    )
    symbolic: bool = False


@dataclass
class Oddities:
    """Holds what somebody should hear of an archive that is sound: symbolic links that were passed over, and more zeros
    behind its end than tar writes unasked."""

    links: int = 0
    first_link: str = ""  # NAME -> TARGET
    padding: int = 0  # bytes


def walk(
    buffer: memoryview,
    *,
    whole: bool = True,
    base: int = 0,
    oddities: Oddities | None = None,
    symbolic: bool = False,
) -> Iterator[Member]:
    """Yields the members of an archive, or with whole=False of a run of blocks cut out of one (which has no end mark).

    base: what is added to places in messages, where the buffer begins later than what they are counted from.
    oddities: receives what is passed over. symbolic: symbolic links are members, too. Raises TarError naming the byte. Reads
    headers only: a walk costs about 3 microseconds a member.
    """
    size, at, start, long_name, long_link = len(buffer), 0, 0, None, None
    while at < size:
        header = bytes(buffer[at : at + TAR_BLOCK])
        if len(header) < TAR_BLOCK:
            raise TarError(f"cut inside a header at byte {base + at} of {base + size}")
        if header == _ZERO:
            _check_end(buffer, at, whole, base, oddities)
            return
        length = _octal(header[124:136], base + at)
        if _octal(header[148:156], base + at) != _sum(header) - sum(header[148:156]) + 8 * 32:
            raise TarError(f"wrong header checksum at byte {base + at}")
        data = at + TAR_BLOCK
        end = data + (length + TAR_BLOCK - 1) // TAR_BLOCK * TAR_BLOCK
        kind = header[156:157]
        if end > size:
            raise TarError(f"member at byte {base + at} ends at byte {base + end}, the archive at byte {base + size}")
        if kind in (b"L", b"K", b"x") and length > MOST_NAME:
            raise TarError(f"extended header of {length} bytes at byte {base + at}, more than {MOST_NAME}")
        if kind in (b"0", b"\0", b"7", b"1") or (kind == b"2" and symbolic and not length):
            link = _link(header, long_link, length, base + at) if kind in b"12" else None
            yield Member(long_name or _name(header), start, data, length, end, link, kind == b"2")
            start, long_name, long_link = end, None, None
        elif kind in b"52gDV":  # folders, symbolic links, what holds for all, lists of folders, the archive's own name
            if kind == b"2" and oddities is not None:
                oddities.links += 1
                own = f"{long_name or _name(header)} -> {long_link or _text(header[157:257])}"
                oddities.first_link = oddities.first_link or own
            start, long_name, long_link = end, None, None
        elif kind == b"L":
            long_name = _text(bytes(buffer[data : data + length]))
        elif kind == b"K":
            long_link = _text(bytes(buffer[data : data + length]))
        elif kind == b"x":
            path, link = _pax_paths(bytes(buffer[data : data + length]), base + at)
            long_name, long_link = path or long_name, link or long_link
        else:
            raise _refused(kind, base + at)
        at = end
    if whole:
        raise TarError(f"no end mark: the archive stops at byte {base + size}")


def _link(header: bytes, long_link: str | None, length: int, at: int) -> str:
    """Returns what a link names. Raises TarError for one with bytes of its own, which writers disagree about."""
    if length:
        raise TarError(
            f"hard link of {length} bytes at byte {at}; unpack the archive and pack it again with `tar --hard-dereference`"
        )
    return long_link or _text(header[157:257])


def _refused(kind: bytes, at: int) -> TarError:
    what, remedy = _REFUSED.get(kind, ("of no kind that is known here", "unpack it and pack it again with `tar`"))
    return TarError(f"member of type {kind!r} at byte {at} is {what}; only plain files and links are read: {remedy}")


def plain_member(head: bytes, size: int) -> Member | None:
    """Returns the first member of a run of `size` bytes from its first HEAD bytes alone; None where its headers
    are more than the extended one of a block that webdataset writes, or anything is unusual or wrong with it:
    `walk` knows."""
    at, name = 0, None
    try:
        kind, length, own = _sound(head, 0)
        if kind == b"x" and 0 < length <= TAR_BLOCK:
            at, name = 2 * TAR_BLOCK, _pax_paths(head[TAR_BLOCK : TAR_BLOCK + length], 0)[0]
            kind, length, own = _sound(head, at)
    except (ValueError, struct.error):
        return None
    data = at + TAR_BLOCK
    end = data + (length + TAR_BLOCK - 1) // TAR_BLOCK * TAR_BLOCK
    return Member(name or own, 0, data, length, end) if kind in (b"0", b"\0") and 0 <= length and end <= size else None


def _sound(head: bytes, at: int) -> tuple[bytes, int, str]:
    """Returns kind, bytes of data and name by the header at `at`. Raises ValueError, or struct.error of one
    that is cut off."""
    name, length, stated, kind, prefix = _FIELDS.unpack_from(head, at)
    header = head[at : at + TAR_BLOCK]
    if int(stated.strip(b"\0 "), 8) != _sum(header) - sum(stated) + 8 * 32:
        raise ValueError("wrong header checksum")
    own = _name(header) if prefix else _text(name)
    return kind, int(length.strip(b"\0 "), 8), own


def _check_end(buffer: memoryview, at: int, whole: bool, base: int, oddities: Oddities | None) -> None:
    if not whole:
        raise TarError(f"end mark at byte {base + at} inside a sample")
    zeros = len(buffer) - at
    if zeros > MOST_PADDING and not any(buffer[-MOST_PADDING:]):
        if not _is_record(zeros, len(buffer)):
            raise TarError(
                f"{zeros} zeros from byte {at} on, where an archive ends with {MOST_PADDING} at most, or with up to a record of "
                "`tar -b`, to a whole number of them; so the rest of it may be missing: fetch it again, or, if it is whole, "
                "unpack it and pack it again"
            )
        if oddities is not None:
            oddities.padding = zeros
    for offset in range(at, len(buffer), 1 << 20):
        if any(bytes(buffer[offset : offset + (1 << 20)])):
            raise TarError(_behind(buffer, at))


def _is_record(zeros: int, size: int) -> bool:
    """Returns whether so many zeros at the end are what tar writes where it is asked: to fill the last record of `tar -b`,
    or two records of its own where `tar -A` joined archives. A file that was cut short and filled up with zeros to its full
    length looks the same if it was cut within these."""
    most = {b: (2 * b if b == BLOCKING[0] else b) + 2 for b in BLOCKING}
    return any(size % (b * TAR_BLOCK) == 0 and zeros <= blocks * TAR_BLOCK for b, blocks in most.items())


def _behind(buffer: memoryview, at: int) -> str:
    """Returns what to say of data behind the end mark: whether it begins as an archive does."""
    for offset in range(at, len(buffer) - TAR_BLOCK + 1, TAR_BLOCK):
        header = bytes(buffer[offset : offset + TAR_BLOCK])
        if header != _ZERO:
            try:
                _sound(header, 0)
            except (ValueError, struct.error):
                break
            return (
                f"data behind the end mark at byte {at}: a header follows at byte {offset}, as where archives are joined by `cat` "
                "(`tar -A` joins them), or where zeros have taken the place of members; give the parts by themselves, or, if it "
                "is whole, unpack it with `tar -xif` and pack it again"
            )
    return f"data behind the end mark at byte {at}; fetch the archive again, or unpack it and pack it again"


def _sum(header: bytes) -> int:
    """Returns the sum of a header's 512 bytes. Adler-32 has that of up to 256 bytes in its lower half, plus
    one, and is six times as fast as `sum`."""
    return (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2


def _octal(field: bytes, at: int) -> int:
    if field[0] & 0x80:  # GNU base-256, for sizes of 8 GiB and more
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        number = int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        number = -1
    if number < 0:  # a negative size would walk backwards for ever
        raise TarError(f"not a tar header at byte {at}")
    return number


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[345] and header[257:263] == b"ustar\0":
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax_paths(records: bytes, at: int) -> tuple[str | None, str | None]:
    """Returns the name that an extended header gives, and that of the target of a link. Raises TarError."""
    found: dict[bytes, str] = {}
    first = 0
    while first < len(records):
        length_text = records[first : first + 8].partition(b" ")[0]
        length = int(length_text) if length_text.isdigit() and len(length_text) < 8 else 0
        if not len(length_text) + 1 < length <= len(records) - first:
            raise TarError(f"broken extended header at byte {at}")
        keyword, _, value = records[first + len(length_text) + 1 : first + length - 1].partition(b"=")
        if keyword.startswith(b"GNU.sparse") or keyword == b"size":
            word = keyword.decode("utf-8", "replace")
            raise TarError(
                f"extended header {word!r} at byte {at}; sparse and resized members are refused; unpack the "
                "archive and pack it again with `tar --format=gnu` and without `--sparse`"
            )
        if keyword in (b"path", b"linkpath"):
            found[keyword] = value.decode("utf-8", "surrogateescape")
        first += length
    return found.get(b"path"), found.get(b"linkpath")
