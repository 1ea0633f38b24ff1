"""One forward a resolution, and the layout in which the backbone meets its crops."""

import pytest
import torch
from torch import nn

from seer.models.multicrop import MultiCropModel


class Watched(nn.Module):
    """A backbone that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.seen = nn.Conv2d(3, 4, 3, padding=1), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return self.stem(x).mean((2, 3))


class Head(nn.Module):
    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return features, 2 * features


def crops() -> list[torch.Tensor]:
    return [torch.randn(n, 3, s, s).contiguous(memory_format=torch.channels_last) for n, s in ((4, 8), (6, 5))]


def test_the_backbone_runs_once_a_resolution_and_rows_keep_their_order() -> None:
    backbone, x = Watched(), crops()
    embeddings, scores = MultiCropModel(backbone, Head())(x)
    assert [tuple(seen.shape) for seen in backbone.seen] == [(4, 3, 8, 8), (6, 3, 5, 5)]
    expected = torch.cat([backbone.stem(one).mean((2, 3)) for one in x])
    torch.testing.assert_close(embeddings, expected)
    torch.testing.assert_close(scores, 2 * expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_crops_take_the_layout_of_the_weights(layout: torch.memory_format) -> None:
    backbone = Watched().to(memory_format=layout)
    MultiCropModel(backbone, Head())(crops())
    assert all(seen.is_contiguous(memory_format=layout) for seen in backbone.seen)
