"""Turns bytes into pixels: the only file that knows how images are written.

Only the formats of `formats.READ` are opened, told by their first bytes, never by their names: Pillow knows some forty,
one of which calls an external interpreter. Each is opened by its own class of Pillow's, so that the limit of pixels is an
argument here and not a global of the process. Sizes are checked from the header, before any pixel is allocated. An image
that is cut short is refused rather than filled with gray. Colors are those of sRGB (`color_profiles`).

Pillow decides what an image is. A sound JPEG takes a way 1.4 times as fast: simplejpeg (libjpeg-turbo, as in Pillow) in its
strict mode, which gives the same pixels; whatever it has a word to say about goes to Pillow all the same. So no image is
lost by it; a few are won whose headers have a fault that concerns no pixel, like a cut ICC profile, which Pillow refuses.
"""

import ctypes
import importlib
import io
import logging
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from seer.core.records import ImageArray
from seer.data import formats, tiff
from seer.data.color_profiles import Conversion, conversion
from seer.data.pixels import MOST_PIXELS, USUAL, Pixels

MOST_BYTES = 64 << 20  # of a file; in proportion where more than MOST_PIXELS are allowed
MOST_REDUCED = (
    500_000_000  # pixels of a JPEG that is decoded at a reduced scale: its entropy code is read whole, 5 ns each
)
MOST_REDUCED_PROGRESSIVE = 200_000_000  # of one whose coefficients, 3 to 6 bytes a pixel, lie in memory all at once
BANDS_A_PIXEL = 4  # by which the limit of pixels holds for the numbers of an image of many channels
LEAST_SIDE = 8
MOST_ASPECT = 100
MOST_SCANS = 100  # of a JPEG; encoders write about ten
MOST_SCANNED = 2_000_000_000  # pixels times scans, two seconds: a scan of a few bytes costs as much as a full one
STRIP = 256  # rows that are turned at a time into other kinds of pixels

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
_GRAYS = (np.arange(0x10000) / 257).round().astype(np.uint8)  # of 16 bits
_SPREAD = {2: 85, 4: 17}  # by which Pillow multiplies grays of so many bits
_SEQUENTIAL = (0xC0, 0xC1)  # frames of Huffman codes: every scan has bits of every block
_TURN_MARKS = (b"Exif\0", b"tiff:Orientation")  # without one of them nothing in a file speaks of a turn
_PROFILE_MARK = b"ICC_PROFILE\0"
_CLASSES = {"BMP": "Bmp", "WEBP": "WebP"}  # of Pillow's names for its modules and classes, those that are spelled oddly

Image.MAX_IMAGE_PIXELS = MOST_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)
# what Pillow has to say of a block besides the pixels names its own files, and is nothing that people can act on
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").addHandler(
    logging.NullHandler()
)  # else it is written to standard error, if nobody asked for it


class Undecodable(ValueError):
    """Says that an image cannot be used: the text is the reason, `kind` (of records.SKIP_REASONS) what it is counted by."""

    def __init__(self, reason: str, kind: str = "damaged"):
        super().__init__(reason)
        self.kind = kind


