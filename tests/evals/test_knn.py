"""The weighted vote by hand, and on features whose answer is known."""

import math

import pytest
import torch

from seer.core.errors import RequestError
from seer.data.shards.open import open_shards
from seer.evals.features import Alone, LabelledImages
from seer.evals.knn import KNN, baselines, knn_top1, nearest
from tests.data.image_files import png
from tests.messages import naming


def at(*degrees: float) -> torch.Tensor:
    """Features on a circle, of different lengths, which the cosine must not see."""
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, len(degrees) + 1)[:, None]


def by_hand(train, labels, test, k, temperature) -> list[int]:
    answers = []
    for row in test.tolist():
        near = []
        for other, label in zip(train.tolist(), labels.tolist(), strict=True):
            cosine = sum(a * b for a, b in zip(row, other, strict=True)) / math.hypot(*row) / math.hypot(*other)
            near.append((cosine, label))
        votes: dict[int, float] = {}
        for cosine, label in sorted(near, reverse=True)[:k]:
            votes[label] = votes.get(label, 0) + math.exp(cosine / temperature)
        answers.append(max(votes, key=lambda label: votes[label]))
    return answers


def test_one_near_neighbour_outvotes_two_far_ones_when_it_is_cold_and_loses_when_it_is_warm():
    train, labels, test = at(10, 40, 41), torch.tensor([0, 1, 1]), at(0)
    # cos 10 = 0.985, cos 40 = 0.766, cos 41 = 0.755: exp(0.985 / T) against exp(0.766 / T) + exp(0.755 / T)
    assert knn_top1(train, labels, test, torch.tensor([0]), k=3, temperature=0.07) == 1.0
    assert knn_top1(train, labels, test, torch.tensor([1]), k=3, temperature=1.0) == 1.0
    assert knn_top1(train, labels, test, torch.tensor([0]), k=1, temperature=1.0) == 1.0


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (3, 0.07), (3, 1.0), (7, 0.2), (30, 0.1)])
def test_the_share_is_that_of_the_vote_by_hand(k, temperature):
    g = torch.Generator().manual_seed(0)
    train, test = torch.randn(30, 3, generator=g), torch.randn(40, 3, generator=g)
    labels, wanted = torch.randint(0, 4, (30,), generator=g), torch.randint(0, 4, (40,), generator=g)
    answers = by_hand(train, labels, test, k, temperature)
    share = sum(a == w for a, w in zip(answers, wanted.tolist(), strict=True)) / 40
    assert knn_top1(train, labels, test, wanted, k=k, temperature=temperature) == pytest.approx(share)
    assert knn_top1(train, labels, test, torch.tensor(answers), k=k, temperature=temperature) == 1.0


def test_k_larger_than_the_set_is_all_of_the_set():
    train, labels, test = at(0, 90), torch.tensor([0, 1]), at(10, 80, 30)
    assert knn_top1(train, labels, test, torch.tensor([0, 1, 0]), k=200) == 1.0


def test_separable_features_are_all_right_in_more_rows_than_one_chunk():
    g = torch.Generator().manual_seed(0)
    labels, wanted = torch.arange(200) % 5, torch.arange(1100) % 5
    centers = torch.eye(5, 8) * 10
    train, test = (centers[y] + torch.randn(len(y), 8, generator=g) * 0.5 for y in (labels, wanted))
    assert knn_top1(train, labels, test, wanted) == 1.0
    assert knn_top1(train, labels, test, (wanted + 1) % 5) == 0.0


def test_a_class_that_training_never_saw_is_wrong_and_not_an_error():
    assert knn_top1(at(0, 90), torch.tensor([0, 1]), at(0, 90), torch.tensor([0, 7]), k=1) == 0.5


@pytest.mark.parametrize("wrong", [{"k": 0}, {"temperature": 0.0}, {"temperature": -1.0}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(RequestError, match=naming(*(f"{key}={value}" for key, value in wrong.items()))):
        knn_top1(at(0), torch.tensor([0]), at(0), torch.tensor([0]), **wrong)


class MeanColor(torch.nn.Module):
    feature_dim = 3

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x.mean((2, 3)) * self.scale


def test_the_evaluator_and_the_baselines_tell_images_apart_by_what_differs(tmp_path):
    import numpy as np

    from tests.data.image_files import encoded

    for part, n in (("train", 6), ("test", 4)):
        for name, rgb in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                image = np.full((32, 32, 3), rgb, dtype=np.uint8)
                image[i : i + 8, 2 * i : 2 * i + 8] = 128
                (folder / f"{i}.png").write_bytes(encoded(image, "PNG"))
    train, test = (LabelledImages(open_shards(tmp_path / part), size=32) for part in ("train", "test"))
    assert KNN(train, test, mean=(0.5,) * 3, std=(0.2,) * 3, k=3).run(Alone(MeanColor())) == {"knn_top1": 1.0}
    found = baselines(train, test, k=3)
    assert found["knn_colours"] == 1.0 and set(found) == {"knn_pixels", "knn_colours"}


def test_features_of_noise_are_worth_no_more_than_chance(tmp_path):
    for part in ("train", "test"):
        for label in range(2):
            folder = tmp_path / part / str(label)
            folder.mkdir(parents=True)
            for i in range(60):
                (folder / f"{i}.png").write_bytes(png(1000 * (part == "test") + 100 * label + i, 16, 16))
    train, test = (LabelledImages(open_shards(tmp_path / part), size=16) for part in ("train", "test"))
    found = KNN(train, test, mean=(0.5,) * 3, std=(0.2,) * 3).run(Alone(MeanColor()))["knn_top1"]
    assert abs(found - 0.5) < 4.5 * math.sqrt(0.25 / 120)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_neighbours_found_block_by_block_are_those_of_one_sort(block):
    g = torch.Generator().manual_seed(block)
    rows, train = torch.randn(9, 16, generator=g), torch.randn(200, 16, generator=g)
    value, index = (rows @ train.T).sort(dim=1, descending=True)
    found, at = nearest(rows, train, 12, block)
    assert torch.equal(at, index[:, :12]) and torch.allclose(found, value[:, :12], atol=1e-6)
