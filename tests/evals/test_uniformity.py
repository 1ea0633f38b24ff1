"""Uniformity and alignment where both are known, and that views are each row's own."""

import math

import pytest
import torch

from seer.core.errors import RequestError
from seer.data.shards.open import open_shards
from seer.evals.features import Alone, PlainImages
from seer.evals.rankme import RankMe
from seer.evals.uniformity import Alignment, Uniformity, distances, uniformity
from tests.data.image_files import png
from tests.evals.test_features import Sum

KIND = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


def test_uniformity_of_orthogonal_rows_of_one_point_and_of_opposite_ones_is_their_closed_form():
    assert uniformity(torch.eye(9) * 3) == pytest.approx(-4, abs=1e-12)  # every |x - y|^2 is 2
    assert uniformity(torch.ones(5, 4)) == pytest.approx(0, abs=1e-12)
    ends = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [5.0, 0.0], [-1.0, 0.0]])  # 2 pairs at 0, 4 pairs at 4
    assert uniformity(ends) == pytest.approx(math.log((2 + 4 * math.exp(-8)) / 6), abs=1e-12)
    with pytest.raises(ValueError, match=r"\(1, 4\)"):
        uniformity(torch.ones(1, 4))


def test_uniformity_in_blocks_is_that_of_all_pairs_at_once():
    x = torch.randn(2500, 6, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    whole = torch.pdist(unit).square().mul(-2).exp().mean().log()
    assert uniformity(x) == pytest.approx(float(whole), abs=1e-9)


def test_uniformity_of_points_on_a_circle_tends_to_the_mean_over_angles():
    angle = torch.arange(4096, dtype=torch.float64) * (2 * math.pi / 4096)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    bessel = float(torch.special.i0e(torch.tensor(4.0, dtype=torch.float64)))  # mean of exp(-4 + 4 cos), of all pairs
    assert uniformity(points) == pytest.approx(math.log((4096 * bessel - 1) / 4095), abs=1e-9)


def test_distances_of_equal_orthogonal_and_opposite_rows_are_0_2_and_4():
    first, second = torch.tensor([[2.0, 0.0]] * 3), torch.tensor([[7.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    assert distances(first, second).tolist() == pytest.approx([0, 2, 4], abs=1e-12)


@pytest.fixture
def images(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "broken.png").write_bytes(png(9)[:60])
    return tmp_path


def test_images_without_labels_are_read_all_but_the_broken_one(images):
    plain = PlainImages(open_shards(str(images)), size=16)
    assert len(plain) == 7 and plain.classes == ["image"]
    task = Alone(Sum().eval())
    found = {**RankMe(plain, None, **KIND).run(task), **Uniformity(plain, None, **KIND).run(task)}
    assert 1 <= found["rankme"] <= 6 and -8 < found["uniformity"] <= 0
    assert sum(plain.used().values()) == 6 and len(plain.broken) == 1


class Constant(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.ones(len(x), 3) * self.one


def test_alignment_is_that_of_the_views_of_each_row_however_they_are_batched_and_0_of_a_network_that_sees_nothing(
    images,
):
    plain = PlainImages(open_shards(str(images)), size=16)
    task = Alone(Sum().eval())
    judged = Alignment(plain, None, **KIND).judge(task)
    assert judged.told == {"alignment_images": 6} and 0 < judged.figures["alignment"] < 4
    low, high = judged.intervals["alignment"]
    assert low <= judged.figures["alignment"] <= high
    assert Alignment(plain, None, **KIND, batch=2, threads=1).run(task) == pytest.approx(judged.figures, abs=1e-6)
    assert Alignment(plain, None, **KIND, seed=1).run(task) != judged.figures
    assert Alignment(plain, None, **KIND).run(Alone(Constant()))["alignment"] == pytest.approx(0, abs=1e-12)
    views = Alignment(plain, None, **KIND).views((0, 0))
    assert views.shape == (2, 16, 16, 3) and (views[0] != views[1]).any()
    by_hand = []
    for place in plain.rows:
        if (views := Alignment(plain, None, **KIND).views(place)) is not None:
            x = (torch.from_numpy(views).permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
            a, b = torch.cat([x.mean((2, 3)), x[:, :, 0, 0]], 1).double()
            by_hand.append(float((a / a.norm() - b / b.norm()).square().sum()))
    assert judged.figures["alignment"] == pytest.approx(sum(by_hand) / 6, abs=1e-5)


def test_numbers_that_make_no_pairs_are_refused():
    with pytest.raises(RequestError, match=r"eval\.most=1"):
        Uniformity(None, None, **KIND, most=1)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"eval\.most=0"):
        Alignment(None, None, **KIND, most=0)  # type: ignore[arg-type]
