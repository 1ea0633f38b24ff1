"""Lays a batch out in memory: one block of bytes holds every field that a transform names.

One block, because a reader process writes it and the training process reads it, and between them goes nothing but the block's
number. It is laid out once and filled again and again, so a step costs no memory from the system.

Legend: B samples per rank, N views of one size (or B), C channels, H W sides.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

_ALIGN = 64


@dataclass(frozen=True)
class BatchBuffer:
    """Holds the fields over the bytes of one block: tensors as a batch has them, and the same as arrays to be
    filled. One of four axes is [N, C, H, W], channels_last, as a tensor, and [N, H, W, C] as an array."""

    tensors: dict[str, torch.Tensor]
    arrays: dict[str, np.ndarray]


class BatchLayout:
    """Says how many bytes a batch takes, and where in them each field lies. fields:
    `Transform.layout(batch_size)`."""

    def __init__(self, fields: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], batch_size: int):
        self.batch_size = batch_size
        self._fields: dict[str, tuple[int, int, torch.dtype, tuple[int, ...]]] = {}  # first byte, one behind the last
        end = 0
        for name, (kind, shape) in fields.items():
            inner = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
            size = int(np.prod(shape)) * kind.itemsize
            self._fields[name] = end, end + size, kind, inner
            end += -(-size // _ALIGN) * _ALIGN
        self.bytes = end

    def buffer(self, block: torch.Tensor) -> BatchBuffer:
        """Returns the fields over a block. block: uint8 [bytes]."""
        parts = {n: block[first:last].view(kind).view(shape) for n, (first, last, kind, shape) in self._fields.items()}
        tensors = {name: part.permute(0, 3, 1, 2) if part.dim() == 4 else part for name, part in parts.items()}
        return BatchBuffer(tensors, {name: part.numpy() for name, part in parts.items()})
