"""Reads all bands of a TIFF, of 8 or 16 bits each, as they are: Pillow has no image of more than four channels, and none of
16 bits with more than one.

Surprising: bytes are unpacked by libtiff all the same. What is packed in the file is laid into another TIFF as rows of one
band of 8 bits, as wide as a row has bytes, which Pillow opens; only the order of bytes, the differences between neighbours
(predictor 2) and the layout of bands and tiles are worked out here.

Legend: C bands, h w image, k bands that lie together: C, or 1 where each band lies by itself (planar).
"""

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

_WIDTH, _LENGTH, _BITS, _PACKING, _BANDS, _PLANAR, _PREDICTOR, _KIND = 256, 257, 258, 259, 277, 284, 317, 339
_TURN = 274
_STRIPS, _ROWS, _STRIP_BYTES, _TILE_WIDTH, _TILE_LENGTH, _TILES, _TILE_BYTES = 273, 278, 279, 322, 323, 324, 325
_PACKINGS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 50000: "Zstandard"}
_MOST_PIECES = 1_000_000
MOST_TILE = 1024


class TiffError(ValueError):
    """Says why the bands of a TIFF cannot be read. unread: because of its kind, not of damage."""

    def __init__(self, reason: str, unread: bool = False):
        super().__init__(reason)
        self.unread = unread


