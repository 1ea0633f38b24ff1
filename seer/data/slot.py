"""A batch's place in memory: one block of bytes that holds every view and every number drawn for it.

One block, because a reader process writes it and the training process reads it, and between them goes nothing but the block's
number. It is laid out once and filled again and again, so a step costs no memory from the system.

Legend: V views, v views of one size, B images per rank, S side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from seer.core.records import Colour
from seer.data.multicrop import Draw, MultiCrop

_ALIGN = 64
_DRAWN = {"jitter": (torch.bool, ()), "order": (torch.uint8, (4,)), "factors": (torch.float32, (4,))}
_DRAWN |= {"gray": (torch.bool, ()), "sigma": (torch.float32, ())}
assert _DRAWN.keys() == {f.name for f in fields(Colour)}


@dataclass(frozen=True)
class Slot:
    """Views of one block. crops: per size uint8 [v, B, 3, S, S], channels_last; pixels: the same as arrays [v, B, S, S, 3];
    drawn: per size arrays [v, B, ...]."""

    crops: list[torch.Tensor]
    pixels: list[np.ndarray]
    colours: list[Colour]  # tensors [v * B, ...] over the same bytes
    drawn: list[dict[str, np.ndarray]]

    def write(self, draw: Draw, b: int) -> None:
        """What was drawn for picture b."""
        first = 0
        for arrays in self.drawn:
            v = len(arrays["gray"])
            for name, array in arrays.items():
                array[:, b] = getattr(draw, name)[first : first + v]
            first += v


class Layout:
    """How many bytes a batch of b images takes, and where in them each part lies."""

    def __init__(self, crop: MultiCrop, b: int):
        self.crop, self.b = crop, b
        self._parts: list[tuple[int, torch.dtype, Sequence[int]]] = []
        end = 0
        for v, side in zip(crop.counts, crop.sizes, strict=True):
            shapes = [(torch.uint8, (v, b, side, side, 3)), *((kind, (v * b, *rest)) for kind, rest in _DRAWN.values())]
            for kind, shape in shapes:
                self._parts.append((end, kind, shape))
                end += -(-int(np.prod(shape)) * kind.itemsize // _ALIGN) * _ALIGN
        self.bytes = end

    def slot(self, block: torch.Tensor) -> Slot:
        """block: uint8 [bytes]."""
        parts = [
            block[first : first + int(np.prod(shape)) * kind.itemsize].view(kind).view(*shape)
            for first, kind, shape in self._parts
        ]
        each = 1 + len(_DRAWN)
        images, colours, drawn = [], [], []
        for i, v in enumerate(self.crop.counts):
            image, *numbers = parts[i * each : (i + 1) * each]
            images.append(image)
            colours.append(Colour(**dict(zip(_DRAWN, numbers, strict=True))))
            drawn.append(
                {name: n.numpy().reshape(v, self.b, *n.shape[1:]) for name, n in zip(_DRAWN, numbers, strict=True)}
            )
        return Slot([x.permute(0, 1, 4, 2, 3) for x in images], [x.numpy() for x in images], colours, drawn)
