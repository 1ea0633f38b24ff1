"""The effective rank of features whose singular values are known."""

import math

import pytest
import torch

from seer.core.errors import RequestError
from seer.evals.features import LabelledImages
from seer.evals.rankme import RankMe, rankme


def with_singular_values(values: list[float], rows: int = 40, columns: int = 12) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(rows, len(values), generator=g, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, len(values), generator=g, dtype=torch.float64))
    return (left * torch.tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_equal_singular_values_give_their_number(rank):
    assert rankme(with_singular_values([2.0] * rank).float()) == pytest.approx(rank, rel=1e-4)


def test_it_is_the_exponential_of_the_entropy_of_their_shares():
    shares = [0.5, 0.25, 0.125, 0.125]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert rankme(with_singular_values([8 * p for p in shares])) == pytest.approx(expected, rel=1e-4)


def test_length_does_not_matter_and_nothing_at_all_is_no_error():
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    assert rankme(1000 * features) == pytest.approx(rankme(features))
    assert 1 <= rankme(features) <= 8
    assert math.isfinite(rankme(torch.zeros(30, 8)))


def test_one_row_and_one_image_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 8\)"):
        rankme(torch.zeros(1, 8))
    with pytest.raises(RequestError, match=r"eval\.most=1"):
        RankMe(None, None, mean=(0.0,), std=(1.0,), most=1)  # type: ignore[arg-type]


def test_images_are_taken_evenly_and_the_evaluator_of_the_caller_keeps_all_of_its_own():
    images = LabelledImages.__new__(LabelledImages)
    images.rows = [(0, r) for r in range(10)]
    few, all_ = (RankMe(images, images, mean=(0.0,), std=(1.0,), most=n) for n in (4, 20))
    assert few.images.rows == [(0, 0), (0, 2), (0, 5), (0, 7)]
    assert len(all_.images) == len(images) == 10