@dataclass(frozen=True)
class Layout:
    """Holds what the first directory of a TIFF says. turn: EXIF's orientation. bits: 8 or 16; order: of bytes, < or >;
    across, down: pieces (strips or tiles) of a band; rows, columns: pixels of a piece."""

    height: int
    width: int
    bands: int
    bits: int
    order: str
    planar: bool
    predictor: bool
    packing: int
    tiled: bool
    rows: int
    columns: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    turn: int

    @property
    def across(self) -> int:
        return -(-self.width // self.columns)

    @property
    def down(self) -> int:
        return -(-self.height // self.rows)

    @property
    def together(self) -> int:
        return 1 if self.planar else self.bands


def layout(data: bytes) -> Layout:
    """Returns what the headers say. Raises TiffError for what is not read here."""
    directory = _directory(data)

    def number(tag: int, usual: int | None = None) -> int:
        value = directory.get(tag, usual)
        value = value[0] if isinstance(value, tuple) and value else value
        if not isinstance(value, int) or value < 1:
            raise TiffError(f"tag {tag} of the TIFF is {value!r}, not a whole number above 0")
        return value

    height, width, bands = number(_LENGTH), number(_WIDTH), number(_BANDS, 1)
    bits, kinds = directory.get(_BITS, (1,)), directory.get(_KIND, (1,))
    if set(bits) not in ({8}, {16}) or set(kinds) != {1}:
        raise TiffError(
            f"bands of {sorted(set(bits))} bits, kind {sorted(set(kinds))}; whole numbers of 8 or 16 bits are read",
            True,
        )
    packing, predictor = number(_PACKING, 1), number(_PREDICTOR, 1)
    if packing not in _PACKINGS or predictor > 2:
        raise TiffError(
            f"packed by method {packing}, predictor {predictor}; read are {', '.join(dict.fromkeys(_PACKINGS.values()))}, 1 and 2",
            True,
        )
    tiled = _TILES in directory
    rows, columns = (
        (number(_TILE_LENGTH), number(_TILE_WIDTH)) if tiled else (min(number(_ROWS, height), height), width)
    )
    offsets, sizes = (directory.get(tag, ()) for tag in ((_TILES, _TILE_BYTES) if tiled else (_STRIPS, _STRIP_BYTES)))
    order = "<" if data[:2] == b"II" else ">"
    found = Layout(
        height, width, bands, bits[0], order, number(_PLANAR, 1) == 2, predictor == 2, packing, tiled, rows, columns,
        tuple(offsets), tuple(sizes), directory.get(_TURN, 1),
    )  # fmt: skip
    pieces = found.across * found.down * (bands if found.planar else 1)
    if pieces > _MOST_PIECES or not len(found.offsets) == len(found.sizes) == pieces:
        raise TiffError(
            f"{len(found.offsets)} strips or tiles of {len(found.sizes)} sizes, where there must be {pieces}"
        )
    if tiled and (columns % 16 or columns >= width + MOST_TILE or rows >= height + MOST_TILE):
        raise TiffError(
            f"tiles of {columns} x {rows} pixels; their width is a multiple of 16, not far beyond the image"
        )
    return found


def bands(data: bytes, found: Layout) -> np.ndarray:
    """Returns uint8 or uint16 [h, w, C]. Raises TiffError, and OSError for what cannot be unpacked."""
    planes = found.bands // found.together
    each = found.across * found.down
    made = [_plane(data, found, slice(i * each, (i + 1) * each)) for i in range(planes)]
    return made[0] if planes == 1 else np.concatenate(made, axis=2)


def _directory(data: bytes) -> Any:
    file = io.BytesIO(data)
    head = file.read(8)
    if head[2:3] == b"+" or head[3:4] == b"+":
        head += file.read(8)
    directory = TiffImagePlugin.ImageFileDirectory_v2(head)
    file.seek(directory.next)
    directory.load(file)
    return directory


def _plane(data: bytes, found: Layout, pieces: slice) -> np.ndarray:
    """Returns [h, w, k] of pieces that lie side by side and under each other."""
    row = found.columns * found.together * found.bits // 8  # bytes of a piece
    height = found.down * found.rows if found.tiled else found.height
    spans = list(zip(found.offsets[pieces], found.sizes[pieces], strict=True))
    if any(at + size > len(data) for at, size in spans):
        raise TiffError("truncated: a strip or tile lies beyond the end of the file")
    unpacked = _unpacked([data[at : at + size] for at, size in spans], row, found, height)
    values = unpacked.view(found.order + ("u1" if found.bits == 8 else "u2"))
    values = values.reshape(height, found.across, found.columns, found.together)
    values = values.astype(values.dtype.newbyteorder("="))
    if found.predictor:
        np.cumsum(values, axis=2, dtype=values.dtype, out=values)
    return values.reshape(height, -1, found.together)[: found.height, : found.width]


def _unpacked(pieces: list[bytes], row: int, found: Layout, height: int) -> np.ndarray:
    """Returns bytes, uint8 [height, across * row]."""
    tags: dict[int, tuple[int, ...]] = {
        _WIDTH: (found.across * row,),
        _LENGTH: (height,),
        _BITS: (8,),
        _PACKING: (found.packing,),
        262: (1,),
    }
    tags |= {_BANDS: (1,), _PLANAR: (1,)}
    sizes = tuple(map(len, pieces))
    tags |= {_TILE_WIDTH: (row,), _TILE_LENGTH: (found.rows,)} if found.tiled else {_ROWS: (found.rows,)}
    places, counts = (_TILES, _TILE_BYTES) if found.tiled else (_STRIPS, _STRIP_BYTES)
    head = 8 + 2 + 12 * (len(tags) + 2) + 4
    body = head + 8 * len(pieces)  # behind the two lists
    starts = tuple(body + sum_before for sum_before in np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist())
    tags |= {places: starts, counts: sizes}
    entries, lists, at = b"", b"", head
    for tag in sorted(tags):
        values = tags[tag]
        packed = struct.pack(f"<{len(values)}I", *values)
        entries += struct.pack("<HHI", tag, 4, len(values)) + (packed if len(values) == 1 else struct.pack("<I", at))
        if len(values) > 1:
            lists, at = lists + packed, at + len(packed)
    whole = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + lists.ljust(body - head, b"\0")
    with TiffImagePlugin.TiffImageFile(io.BytesIO(whole + b"".join(pieces))) as image:
        return np.asarray(image)
