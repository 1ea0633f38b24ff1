"""Figures against counts by hand, against loops over definitions, and against scikit-learn where it is installed."""

import math

import numpy as np
import pytest
import torch

from seer.evals import figures
from tests.messages import naming


def drawn(q: int, y: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(q, y, generator=g, dtype=torch.float64), torch.randint(y, (q,), generator=g)


def test_wilsons_interval_is_that_of_its_equation():
    for right, count in ((80, 100), (0, 10), (10, 10), (1, 3), (500, 1000)):
        low, high = figures.wilson(right, count)
        for bound in {low, high} - {0.0, 1.0}:  # (p - share)^2 = z^2 p (1 - p) / n
            gap = (bound - right / count) ** 2 - figures.Z95**2 * bound * (1 - bound) / count
            assert abs(gap) < 1e-12
        assert low <= right / count <= high
    low, high = figures.wilson(80, 100)
    assert (round(low, 4), round(high, 4)) == (0.7112, 0.8666)
    for wrong in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError):
            figures.wilson(*wrong)


def test_a_label_is_among_the_k_highest_as_a_sort_says():
    scores, labels = drawn(200, 7)
    for k in (1, 3, 7, 9):
        by_hand = np.mean([label in np.argsort(-row)[:k] for row, label in zip(scores.numpy(), labels.numpy())])
        assert figures.top_k(scores, labels, k) == by_hand
    assert figures.top_k(scores, torch.full((200,), 9), 7) == 0.0


def test_confusion_counts_pairs_and_leaves_out_what_is_ignored():
    found, labels = torch.tensor([[0, 1, 1], [2, 2, 0]]), torch.tensor([[0, 1, 2], [2, 255, 0]])
    counts = figures.confusion(found, labels, 3, ignore=255)
    assert counts.tolist() == [[2, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert figures.segmentation(counts) == {
        "pixel": 4 / 5,
        "class": (1 + 1 + 1 / 2) / 3,
        "miou": (1 + 1 / 2 + 1 / 2) / 3,
    }
    with pytest.raises(ValueError, match=naming(255, 0, 2)):
        figures.confusion(found, labels, 3)
    with pytest.raises(ValueError, match=naming("answers", 3, 2)):
        figures.confusion(found + 1, labels, 3, ignore=255)


def test_a_class_without_images_has_no_figure_and_does_not_lower_the_mean():
    counts = figures.confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), 3)
    assert figures.per_class(counts)[:2].tolist() == [0.5, 1.0] and math.isnan(figures.per_class(counts)[2])
    assert figures.segmentation(counts)["class"] == 0.75 and figures.segmentation(counts)["miou"] == 0.5


def test_calibration_of_scores_that_say_what_they_are_worth():
    sure = torch.tensor([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10, dtype=torch.float64)
    labels = torch.tensor([0] * 9 + [1] + [0] * 6 + [1] * 4)
    assert figures.calibration_error(sure, labels) == pytest.approx(0, abs=1e-12)
    assert figures.calibration_error(sure, torch.zeros(20, dtype=torch.long)) == pytest.approx(
        (0.1 + 0.4) / 2, abs=1e-12
    )
    border = torch.tensor([[1.0, 0.0], [1 / 3, 2 / 3]], dtype=torch.float64)  # 10 / 15 is a border of bins
    assert figures.calibration_error(border, torch.tensor([1, 1])) == pytest.approx((1 + 1 / 3) / 2, abs=1e-12)


def by_definition(scores: np.ndarray, positive: np.ndarray) -> float:
    """Sum over thresholds of what recall gains there times the precision there."""
    area = recall = 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        now = (taken & positive).sum() / positive.sum()
        area += (now - recall) * (taken & positive).sum() / taken.sum()
        recall = now
    return area


@pytest.mark.parametrize("levels", [1000, 7, 1])
def test_average_precision_is_that_of_its_definition_also_with_ties(levels):
    g = np.random.default_rng(levels)
    scores, positive = np.round(g.random(300) * levels) / levels, g.random(300) < 0.2
    found = figures.average_precision(torch.from_numpy(scores), torch.from_numpy(positive))
    assert found == pytest.approx(by_definition(scores, positive), abs=1e-12)
    assert (
        figures.average_precision(torch.tensor([4.0, 3, 2, 1]), torch.tensor([True, False, True, False]))
        == (1 + 2 / 3) / 2
    )


def test_a_class_without_a_positive_is_left_out_of_the_mean():
    scores, positive = torch.tensor([[4.0, 1], [3, 2]]), torch.tensor([[True, False], [False, False]])
    mean, each = figures.mean_average_precision(scores, positive)
    assert mean == 1.0 and each[0] == 1.0 and math.isnan(each[1])
    assert math.isnan(figures.mean_average_precision(scores, torch.zeros(2, 2, dtype=torch.bool))[0])


def test_figures_equal_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = drawn(500, 6)
    found = scores.argmax(1)
    assert figures.confusion(found, labels, 6).tolist() == metrics.confusion_matrix(labels, found).tolist()
    balanced = float(figures.per_class(figures.confusion(found, labels, 6)).mean())
    assert balanced == pytest.approx(metrics.balanced_accuracy_score(labels, found), abs=1e-12)
    assert figures.top_k(scores, labels, 2) == pytest.approx(
        metrics.top_k_accuracy_score(labels, scores, k=2), abs=1e-12
    )
    positive = scores.new_tensor(0).expand(500, 6) < (scores + drawn(500, 6, 1)[0]).round()
    mean, _ = figures.mean_average_precision(scores, positive)
    assert mean == pytest.approx(metrics.average_precision_score(positive, scores, average="macro"), abs=1e-9)
    jaccard = metrics.jaccard_score(labels, found, average="macro")
    assert figures.segmentation(figures.confusion(found, labels, 6))["miou"] == pytest.approx(jaccard, abs=1e-12)


def test_the_bootstrap_of_a_share_is_about_wilsons():
    right = torch.cat([torch.ones(320), torch.zeros(80)])
    low, high = figures.bootstrap(right)
    also_low, also_high = figures.wilson(320, 400)
    assert abs(low - also_low) < 0.01 and abs(high - also_high) < 0.01 and figures.bootstrap(right) == (low, high)
