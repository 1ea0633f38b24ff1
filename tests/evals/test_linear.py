"""The softmax regression against Newton's method in float64, and on data whose answer is known."""

import math

import numpy as np
import pytest
import torch

from seer.core.errors import RequestError
from seer.evals.linear import linear_top1
from tests.messages import naming


def two_classes(n: int, seed: int, distance: float = 1.5, features: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    x = torch.randn(n, features, generator=g)
    x[:, 0] += distance * labels
    return x, labels


def newton(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Two classes, weights +w/2 and -w/2: mean log loss + penalty * |w|^2 / 2, solved to the last digit. [C + 1]"""
    x = np.column_stack([x, np.ones(len(x))])
    w, ridge = np.zeros(x.shape[1]), np.diag([penalty] * (x.shape[1] - 1) + [0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (p - y) / len(x) + ridge @ w
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(x) + ridge
        w -= np.linalg.solve(hessian, gradient)
    return w


@pytest.mark.parametrize("penalty", [1e-3, 0.3])
def test_answers_are_those_of_newtons_method(penalty):
    (train, labels), (test, _) = two_classes(60, 0), two_classes(4000, 1)
    std, mean = train.double().std(0).numpy(), train.double().mean(0).numpy()
    w = newton((train.double().numpy() - mean) / std, labels.numpy(), penalty)
    scores = (test.double().numpy() - mean) / std @ w[:-1] + w[-1]
    answers = torch.from_numpy((scores > 0).astype(np.int64))
    # 4000 answers agree but for a few rows on the very border: the solution itself is the same, not only its accuracy
    assert linear_top1(train, labels, test, answers, penalty=penalty) >= 1 - 4 / 4000


def test_two_round_clouds_are_told_apart_as_well_as_they_can_be():
    (train, labels), (test, wanted) = two_classes(4000, 0), two_classes(4000, 1)
    best = 0.5 * (1 + math.erf(1.5 / 2 / math.sqrt(2)))  # the share on the right side of the middle
    assert abs(linear_top1(train, labels, test, wanted) - best) < 4.5 * math.sqrt(best * (1 - best) / 4000)


def test_separable_classes_are_all_right_and_shuffled_labels_all_wrong():
    g = torch.Generator().manual_seed(0)
    labels, wanted = torch.arange(300) % 5, torch.arange(200) % 5
    train, test = (torch.eye(5, 8)[y] * 10 + torch.randn(len(y), 8, generator=g) for y in (labels, wanted))
    assert linear_top1(train, labels, test, wanted) == 1.0
    assert linear_top1(train, labels, test, (wanted + 1) % 5) == 0.0


def test_units_of_the_features_do_not_matter_nor_does_a_feature_that_never_changes():
    (train, labels), (test, wanted) = two_classes(400, 0), two_classes(1000, 1)
    units, shift = torch.tensor([1e3, 1e-3, 1, 50, 1, 0.1]), torch.tensor([5.0, 0, -3, 100, 0, 1])
    plain = linear_top1(train, labels, test, wanted)
    scaled = linear_top1(train * units + shift, labels, test * units + shift, wanted)
    constant = torch.ones(len(train), 1), torch.ones(len(test), 1)
    wider = linear_top1(torch.cat([train, constant[0]], 1), labels, torch.cat([test, constant[1]], 1), wanted)
    assert abs(scaled - plain) <= 0.002 and abs(wider - plain) <= 0.002


def test_more_features_than_images_and_an_unseen_class_are_no_error():
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 0, 1])
    x = torch.randn(4, 50, generator=g)
    assert linear_top1(x, labels, x, labels) == 1.0
    assert linear_top1(x, labels, x, torch.tensor([0, 1, 0, 6])) == 0.75


def test_it_trains_under_no_grad_and_gives_the_same_twice():
    (train, labels), (test, wanted) = two_classes(100, 0), two_classes(500, 1)
    with torch.no_grad():
        assert linear_top1(train, labels, test, wanted) == linear_top1(train, labels, test, wanted) > 0.6


@pytest.mark.parametrize("wrong", [{"penalty": -1.0}, {"iterations": 0}])
def test_wrong_numbers_are_refused(wrong):
    x, y = two_classes(4, 0)
    with pytest.raises(RequestError, match=naming(*(f"{key}={value}" for key, value in wrong.items()))):
        linear_top1(x, y, x, y, **wrong)
