"""Loads a backbone with what its images are to become: `seer.load`.

    import seer

    backbone = seer.load("runs/mine")                              # eval mode, float32, on the CPU
    images = torch.stack([backbone.preprocess(path) for path in paths])
    features = backbone(images)                                    # [B, C, S, S] -> [B, backbone.feature_dim]

Pixels go the way that `seer evaluate` takes them, so the features are the same to the last bit.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seer.core.errors import RequestError
from seer.data.augment import normalize
from seer.data.decode import decode
from seer.data.pixels import USUAL, Pixels
from seer.data.transforms.one_view import center
from seer.evals.features import short_side
from seer.run.weights import pixels_of, state


@dataclass(frozen=True)
class Preprocess:
    """Turns an image into what a backbone takes: the shorter side resized, the center cut out, normalized.

    size: side of the cut; resize: length of the shorter side before it. mean, std: of each channel, of levels from 0 to 1.
    pixels: what an image is decoded to.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: Pixels = USUAL

    def __call__(self, image: Any) -> torch.Tensor:
        """Returns float32 [C, S, S]. image: a path, the bytes of a file, an image of Pillow's, or uint8 [h, w, C].

        Raises Undecodable for a file that is no image, OSError for one that cannot be read, RequestError for anything else.
        """
        if isinstance(image, str | os.PathLike):
            image = Path(image).read_bytes()
        if isinstance(image, bytes):
            image = decode(image, None, self.pixels, shorter=self.resize)
        elif hasattr(image, "convert"):  # Pillow's
            image = np.array(image.convert("L" if self.pixels.channels == 1 else "RGB"))
            image = image[..., None] if image.ndim == 2 else image
        image = self._checked(image)
        x = center(image, self.resize, self.size)[None].to(torch.float32, memory_format=torch.channels_last).div_(255)
        return normalize(x, self.mean, self.std)[0]

    def _checked(self, image: Any) -> np.ndarray:
        channels = self.pixels.channels
        if (
            not isinstance(image, np.ndarray)
            or image.dtype != np.uint8
            or image.ndim != 3
            or image.shape[2] != channels
        ):
            given = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
            raise RequestError(
                f"an image is expected, and {given} is none: a path, the bytes of a file, an image of Pillow's, or uint8 [h, w, "
                f"{channels}]"
            )
        return np.require(image, requirements="W")  # a copy of one that is not: torch takes no other


def load(path: str | os.PathLike[str]) -> Any:
    """Loads the backbone of a run, one of its checkpoints, a bundle or a file of weights: float32, on the CPU, in eval mode, with
    `preprocess` for its images.

    Of a run that goes on it is the newest whole state. Raises RequestError, StorageError, FileNotFoundError and ValueError, as
    `weights=` of every verb does.
    """
    found = state(os.fspath(path))
    backbone, card = found.backbone.eval(), found.card
    size, mean, std = card["input_size"], tuple(card["mean"]), tuple(card["std"])
    backbone.preprocess = Preprocess(size, short_side(size), mean, std, pixels_of(backbone, card))  # type: ignore[attr-defined]
    return backbone
