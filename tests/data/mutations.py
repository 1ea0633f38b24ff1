"""Seeded damage to images and archives. Mutant i is a function of (seed, i), so a failure can be made again alone."""

import io
import tarfile
from collections.abc import Callable

import numpy as np
from PIL import Image

from seer.data.shards.tar import TAR_BLOCK, walk
from tests.data import profiles
from tests.data.image_files import encoded, pixels

Random = np.random.Generator


def bases() -> dict[str, list[bytes]]:
    """Small good images by format; of the last none may ever be opened."""
    rgb, gray = pixels(1), Image.fromarray(pixels(2)).convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = Image.fromarray(pixels(3)).convert("RGBA")
    alpha.putalpha(99)
    palette = Image.fromarray(pixels(4)).quantize(16)
    deep = Image.fromarray(np.arange(480, dtype=np.uint16).reshape(24, 20) * 100)
    frames = [Image.fromarray(pixels(i)) for i in range(3)]
    moving = {"save_all": True, "append_images": frames[1:]}
    return {
        "JPEG": [
            encoded(rgb),
            encoded(rgb, progressive=True),
            encoded(gray),
            encoded(Image.fromarray(rgb).convert("CMYK")),
            encoded(rgb, exif=exif),
            encoded(rgb, icc_profile=profiles.rgb(profiles.ADOBE, 2.2)),
        ],
        "PNG": [
            *(encoded(im, "PNG") for im in (rgb, gray, alpha, deep, gray.convert("1"))),
            encoded(palette, "PNG", transparency=bytes([0, 128] + [255] * 14)),
            encoded(rgb, "PNG", exif=exif),
            encoded(frames[0], "PNG", **moving),
        ],
        "WEBP": [
            *(encoded(im, "WEBP", **how) for im, how in ((rgb, {}), (alpha, {}), (rgb, {"lossless": True}))),
            encoded(frames[0], "WEBP", **moving),
            encoded(rgb, "WEBP", exif=exif),
        ],
        "GIF": [encoded(palette, "GIF"), encoded(frames[0], "GIF", **moving)],
        "BMP": [encoded(rgb, "BMP"), encoded(gray, "BMP")],
        "TIFF": [
            *(encoded(rgb, "TIFF", compression=how) for how in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
            encoded(deep, "TIFF"),
        ],
        "AVIF": [encoded(rgb, "AVIF"), encoded(alpha, "AVIF")],
        "PPM": [encoded(rgb, "PPM")],
    }


def mutant(sources: dict[str, list[bytes]], seed: int, i: int) -> tuple[str, bytes]:
    """Format of the image and what became of it, after one to three wounds."""
    random = np.random.default_rng((seed, i))
    form = list(sources)[i % len(sources)]
    data = bytearray(sources[form][int(random.integers(len(sources[form])))])
    for _ in range(int(random.integers(1, 4))):
        _WOUNDS[int(random.integers(len(_WOUNDS)))](data, random)
    return form, bytes(data)


def _span(data: bytearray, random: Random, most: int = 64) -> slice:
    at = int(random.integers(len(data) + 1))
    return slice(at, at + int(random.integers(1, most)))


def _flip_bits(data: bytearray, random: Random) -> None:
    for at in random.integers(0, max(1, 8 * len(data)), int(random.integers(1, 17))).tolist():
        if data:
            data[at // 8] ^= 1 << at % 8


def _cut(data: bytearray, random: Random) -> None:
    del data[int(random.integers(len(data) + 1)) :]


def _remove(data: bytearray, random: Random) -> None:
    del data[_span(data, random)]


def _zero(data: bytearray, random: Random) -> None:
    span = _span(data, random)
    data[span] = bytes(len(data[span]))


def _fill(data: bytearray, random: Random) -> None:
    span = _span(data, random, 9)
    data[span] = b"\xff" * len(data[span])


def _noise(data: bytearray, random: Random) -> None:
    span = _span(data, random)
    data[span] = random.bytes(len(data[span]))


def _insert(data: bytearray, random: Random) -> None:
    at = _span(data, random).start
    data[at:at] = random.bytes(int(random.integers(1, 64)))


def _repeat(data: bytearray, random: Random) -> None:
    span = _span(data, random)
    data[span.start : span.start] = data[span] * int(random.integers(1, 5))


def _append(data: bytearray, random: Random) -> None:
    data += random.bytes(int(random.integers(1, 200)))


def _swap(data: bytearray, random: Random) -> None:
    a, b = _span(data, random), _span(data, random)
    data[a], data[b] = data[b], data[a]


def _early(data: bytearray, random: Random) -> None:
    """In the first bytes behind the mark of the format, where sizes and kinds stand."""
    for _ in range(int(random.integers(1, 5))):
        at = int(random.integers(4, 40))
        if at < len(data):
            data[at] = int(random.integers(256))


_WOUNDS = [_flip_bits, _cut, _remove, _zero, _fill, _noise, _insert, _repeat, _append, _swap, _early]


def archives(members: list[tuple[str, bytes]]) -> list[bytes]:
    """The same members as three kinds of tar, one of them with names that need extended headers."""
    made = []
    for form, prefix in ((tarfile.USTAR_FORMAT, ""), (tarfile.GNU_FORMAT, "n" * 120 + "/"), (tarfile.PAX_FORMAT, "é/")):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for name, data in members:
                info = tarfile.TarInfo(prefix + name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        made.append(buffer.getvalue())
    return made


# Kinds of damage to a tar. What no reader can see without an index is in UNSEEN: a byte of data, a whole member gone, a few
# members at the end turned to zeros, which is what follows the last member of any tar.
def _members(data: bytes) -> list:
    return list(walk(memoryview(data)))


def _one(data: bytes, random: Random):  # type: ignore[no-untyped-def]
    found = _members(data)
    return found[int(random.integers(len(found)))]


def _set(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _bit(data: bytes, at: int, random: Random) -> bytes:
    return _set(data, at, bytes([data[at] ^ 1 << int(random.integers(8))]))


def _anywhere(data: bytes, random: Random) -> int:
    return int(random.integers(len(data) // TAR_BLOCK)) * TAR_BLOCK


TAR_DAMAGE: dict[str, Callable[[bytes, Random], bytes]] = {
    "cut anywhere": lambda d, r: d[: int(r.integers(len(d)))],
    "cut at a block": lambda d, r: d[: _anywhere(d, r)],
    "cut at a member": lambda d, r: d[: _one(d, r).start],
    "cut inside a header": lambda d, r: d[: _one(d, r).start + int(r.integers(1, TAR_BLOCK))],
    "bit of a header": lambda d, r: _bit(d, _one(d, r).data - TAR_BLOCK + int(r.integers(TAR_BLOCK)), r),
    "bit of an extended header or of the first one": lambda d, r: _bit(
        d, _one(d, r).start + int(r.integers(TAR_BLOCK)), r
    ),
    "zeroed header": lambda d, r: _set(d, _one(d, r).data - TAR_BLOCK, bytes(TAR_BLOCK)),
    "bytes put in": lambda d, r: d[: (at := int(r.integers(len(d))))] + r.bytes(int(r.integers(1, 2000))) + d[at:],
    "bytes gone": lambda d, r: d[: (at := int(r.integers(len(d))))] + d[at + 1 + int(r.integers(4)) * TAR_BLOCK // 2 :],
    "a header twice": lambda d, r: d[: (m := _one(d, r)).data] + d[m.data - TAR_BLOCK :],
    "a member twice": lambda d, r: d[: (m := _one(d, r)).end] + d[m.start :],
    "noise behind the end": lambda d, r: d + r.bytes(int(r.integers(1, 3000))),
    "another archive behind the end": lambda d, r: d + d,
    "zeros for long": lambda d, r: d[: _one(d, r).start] + bytes(12_000 + int(r.integers(9000))),
    "another file": lambda d, r: [b"", b"<!DOCTYPE html>" * 90, b"\x1f\x8b\x08" + bytes(3000), r.bytes(5000)][
        int(r.integers(4))
    ],
}
UNSEEN: dict[str, Callable[[bytes, Random], bytes]] = {
    "bit of data": lambda d, r: _bit(d, (m := _one(d, r)).data + int(r.integers(max(1, m.size))), r),
    "noise in data": lambda d, r: _set(d, (m := _one(d, r)).data, r.bytes(m.size)),
    "zeroed tail": lambda d, r: d[: (at := int(r.integers(1, len(d))))] + bytes(len(d) - at),
    "a member gone": lambda d, r: d[: (m := _one(d, r)).start] + d[m.end :],
    "two members exchanged": lambda d, r: _exchanged(d, *r.choice(len(_members(d)), 2, replace=False).tolist()),
}


def _exchanged(data: bytes, i: int, j: int) -> bytes:
    members = _members(data)
    order = list(range(len(members)))
    order[i], order[j] = order[j], order[i]
    return b"".join(data[members[n].start : members[n].end] for n in order) + data[members[-1].end :]
