"""A buffer is one block of bytes in which every view and every number of a batch has its own place."""

import numpy as np
import pytest
import torch

from seer.data.loading.batch_buffer import BatchLayout
from seer.data.multicrop import MultiCrop

CROP = MultiCrop((24, 16), (2, 3), ((0.3, 1), (0.1, 0.3)), blur=1.0)
NAMES = ("jitter", "order", "factors", "gray", "sigma")


def test_colors_are_laid_view_by_view_like_the_crops():
    layout = BatchLayout(CROP.layout(4), 4)
    buffer = layout.buffer(torch.empty(layout.bytes, dtype=torch.uint8))
    draws = [CROP.draw(50, 50, key) for key in range(4)]
    for b in (2, 0, 3, 1):
        CROP.store_params(draws[b], buffer.arrays, b)
    for size, first, count in ((24, 0, 2), (16, 2, 3)):
        for name in NAMES:
            found = buffer.tensors[f"color/{size}/{name}"]
            assert len(found) == count * 4
            for view in range(count):
                for b in range(4):
                    np.testing.assert_array_equal(found[view * 4 + b].numpy(), getattr(draws[b], name)[first + view])


def fields(b: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Of two views, and targets as another transform may name them."""
    targets = {"label": (torch.int64, (b,)), "mask": (torch.uint8, (b, 5, 7)), "boxes": (torch.float32, (b, 3, 4))}
    return {**CROP.layout(b), **targets}


@pytest.mark.parametrize("b", [1, 3, 8])
def test_parts_fill_the_block_without_meeting(b):
    layout = BatchLayout(fields(b), b)
    block = torch.zeros(layout.bytes, dtype=torch.uint8)
    tensors = layout.buffer(block).tensors
    assert {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()} == fields(b)
    for tensor in tensors.values():
        before = block.clone()
        where = tensor.untyped_storage().data_ptr()
        assert where == block.untyped_storage().data_ptr()  # no copy
        start = tensor.storage_offset() * tensor.element_size()
        span = slice(start, start + tensor.numel() * tensor.element_size())
        assert (before[span] == 0).all()  # nobody was here before
        block[span] = 1
    assert block.sum() >= layout.bytes - 64 * len(tensors)  # what is left lines parts up


def test_crops_are_channels_last_over_the_same_bytes_as_their_arrays():
    layout = BatchLayout(CROP.layout(2, painted=True), 2)
    buffer = layout.buffer(torch.empty(layout.bytes, dtype=torch.uint8))
    assert list(buffer.tensors) == ["views/24", "views/16"]  # painted: nothing is left to be applied later
    for name, views, size in (("views/24", 2, 24), ("views/16", 3, 16)):
        tensor, array = buffer.tensors[name], buffer.arrays[name]
        assert tuple(tensor.shape) == (views * 2, 3, size, size) and tensor.is_contiguous(
            memory_format=torch.channels_last
        )
        assert array.shape == (views * 2, size, size, 3) and array.ctypes.data == tensor.data_ptr()
        assert all(array[i].flags.c_contiguous for i in range(len(array)))  # which OpenCV writes into
