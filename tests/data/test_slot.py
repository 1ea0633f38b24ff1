"""A slot is one block of bytes in which every view and every number of a batch has its own place."""

import numpy as np
import pytest
import torch

from seer.data.multicrop import MultiCrop
from seer.data.slot import Layout

CROP = MultiCrop((24, 16), (2, 3), ((0.3, 1), (0.1, 0.3)), blur=1.0)
NAMES = ("jitter", "order", "factors", "gray", "sigma")


def test_colours_are_laid_view_by_view_like_the_crops():
    layout = Layout(CROP, 4)
    slot = layout.slot(torch.empty(layout.bytes, dtype=torch.uint8))
    draws = [CROP.draw(50, 50, key) for key in range(4)]
    for b in (2, 0, 3, 1):
        slot.write(draws[b], b)
    for colour, first, count in ((slot.colours[0], 0, 2), (slot.colours[1], 2, 3)):
        for name in NAMES:
            found = getattr(colour, name)
            assert len(found) == count * 4
            for view in range(count):
                for b in range(4):
                    np.testing.assert_array_equal(found[view * 4 + b].numpy(), getattr(draws[b], name)[first + view])


@pytest.mark.parametrize("b", [1, 3, 8])
def test_parts_fill_the_block_without_meeting(b):
    layout = Layout(CROP, b)
    block = torch.zeros(layout.bytes, dtype=torch.uint8)
    slot = layout.slot(block)
    tensors = [*slot.crops, *(getattr(colour, name) for colour in slot.colours for name in NAMES)]
    for tensor in tensors:
        before = block.clone()
        where = tensor.untyped_storage().data_ptr()
        assert where == block.untyped_storage().data_ptr()  # no copy
        start = tensor.storage_offset() * tensor.element_size()
        span = slice(start, start + tensor.numel() * tensor.element_size())
        assert (before[span] == 0).all()  # nobody was here before
        block[span] = 1
    assert block.sum() >= layout.bytes - 64 * len(tensors)  # what is left lines parts up


def test_crops_are_uint8_channels_last_and_stay_so_when_views_and_images_are_joined():
    layout = Layout(CROP, 2)
    slot = layout.slot(torch.empty(layout.bytes, dtype=torch.uint8))
    assert [tuple(c.shape) for c in slot.crops] == [(2, 2, 3, 24, 24), (3, 2, 3, 16, 16)]
    for crop in slot.crops:
        joined = crop.flatten(0, 1)
        assert joined.data_ptr() == crop.data_ptr() and joined.is_contiguous(memory_format=torch.channels_last)
