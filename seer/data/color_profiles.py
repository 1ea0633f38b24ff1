"""Turns colors that an ICC profile describes into sRGB, by littlecms with its perceptual intent.

Surprising: a profile is known for sRGB by what it does to a grid of colors, not by its name, of which there are dozens; one
that changes no color by more than two levels leaves every bit as it is. A profile that cannot be used, being broken or of
other pixels than those of its image, is ignored: it never costs an image.

A conversion takes milliseconds to make and a few nanoseconds a pixel to use, so that some are kept, by the hash of their
profile. Transforms are used by several threads at once, which littlecms allows.
"""

import hashlib
import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageCms

MOST_BYTES = 8 << 20  # of a profile; those of presses take two or three million
MOST_KEPT = 64
SAME = 2  # levels at the most, and
SAME_MEAN = 0.7  # in the mean, by which a profile may differ from sRGB and still be taken for it
_GRAY_MODES = ("L", "LA", "La", "1")
_kept: dict[tuple[bytes, str], "Conversion | None"] = {}


@dataclass(frozen=True)
class Conversion:
    """Turns images whose pixels are of `mode` into sRGB."""

    mode: str
    transform: ImageCms.ImageCmsTransform

    def __call__(self, image: Image.Image) -> Image.Image:
        """Returns an RGB image; transparency is lost."""
        return self.transform.apply(image if image.mode == self.mode else image.convert(self.mode))

    def rows(self, image: np.ndarray, strip: int) -> None:
        """Converts uint8 [h, w, 3] in place, so many rows at a time."""
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
        found = Conversion(mode, transform)
        return None if mode != "CMYK" and _changes_nothing(found) else found
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # as Pillow says that it cannot be read or used
        return None


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.createProfile("sRGB")  # type: ignore[return-value]


def _changes_nothing(found: Conversion) -> bool:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)  # [256, 1, 3]
    colors = ramp
    if found.mode == "RGB":
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 1, 3)
        colors = np.concatenate([ramp, grid])
    turned = np.asarray(found(Image.fromarray(colors if found.mode == "RGB" else colors[..., 0])))
    off = np.abs(turned.astype(np.int16) - colors)
    return bool(off.max() <= SAME and off.mean() <= SAME_MEAN)
