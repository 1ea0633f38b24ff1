"""Tells by its first bytes which format a file has: the only list of formats that are read. Names say nothing here.

Surprising: AVIF and HEIC share a container, and only the brands in its first box tell them apart. PostScript is known so
that it can be named, and is never opened: Pillow would call an interpreter for it.
"""

READ = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # as Pillow calls them
_BEGINS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # of files above 4 GB, by their kind
    (b"MM\0+", "TIFF"),
)
_OTHERS = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\x00\x00\x01\x00", "icon (ICO)"),
    (b"qoif", "QOI"),
    (b"v/1\x01", "OpenEXR"),
    (b"DDS ", "DDS"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"<!DOCTYPE", "HTML"),
    (b"<html", "HTML"),
    (b"PK\x03\x04", "zip archive"),
    (b"\x1f\x8b", "gzip"),
    (b"version https://git-lfs", "git-lfs pointer"),
)
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_MOST_BRANDS = 256  # bytes of the first box that are looked at
_LEAST_BMP = 26


def format_of(data: bytes) -> str | None:
    """Returns one of READ, or None for bytes of any other kind."""
    for begin, name in _BEGINS:
        if data.startswith(begin):
            return name
    if data[:4] + data[8:12] == b"RIFFWEBP":
        return "WEBP"
    # two letters alone would take many a text: the size of the header that follows is one of a few
    if data[:2] == b"BM" and len(data) >= _LEAST_BMP and data[14:18] in _BMP_HEADERS:
        return "BMP"
    return "AVIF" if {b"avif", b"avis"} & _brands(data) else None


_BMP_HEADERS = {size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124)}


def other_of(data: bytes) -> str | None:
    """Returns the name of a format that is known and not read, or None."""
    brands = _brands(data)
    if brands & set(_HEIC):
        return "HEIC"
    if b"crx " in brands:
        return "raw photo (CR3)"
    if brands:
        return "video or another file of its container"
    return next((name for begin, name in _OTHERS if data[: len(begin)].lower() == begin.lower()), None)


def refusal(data: bytes) -> str:
    """Returns why bytes that have no format of READ are not read."""
    other, begin = other_of(data), data[:8].hex()
    if other == "HEIC":
        return f"HEIC, which is not read; turn such images into JPEG: begins with {begin}"
    if other:
        return f"{other}, not a JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF: begins with {begin}"
    return f"not a JPEG, PNG, WebP, BMP, GIF, TIFF or AVIF: begins with {begin}"


def may_be_transparent(data: bytes) -> bool:
    """Returns whether a file says in its headers that some of its pixels may be transparent."""
    kind = format_of(data)
    if kind == "PNG":
        return data[25:26] in (b"\x04", b"\x06") or 0 <= data.find(b"tRNS") < data.find(b"IDAT")
    if kind == "WEBP":
        extended, lossless = data[12:16] == b"VP8X", data[12:16] == b"VP8L"
        return bool(data[20:21] and extended and data[20] & 0x10) or lossless
    return kind in ("GIF", "AVIF", "TIFF")


def _brands(data: bytes) -> set[bytes]:
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), len(data), _MOST_BRANDS)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))}