def decode(
    data: bytes,
    scratch: np.ndarray | None = None,
    pixels: Pixels = USUAL,
    *,
    shorter: int | None = None,
    longer: int | None = None,
) -> ImageArray:
    """Returns the image as uint8 [h, w, 3] sRGB, turned upright by its EXIF orientation, transparency laid on
    `pixels.ground`; as its gray [h, w, 1], or as its own bands [h, w, C], by `pixels.channels`. Raises Undecodable.

    scratch: uint8 [n] in which the image may be laid if it fits, to be overwritten by the next one: memory fresh from
    the system costs a sixteenth of the time of decoding. shorter, longer: a side that suffices; a JPEG of more than
    `pixels.most` is then decoded at 1/2, 1/4 or 1/8 of its scale, if that leaves it. Others are refused.
    """
    if not data:
        raise Undecodable("empty", "empty")
    most_bytes = MOST_BYTES * max(1, pixels.most // MOST_PIXELS)
    if len(data) > most_bytes:
        raise Undecodable(f"{len(data)} bytes, more than {most_bytes}", "size")
    kind = formats.format_of(data)
    if kind is None:
        raise Undecodable(formats.refusal(data), "format")
    if pixels.channels not in (1, 3):
        return _own_bands(data, kind, pixels)
    wanted = _Wanted(pixels.most, shorter, longer)
    sound = _sound_jpeg(data, scratch, wanted) if kind == "JPEG" else None
    array = _by_pillow(data, kind, pixels, wanted) if sound is None else sound
    return array if pixels.channels == 3 else np.array(Image.fromarray(array).convert("L"))[..., None]


def _by_pillow(data: bytes, kind: str, pixels: Pixels, wanted: "_Wanted") -> ImageArray:
    """Returns the image as uint8 [h, w, 3]. Raises Undecodable."""
    with _as_undecodable(), _opened(data, kind) as image:
        if kind == "JPEG":
            _draft(image, data, wanted)
        else:
            _check_size(*image.size, pixels.most)
        return _rgb(image, pixels.ground)


@contextmanager
def _as_undecodable() -> Iterator[None]:
    """Turns whatever a decoder raises into Undecodable."""
    try:
        yield
    except Undecodable:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more on damaged files
        words = re.sub(r" <_io\.BytesIO.*>", "", str(error))  # the address of a buffer says nothing
        raise Undecodable(f"{type(error).__name__}: {words}", _kind(error)) from error


def _own_bands(data: bytes, kind: str, pixels: Pixels) -> ImageArray:
    """Returns uint8 [h, w, C], 16 bits scaled to 8; no band is taken for a color or for transparency. Raises Undecodable."""
    with _as_undecodable():
        if kind == "TIFF":
            _class_of(kind)
            found = tiff.layout(data)
            _check_bands(found.width, found.height, found.bands, pixels)
            array, turn = tiff.bands(data, found), found.turn
        else:
            with _opened(data, kind) as image:
                _check_bands(*image.size, 3 if image.mode == "P" else len(image.getbands()), pixels)
                image.load()
                array, turn = np.array(image), _turn_of(image)
        return np.ascontiguousarray(_turned(_GRAYS[array] if array.dtype == np.uint16 else array, turn))


def _check_bands(width: int, height: int, bands: int, pixels: Pixels) -> None:
    if bands != pixels.channels:
        raise Undecodable(f"an image of {bands} channels, where data.channels={pixels.channels}", "format")
    if width * height * bands > BANDS_A_PIXEL * pixels.most:
        raise Undecodable(
            f"{width} x {height} of {bands} channels is more than {BANDS_A_PIXEL * pixels.most} numbers", "size"
        )
    _check_size(width, height, pixels.most)


def _turned(array: np.ndarray, turn: int) -> np.ndarray:
    """Returns [h, w, C] upright, by an EXIF orientation from 1 to 8."""
    if turn in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    down, right = turn in (3, 4, 7, 8), turn in (2, 3, 6, 7)
    return array[:: -1 if down else 1, :: -1 if right else 1]


@dataclass(frozen=True)
class _Wanted:
    """Says at what scale a JPEG is to be decoded."""

    most: int
    shorter: int | None
    longer: int | None

    def divisor(self, width: int, height: int, progressive: bool) -> int:
        """Returns that of the sides: 1 for every image within the limit; for others the largest that leaves twice the side
        that suffices, or else that side. Raises Undecodable."""
        most = MOST_REDUCED_PROGRESSIVE if progressive else MOST_REDUCED
        reducible = (self.shorter or self.longer) and self.most < width * height <= most
        side = min(width, height) if self.shorter else max(width, height)
        for room, divisor in ((2, 8), (2, 4), (2, 2), (1, 8), (1, 4), (1, 2)) if reducible else ():
            sides = -(-width // divisor), -(-height // divisor)
            if sides[0] * sides[1] <= self.most and side // divisor >= room * (self.shorter or self.longer or 1):
                _check_size(*sides, self.most)
                return divisor
        _check_size(width, height, self.most)
        return 1


@cache
def _class_of(kind: str) -> Any:
    name = _CLASSES.get(kind, kind.capitalize())
    module: Any = importlib.import_module(f"PIL.{name}ImagePlugin")
    if kind == "AVIF":
        module.DEFAULT_MAX_THREADS = 1  # the loader has threads of its own
    if kind == "TIFF":
        _silence_libtiff()
    return getattr(module, f"{name}ImageFile")


def _silence_libtiff() -> None:
    """Keeps libtiff from writing to standard error what Pillow raises as well, a line for each damaged file."""
    with suppress(OSError, AttributeError, StopIteration):  # another system, or a Pillow that holds the library inside
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
        library = ctypes.CDLL(next(line.split(maxsplit=5)[5] for line in maps.splitlines() if "/libtiff" in line))
        for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            handler.restype, handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            handler(None)


def _opened(data: bytes, kind: str) -> Image.Image:
    """Returns an image whose headers are read, by Pillow's class for this format alone."""
    try:
        return _class_of(kind)(io.BytesIO(data))
    except ValueError as error:
        if kind != "PNG" or "MAX_TEXT_CHUNK" not in str(error) or (lean := _without_profile(data)) == data:
            raise
        return _class_of(kind)(io.BytesIO(lean))
    except (SyntaxError, IndexError, TypeError, struct.error) as error:
        raise UnidentifiedImageError(f"cannot identify image file: {error}") from error


def _without_profile(data: bytes) -> bytes:
    """Returns a PNG without its profile, of which Pillow unpacks a million bytes and refuses the image for more."""
    at = data.find(b"iCCP", 33, 33 + (64 << 10))
    if at < 0:
        return data
    return data[: at - 4] + data[at + 8 + int.from_bytes(data[at - 4 : at], "big") :]


def _draft(image: Image.Image, data: bytes, wanted: _Wanted) -> None:
    """Sets the scale at which a JPEG will be decoded. Raises Undecodable."""
    end, frame = _headers(data)
    width, height = image.size
    divisor = wanted.divisor(width, height, frame not in _SEQUENTIAL)
    _check_scans(data, end, frame, width, height)
    if divisor > 1:
        image.draft(None, (width // divisor, height // divisor))


def decode_mask(data: bytes) -> np.ndarray:
    """Returns uint8 [h, w], the number of each pixel: of a PNG with one number of up to 8 bits a pixel, a palette's indices
    being such numbers. Other files are refused, since their pixels are no numbers of classes or were changed by writing.

    Raises Undecodable of kind `target`.
    """
    if len(data) > MOST_BYTES or data[:8] != b"\x89PNG\r\n\x1a\n":
        raise Undecodable(
            f"its mask is no PNG of up to {MOST_BYTES} bytes: {len(data)} bytes, begins with {data[:8].hex()}", "target"
        )
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            _check_size(*image.size, MOST_PIXELS)
            if image.mode not in ("L", "P", "1"):
                raise Undecodable(
                    f"its mask has pixels of mode {image.mode}; one number of up to 8 bits is expected", "target"
                )
            image.load()
            turn = _TURN.get(_turn_of(image))
            numbers = np.array(image if turn is None else image.transpose(turn)).astype(np.uint8)
        spread = _SPREAD.get(data[24], 1) if data[25] == 0 else 1  # bit depth and kind of color, of the first header
        return numbers // np.uint8(spread)
    except Undecodable as error:
        raise Undecodable(str(error), "target") from error
    except Exception as error:  # as in decode
        words = re.sub(r" <_io\.BytesIO.*>", "", str(error))
        raise Undecodable(f"its mask: {type(error).__name__}: {words}", "target") from error


def reencoded(
    data: bytes, max_side: int | None, quality: int | None, pixels: Pixels = USUAL
) -> tuple[str | None, bytes]:
    """Returns an image as it is to be stored: ("jpg", new bytes), or (None, data) where it is to stay as it is.

    With a quality every image becomes a JPEG, upright and on the ground, unless it is one of the right size and would grow;
    without, only those whose longer side is above max_side, at quality 90. Raises Undecodable.
    """
    array = decode(data, None, pixels, longer=max_side)
    height, width, _ = array.shape
    longest = max(height, width)
    if max_side is not None and longest > max_side:
        size = [max(LEAST_SIDE, round(side * max_side / longest)) for side in (width, height)]
        array = np.asarray(Image.fromarray(array).resize((size[0], size[1]), Image.Resampling.LANCZOS))
        return "jpg", encode_jpeg(array, quality or 90)
    if quality is None:
        return None, data
    new = encode_jpeg(array, quality)
    return (None, data) if data[:3] == b"\xff\xd8\xff" and len(new) >= len(data) else ("jpg", new)


def encode_jpeg(array: ImageArray, quality: int) -> bytes:
    """Returns a JPEG file of uint8 [h, w, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _sound_jpeg(data: bytes, scratch: np.ndarray | None, wanted: _Wanted) -> ImageArray | None:
    """Returns the pixels of a JPEG without a fault in gray or YCbCr, or None. Raises Undecodable for a size."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in ("YCbCr", "Gray"):  # the inks of CMYK are turned round by some programs; Pillow knows
            return None
        end, frame = _headers(data)
        divisor = wanted.divisor(width, height, frame not in _SEQUENTIAL)
        _check_scans(data, end, frame, width, height)
        if any(data.find(mark, 0, end) >= 0 for mark in _TURN_MARKS) and _orientation(data) != 1:
            return None
        turn = _conversion(data, end, space)
        if turn is not None and turn.mode != "RGB":
            return None
        height, width = -(-height // divisor), -(-width // divisor)
        fits = scratch is not None and height * width * 3 <= len(scratch)
        least = {"min_height": height, "min_width": width, "min_factor": divisor} if divisor > 1 else {}
        array = simplejpeg.decode_jpeg(data, "RGB", buffer=scratch if fits else None, strict=True, **least)
        if turn is not None:
            turn.rows(array, STRIP)
        return array
    except Undecodable:
        raise
    except Exception:  # mostly ValueError; KeyError for the subsampling 4:4:1
        return None


def _conversion(data: bytes, end: int, space: str) -> Conversion | None:
    """Returns what a JPEG's profile asks for. A fast way: nearly all images have none, or that of sRGB."""
    if data.find(_PROFILE_MARK, 0, end) < 0:
        return None
    return conversion(_profile(data, end), "L" if space == "Gray" else "RGB")


def _profile(data: bytes, end: int) -> bytes | None:
    """Returns the profile of a JPEG, which lies in one segment or more before its frame, as Pillow puts it together."""
    parts, at = [], 2
    while at + 4 <= end and data[at] == 0xFF:
        if 0xD0 <= data[at + 1] <= 0xD7:  # these have no length
            at += 2
            continue
        length = data[at + 2] << 8 | data[at + 3]
        if data[at + 1] == 0xE2 and data.startswith(_PROFILE_MARK, at + 4):
            parts.append(data[at + 4 : at + 2 + length])
        at += 2 + length
    parts.sort()
    if not parts or len(parts[0]) < 14 or parts[0][13] != len(parts):
        return None
    return b"".join(part[14:] for part in parts)


def _headers(data: bytes) -> tuple[int, int | None]:
    """Returns where the first scan of a JPEG begins, walking from segment to segment, and the kind of its
    frame; its end and None where they do not follow each other."""
    at, frame = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF and 0xC0 <= data[at + 1] <= 0xFE:
        if data[at + 1] == 0xDA:
            return at, frame
        if 0xD0 <= data[at + 1] <= 0xD7:  # these have no length
            at += 2
            continue
        if data[at + 1] in (0xD8, 0xD9):
            break
        if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):
            frame = data[at + 1]
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return len(data), None


def _orientation(data: bytes) -> int:
    """Returns 1 (upright) to 8, from the headers; 0 where Pillow cannot read them."""
    try:
        with _opened(data, "JPEG") as image:
            return _turn_of(image)
    except Exception:  # as in decode
        return 0


def _turn_of(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a broken block, met as SyntaxError, struct.error and others, does not cost the image
        return 1


def _kind(error: Exception) -> str:
    if isinstance(error, tiff.TiffError) and error.unread:
        return "format"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return "size"
    return "truncated" if "truncated" in str(error).lower() else "damaged"


def _check_size(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise Undecodable(f"{width} x {height} is more than {most} pixels; max_pixels says how many may be", "size")
    if min(width, height) < LEAST_SIDE or max(width, height) > MOST_ASPECT * min(width, height):
        raise Undecodable(f"{width} x {height} is too small or too thin", "size")


def _check_scans(data: bytes, end: int, frame: int | None, width: int, height: int) -> None:
    """Raises Undecodable for a JPEG of too many scans, of next to nothing each: progressive ones may have them,
    and those of arithmetic coding. end, frame: of _headers."""
    if frame in _SEQUENTIAL:
        return
    scans = data.count(b"\xff\xda", end if frame else 0)  # in coded data 0xff is always followed by 0
    if scans > MOST_SCANS or scans * width * height > MOST_SCANNED:
        raise Undecodable(
            f"{scans} scans of {width} x {height} pixels, more than {MOST_SCANS} or {MOST_SCANNED} pixels altogether",
            "size",
        )


def _rgb(image: Image.Image, ground: int) -> ImageArray:
    profile = image.info.get("icc_profile")
    image.load()  # first: what fails from here on to the turn is the EXIF block, never the pixels
    turn = _TURN.get(_turn_of(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F":
        raise Undecodable("its pixels are floating-point numbers, whose black and white nothing tells", "format")
    transparent = image.mode != "RGB" and "transparency" in image.info
    colors = conversion(profile, image.mode)
    array = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP):  # what pixels are on the way may be several times as large
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        array[top : top + STRIP] = np.asarray(_rgb_strip(strip, transparent, ground, colors))
    return array


def _rgb_strip(image: Image.Image, transparent: bool, ground: int, colors: Conversion | None) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: convert() would saturate nearly all of them
        gray = Image.fromarray(_GRAYS[np.asarray(image).clip(0, 0xFFFF)])
        return gray.convert("RGB") if colors is None else colors(gray)
    if image.mode in ("RGBA", "LA", "PA") or transparent:
        clear = image.convert("RGBA")
        if colors is not None:
            alpha = clear.getchannel("A")
            clear = colors(image.convert(colors.mode) if image.mode != "PA" else clear)
            clear.putalpha(alpha)
        below = Image.new("RGBA", clear.size, (ground, ground, ground, 255))
        return Image.alpha_composite(below, clear).convert("RGB")
    return image.convert("RGB") if colors is None else colors(image)


def nearest(data: bytes, before: tuple[int, int], after: tuple[int, int]) -> bytes:
    """Returns a PNG of numbers (classes, depths) of the size `before`, height and width, at the size `after`, by the nearest
    pixel, so that no number arises that was not there; one of another size stays as it is.

    Raises Undecodable of kind `target`, also for what Pillow would cut to 8 bits: 16 bits a pixel in color.
    """
    if len(data) > MOST_BYTES or data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 26:
        raise Undecodable(f"no PNG of up to {MOST_BYTES} bytes, so it cannot be made smaller", "target")
    bits, kind = data[24], data[25]  # of the first header
    if bits == 16 and kind != 0:
        raise Undecodable("a PNG of 16 bits a pixel in color cannot be made smaller here without loss", "target")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            _check_size(*image.size, MOST_PIXELS)
            image.load()
            turn = _TURN.get(_turn_of(image))
            upright = image if turn is None else image.transpose(turn)
            if (upright.height, upright.width) != before:
                return data
            small = upright.resize((after[1], after[0]), Image.Resampling.NEAREST)
        if kind == 0 and bits in _SPREAD:
            small = Image.fromarray(np.asarray(small) // np.uint8(_SPREAD[bits]))
        buffer = io.BytesIO()
        clear = image.info.get("transparency") if small.mode == "P" else None
        small.save(buffer, "PNG", **({} if clear is None else {"transparency": clear}))
        return buffer.getvalue()
    except Undecodable as error:
        raise Undecodable(str(error), "target") from error
    except Exception as error:  # as in decode
        words = re.sub(r" <_io\.BytesIO.*>", "", str(error))
        raise Undecodable(f"what belongs to it: {type(error).__name__}: {words}", "target") from error
