"""Turns colors that an ICC profile describes into sRGB, by littlecms with its perceptual intent.

Surprising: a profile is known for sRGB by what it does to a grid of colors, not by its name, of which there are dozens; one
that changes no color by more than two levels leaves every bit as it is. A profile that cannot be used, being broken or of
other pixels than those of its image, is ignored: it never costs an image.

A conversion takes milliseconds to make and nanoseconds a pixel to use, so that some are kept, by the hash of their profile.
Where a profile is curves and a matrix and `icc_matrix` comes within one level of littlecms on that grid, it takes its place, for it
takes 3 ns a pixel and littlecms 17. Transforms are used by several threads at once, which both allow.
"""

import hashlib
import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageCms

from seer.data import icc_matrix

MOST_BYTES = 8 << 20  # of a profile; those of presses take two or three million
MOST_KEPT = 64
SAME = 2  # levels at the most, and
SAME_MEAN = 0.7  # in the mean, by which a profile may differ from sRGB and still be taken for it
NEAR = 1  # level by which a quick conversion may differ from that of littlecms, of any color of the grid
_GRAY_MODES = ("L", "LA", "La", "1")
_kept: dict[tuple[bytes, str], "Conversion | None"] = {}


@dataclass(frozen=True)
class Conversion:
    """Turns images whose pixels are of `mode` into sRGB. quick: does what `transform` does, where it can be used."""

    mode: str
    transform: ImageCms.ImageCmsTransform
    quick: icc_matrix.Turn | None = None

    def __call__(self, image: Image.Image) -> Image.Image:
        """Returns an RGB image; transparency is lost."""
        image = image if image.mode == self.mode else image.convert(self.mode)
        if self.quick is None:
            return self.transform.apply(image)
        pixels = np.array(image)
        self.quick(pixels)
        return Image.fromarray(pixels)

    def rows(self, image: np.ndarray, strip: int) -> None:
        """Converts uint8 [h, w, 3] in place, by littlecms so many rows at a time."""
        if self.quick is not None:
            self.quick(image)
            return
        for top in range(0, len(image), strip):
            image[top : top + strip] = np.asarray(self(Image.fromarray(image[top : top + strip])))


def conversion(profile: object, mode: str) -> Conversion | None:
    """Returns what turns pixels of a mode of Pillow's into sRGB; None where they are to stay as they are."""
    if not isinstance(profile, bytes) or not 128 < len(profile) <= MOST_BYTES:  # 128: the header alone
        return None
    kind = "CMYK" if mode == "CMYK" else "L" if mode in _GRAY_MODES or mode.startswith("I") else "RGB"
    key = hashlib.sha256(profile).digest(), kind
    if key not in _kept:
        made = _made(profile, kind)
        # without a lock, which a fork might find held: each line is whole by itself, and a profile made twice does no harm
        for oldest in list(_kept)[: max(0, len(_kept) - MOST_KEPT + 1)]:
            _kept.pop(oldest, None)
        _kept[key] = made
        return made
    return _kept.get(key)


def _made(profile: bytes, kind: str) -> Conversion | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        mode = {("RGB", "RGB"): "RGB", ("RGB", "L"): "RGB", ("GRAY", "L"): "L", ("CMYK", "CMYK"): "CMYK"}.get(
            (space, kind)
        )
        if mode is None:
            return None
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        slow = Conversion(mode, transform)
        if mode == "CMYK":
            return slow
        colors = _grid(mode)
        turned = _difference(slow(colors), colors)
        if turned.max() <= SAME and turned.mean() <= SAME_MEAN:
            return None
        told = icc_matrix.read(profile) if mode == "RGB" else None
        quick = Conversion(mode, transform, icc_matrix.turn(told, _srgb_space())) if told else slow
        return quick if _difference(quick(colors), slow(colors)).max() <= NEAR else slow
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # as Pillow says that it cannot be read or used
        return None


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@cache
def _srgb_space() -> icc_matrix.Space:
    space = icc_matrix.read(_srgb().tobytes())
    assert space is not None, "Pillow's own sRGB has curves and a matrix"
    return space


@cache
def _grid(mode: str) -> Image.Image:
    """Returns all grays, and colors from nine steps of each channel where there are channels, one a row."""
    ramp = np.arange(256, dtype=np.uint8)[:, None]  # [256, 1]
    if mode == "L":
        return Image.fromarray(ramp)
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    return Image.fromarray(np.concatenate([ramp[..., None].repeat(3, axis=2), cube]))


def _difference(one: Image.Image, other: Image.Image) -> np.ndarray:
    return np.abs(np.asarray(one.convert("RGB"), dtype=np.int16) - np.asarray(other.convert("RGB")))
