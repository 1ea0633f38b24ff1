"""Turns bytes into pixels: the only file that knows how images are written.

Only JPEG, PNG and WebP are opened, told by their first bytes, never by their names: Pillow knows some forty formats,
one of which calls an external interpreter. Sizes are checked from the header, before any pixel is allocated. An image
that is cut short is refused rather than filled with gray.

Pillow decides what an image is. A sound JPEG takes a way 1.4 times as fast: simplejpeg (libjpeg-turbo, as in Pillow) in its
strict mode, which gives the same pixels; whatever it has a word to say about goes to Pillow all the same. So no image is
lost by it; a few are won whose headers have a fault that concerns no pixel, like a cut ICC profile, which Pillow refuses.
"""

import io
import re
import warnings

import numpy as np
import simplejpeg
from PIL import Image

from seer.core.records import ImageArray

FORMATS = ("JPEG", "PNG", "WEBP")
MOST_BYTES = 64 << 20
MOST_PIXELS = 50_000_000
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

Image.MAX_IMAGE_PIXELS = MOST_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)


class Undecodable(ValueError):
    """Says that an image cannot be used: the text is the reason, `kind` (of records.SKIP_REASONS) what it is counted by."""

    def __init__(self, reason: str, kind: str = "damaged"):
        super().__init__(reason)
        self.kind = kind


def decode(data: bytes, scratch: np.ndarray | None = None) -> ImageArray:
    """Returns the image as uint8 [h, w, 3] RGB, turned upright by its EXIF orientation, transparency laid on
    black. Raises Undecodable.

    scratch: uint8 [n] in which the image may be laid if it fits, to be overwritten by the next one: memory fresh from
    the system costs a sixteenth of the time of decoding.
    """
    if not data:
        raise Undecodable("empty", "empty")
    if len(data) > MOST_BYTES:
        raise Undecodable(f"{len(data)} bytes, more than {MOST_BYTES}", "size")
    if not (data[:3] == b"\xff\xd8\xff" or data[:8] == b"\x89PNG\r\n\x1a\n" or data[:4] + data[8:12] == b"RIFFWEBP"):
        raise Undecodable(f"not a JPEG, PNG or WebP: begins with {data[:8].hex()}", "format")
    sound = _sound_jpeg(data, scratch) if data[:3] == b"\xff\xd8\xff" else None
    if sound is not None:
        return sound
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size)
            if data[:3] == b"\xff\xd8\xff":
                _check_scans(data, *_headers(data), *image.size)
            return _rgb(image)
    except Undecodable:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more on damaged files
        words = re.sub(r" <_io\.BytesIO.*>", "", str(error))  # the address of a buffer says nothing
        raise Undecodable(f"{type(error).__name__}: {words}", _kind(error)) from error


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
            _check_size(*image.size)
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


def reencoded(data: bytes, max_side: int | None, quality: int | None) -> tuple[str | None, bytes]:
    """Returns an image as it is to be stored: ("jpg", new bytes), or (None, data) where it is to stay as it is.

    With a quality every image becomes a JPEG, upright and on black, unless it is one of the right size and would grow;
    without, only those whose longer side is above max_side, at quality 90. Raises Undecodable.
    """
    pixels = decode(data)
    height, width, _ = pixels.shape
    longest = max(height, width)
    if max_side is not None and longest > max_side:
        size = [max(LEAST_SIDE, round(side * max_side / longest)) for side in (width, height)]
        pixels = np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.LANCZOS))
        return "jpg", encode_jpeg(pixels, quality or 90)
    if quality is None:
        return None, data
    new = encode_jpeg(pixels, quality)
    return (None, data) if data[:3] == b"\xff\xd8\xff" and len(new) >= len(data) else ("jpg", new)


def encode_jpeg(pixels: ImageArray, quality: int) -> bytes:
    """Returns a JPEG file of uint8 [h, w, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _sound_jpeg(data: bytes, scratch: np.ndarray | None) -> ImageArray | None:
    """Returns the pixels of a JPEG without a fault in gray or YCbCr, or None. Raises Undecodable for a size."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in ("YCbCr", "Gray"):  # the inks of CMYK are turned round by some programs; Pillow knows
            return None
        _check_size(width, height)
        end, frame = _headers(data)
        _check_scans(data, end, frame, width, height)
        if any(data.find(mark, 0, end) >= 0 for mark in _TURN_MARKS) and _orientation(data) != 1:
            return None
        fits = scratch is not None and height * width * 3 <= len(scratch)
        return simplejpeg.decode_jpeg(data, "RGB", buffer=scratch if fits else None, strict=True)
    except Undecodable:
        raise
    except Exception:  # mostly ValueError; KeyError for the subsampling 4:4:1
        return None


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
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return _turn_of(image)
    except Exception:  # as in decode
        return 0


def _turn_of(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a broken block, met as SyntaxError, struct.error and others, does not cost the image
        return 1


def _kind(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return "size"
    return "truncated" if "truncated" in str(error).lower() else "damaged"


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise Undecodable(f"{width} x {height} is more than {MOST_PIXELS} pixels", "size")
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


def _rgb(image: Image.Image) -> ImageArray:
    image.load()  # first: what fails from here on to the turn is the EXIF block, never the pixels
    turn = _TURN.get(_turn_of(image))
    if turn is not None:
        image = image.transpose(turn)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP):  # what pixels are on the way may be several times as large
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        pixels[top : top + STRIP] = np.asarray(_rgb_strip(strip, image.mode != "RGB" and "transparency" in image.info))
    return pixels


def _rgb_strip(image: Image.Image, transparent: bool) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: convert() would saturate nearly all of them
        return Image.fromarray(_GRAYS[np.asarray(image).clip(0, 0xFFFF)]).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or transparent:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")
