"""Few labels: which images are drawn, what is chosen on them, and that more labels are worth more where they must be."""

import math
import statistics

import pytest
import torch

from seer.core.errors import RequestError
from seer.core.records import Labelled
from seer.evals.features import Alone
from seer.evals.linear import Linear, choose, fit
from seer.evals.lowshot import LowShot, draw, half_width
from tests.messages import naming


class Drawn:
    """Images of one pixel a channel whose first three channels say the class, as `LabelledImages` gives them."""

    size = 8

    def __init__(self, count: int, seed: int, noise: float = 60.0):
        g = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 3
        pixels = 90.0 + 70 * torch.eye(3)[self.labels] + noise * torch.randn(count, 3, generator=g)
        self.pixels = pixels.clamp(0, 255).byte()[:, :, None, None].expand(-1, -1, 8, 8)

    def batches(self, batch: int = 256, threads: int = 2):
        yield Labelled(self.pixels, self.labels)

    def made(self, make, batch: int = 256, threads: int = 2):
        return make(self.pixels), self.labels


class Stages(torch.nn.Module):
    """A backbone of two stages: the second sees all three channels, the first the sum alone."""

    feature_dim = 3

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward_stages(self, x):
        return {"stage1": x.sum(1, keepdim=True) * self.one, "stage2": x[:, :, ::2, ::2] * self.one}

    def forward(self, x):
        return self.forward_stages(x)["stage2"].mean((2, 3))


KIND = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


def test_a_draw_takes_its_part_of_each_class_and_a_smaller_one_lies_within_it():
    labels = torch.cat([torch.zeros(200), torch.ones(40), torch.full((3,), 2)]).long()[torch.randperm(243)]
    tenth, half, two = draw(labels, 0.1, 5), draw(labels, 0.5, 5), draw(labels, 2, 5)
    assert labels[tenth].bincount().tolist() == [20, 4, 1] and labels[half].bincount().tolist() == [100, 20, 2]
    assert labels[two].bincount().tolist() == [2, 2, 2] and draw(labels, 100, 0).bincount().max() == 1
    assert set(tenth.tolist()) < set(half.tolist()) and torch.equal(tenth, draw(labels, 0.1, 5))
    assert not torch.equal(tenth, draw(labels, 0.1, 6))


def test_the_penalty_chosen_is_the_one_that_does_best_on_what_is_kept_aside():
    x, y = Drawn(60, 0).pixels[:, :, 0, 0].float(), Drawn(60, 0).labels
    x = torch.cat([x, torch.randn(60, 40, generator=torch.Generator().manual_seed(1))], dim=1)
    aside = torch.zeros(60, dtype=torch.bool)
    for label in range(3):
        aside[(y == label).nonzero().flatten()[4::5]] = True
    penalties = (1e-6, 1e-1, 3.0)
    right = {p: fit(x[~aside], y[~aside], penalty=p).top1(x[aside], y[aside]) for p in penalties}
    best = choose(x, y, penalties)
    assert right[best] == max(right.values()) > min(right.values())
    assert choose(x[:6], y[:6], penalties) == 1e-1 and choose(x, y, (0.5,)) == 0.5


def test_half_of_an_interval_is_students():
    values = [0.50, 0.54, 0.52, 0.58, 0.51]
    assert half_width(values) == pytest.approx(2.7764 * statistics.stdev(values) / math.sqrt(5), rel=1e-4)
    assert math.isnan(half_width([0.5]))
    assert half_width([0.0, 1.0] * 15) == pytest.approx(
        2.0452 * statistics.stdev([0.0, 1.0] * 15) / math.sqrt(30), rel=3e-3
    )


def test_more_labels_are_worth_more_and_the_counts_are_told():
    found = LowShot(Drawn(600, 0), Drawn(900, 1), **KIND, parts=(0.01, 0.5, 5), draws=4).run(Alone(Stages()))
    assert found["lowshot_images/1%"] == 6 and found["lowshot_images/50%"] == 300 and found["lowshot_images/5"] == 15
    assert found["lowshot_top1/50%"] > found["lowshot_top1/5"] > found["lowshot_top1/1%"] > 1 / 3
    assert 0 < found["lowshot_half_width/50%"] < found["lowshot_half_width/1%"]
    for wrong in ({"parts": (0.0,)}, {"parts": (1.5,)}, {"parts": ()}, {"draws": 0}, {"penalties": ()}):
        with pytest.raises(RequestError, match=naming(*(f"eval.{key}=" for key in wrong))):
            LowShot(None, None, **KIND, **wrong)


def test_stages_are_judged_by_themselves_and_one_that_there_is_not_is_named():
    train, test = Drawn(300, 0, noise=20), Drawn(300, 1, noise=20)
    found = Linear(train, test, **KIND, stages=("stage1", "stage2"), penalty=(1e-3, 1.0)).run(Alone(Stages()))
    whole = Linear(train, test, **KIND).run(Alone(Stages()))
    assert found["linear_top1/stage2"] > 0.9 > found["linear_top1/stage1"]
    assert found["linear_penalty/stage2"] in (1e-3, 1.0) and set(whole) == {"linear_top1"}
    with pytest.raises(RequestError, match=r"stage7.*stage1, stage2"):
        Linear(train, test, **KIND, stages=("stage7",)).run(Alone(Stages()))
    with pytest.raises(RequestError, match=naming("eval.penalty=")):
        Linear(train, test, **KIND, penalty=())
