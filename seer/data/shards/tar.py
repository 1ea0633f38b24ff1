"""Reads tar archives strictly: every byte is accounted for, or the archive is refused with the place and the reason.

Python's `tarfile` takes a bad header after the first for the end of the archive, so a flipped byte silently loses the
rest of a shard (`facts/reliability.md` 0.1). Here a wrong checksum, a member that runs past the end, a missing end mark
or data behind the end mark is an error, and so are more zeros than any end has (a download that stopped in a file of full
length). Only plain files are members; links, devices and sparse files are refused, and nothing is ever extracted.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from zlib_ng.zlib_ng import adler32

TAR_BLOCK = 512
HEAD = 3 * TAR_BLOCK  # an extended header, its records and the header of a member
MOST_PADDING = 22 * TAR_BLOCK  # zeros behind the last member: the end mark of two blocks, and up to a record of twenty
MOST_NAME = 1 << 20  # bytes of an extended header: names need a few hundred
_ZERO = bytes(TAR_BLOCK)
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


def walk(buffer: memoryview, *, whole: bool = True, base: int = 0) -> Iterator[Member]:
    """Yields the members of an archive, or with whole=False of a run of blocks cut out of one (which has no end mark).

    base: what is added to places in messages, where the buffer begins later than what they are counted from.
    Raises TarError naming the byte. Reads headers only: a walk costs about 3 microseconds a member.
    """
    size, at, start, long_name = len(buffer), 0, 0, None
    while at < size:
        header = bytes(buffer[at : at + TAR_BLOCK])
        if len(header) < TAR_BLOCK:
            raise TarError(f"cut inside a header at byte {base + at} of {base + size}")
        if header == _ZERO:
            _check_end(buffer, at, whole, base)
            return
        length = _octal(header[124:136], base + at)
        if _octal(header[148:156], base + at) != _sum(header) - sum(header[148:156]) + 8 * 32:
            raise TarError(f"wrong header checksum at byte {base + at}")
        data = at + TAR_BLOCK
        end = data + (length + TAR_BLOCK - 1) // TAR_BLOCK * TAR_BLOCK
        kind = header[156:157]
        if end > size:
            raise TarError(f"member at byte {base + at} ends at byte {base + end}, the archive at byte {base + size}")
        if kind in (b"L", b"x") and length > MOST_NAME:
            raise TarError(f"extended header of {length} bytes at byte {base + at}, more than {MOST_NAME}")
        if kind in (b"0", b"\0", b"7"):
            yield Member(long_name or _name(header), start, data, length, end)
            start, long_name = end, None
        elif kind in (b"5", b"g"):
            start, long_name = end, None
        elif kind == b"L":
            long_name = bytes(buffer[data : data + length]).rstrip(b"\0").decode("utf-8", "replace")
        elif kind == b"x":
            long_name = _pax_path(bytes(buffer[data : data + length]), base + at) or long_name
        else:
            raise TarError(f"member of type {kind!r} at byte {base + at}; only plain files are read")
        at = end
    if whole:
        raise TarError(f"no end mark: the archive stops at byte {base + size}")


def plain_member(head: bytes, size: int) -> Member | None:
    """Returns the first member of a run of `size` bytes from its first HEAD bytes alone; None where its headers
    are more than the extended one of a block that webdataset writes, or anything is unusual or wrong with it:
    `walk` knows."""
    at, name = 0, None
    try:
        kind, length, own = _sound(head, 0)
        if kind == b"x" and 0 < length <= TAR_BLOCK:
            at, name = 2 * TAR_BLOCK, _pax_path(head[TAR_BLOCK : TAR_BLOCK + length], 0)
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
    own = _name(header) if prefix else name.split(b"\0", 1)[0].decode("utf-8", "replace")
    return kind, int(length.strip(b"\0 "), 8), own


def _check_end(buffer: memoryview, at: int, whole: bool, base: int) -> None:
    if not whole:
        raise TarError(f"end mark at byte {base + at} inside a sample")
    if len(buffer) - at > MOST_PADDING and not any(buffer[-MOST_PADDING:]):
        raise TarError(
            f"{len(buffer) - at} zeros from byte {at} on, where an archive ends with {MOST_PADDING} at most: the rest of it is "
            "missing (if it is not, pack it again)"
        )
    for offset in range(at, len(buffer), 1 << 20):
        if any(bytes(buffer[offset : offset + (1 << 20)])):
            raise TarError(f"data behind the end mark at byte {at}")


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
    return name.decode("utf-8", "replace")


def _pax_path(records: bytes, at: int) -> str | None:
    path, first = None, 0
    while first < len(records):
        length_text = records[first : first + 8].partition(b" ")[0]
        length = int(length_text) if length_text.isdigit() and len(length_text) < 8 else 0
        if not len(length_text) + 1 < length <= len(records) - first:
            raise TarError(f"broken extended header at byte {at}")
        keyword, _, value = records[first + len(length_text) + 1 : first + length - 1].partition(b"=")
        if keyword.startswith(b"GNU.sparse") or keyword == b"size":
            word = keyword.decode("utf-8", "replace")
            raise TarError(f"extended header {word!r} at byte {at}; sparse and resized members are refused")
        if keyword == b"path":
            path = value.decode("utf-8", "replace")
        first += length
    return path
