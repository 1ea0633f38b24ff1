"""Small images and archives for the tests of this folder and others."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, height: int = 24, width: int = 20) -> np.ndarray:
    """uint8 [h, w, 3]: a smooth image that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def encoded(image: np.ndarray | Image.Image, form: str = "JPEG", **how: object) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, form, **how)
    return buffer.getvalue()


def jpeg(seed: int, height: int = 24, width: int = 20) -> bytes:
    return encoded(pixels(seed, height, width), quality=95)


def png(seed: int, height: int = 24, width: int = 20) -> bytes:
    return encoded(pixels(seed, height, width), "PNG")


def many_scans(side: int, scans: int, mode: str = "RGB") -> bytes:
    """A progressive JPEG of one color whose last scan, a few bytes, comes again and again."""
    data = encoded(
        Image.new(mode, (side, side), 120 if mode == "L" else (120, 60, 30, 9)[: len(mode)]), progressive=True
    )
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - data.count(b"\xff\xda")) + b"\xff\xd9"


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
