"""What an evaluation tells beside its figure: intervals, chance, tables, differences on the same images."""

import csv
import io
import math

import pytest
import torch

from seer.evals.features import Alone
from seer.evals.figures import paired, wilson
from seer.evals.judged import Judged, chance, class_tables, table
from seer.evals.knn import KNN, nearest
from seer.evals.linear import Linear, linear_top1
from seer.evals.lowshot import LowShot
from tests.evals.test_lowshot import KIND, Drawn, Stages


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_share_has_wilsons_interval_and_what_is_no_number_is_null():
    judged = Judged({"no": math.nan})
    judged.add_share("some", torch.tensor([True, False, True, True]))
    low, high = wilson(3, 4)
    assert judged.plain() == {"no": None, "some": 0.75, "interval95": {"some": [low, high]}}
    assert table(["a", "b"], [("x,y", math.nan)]) == 'a,b\n"x,y",\n'


def test_chance_is_one_of_the_classes_and_the_share_of_the_most_frequent_of_train():
    train, test = torch.tensor([0, 1, 1, 2, 4]), torch.tensor([1, 1, 0, 3])
    assert chance(train, test) == {"guess": 1 / 4, "majority": 0.5}


def test_tables_hold_each_class_and_each_pair_that_occurs():
    found, labels = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 0, 1, 4, -1])
    tables = class_tables("x", found, labels, ["ant", "bee", "cat"], torch.tensor([0, 0, 1]))
    rows = {row["class"]: row for row in read(tables["x-per-class.csv"])}
    assert [rows["ant"][key] for key in ("train", "test", "right", "share")] == ["2", "2", "1", "0.5"]
    assert float(rows["ant"]["low95"]) == pytest.approx(wilson(1, 2).low)
    assert (rows["cat"]["test"], rows["cat"]["share"], rows["4"]["right"]) == ("0", "", "0")
    pairs = {(row["class"], row["answered"]): row["images"] for row in read(tables["x-confusion.csv"])}
    assert pairs == {("ant", "ant"): "1", ("ant", "bee"): "1", ("bee", "bee"): "1", ("4", "cat"): "1"}


def test_a_difference_on_the_same_images_has_the_interval_of_bonett_and_price():
    first, second = torch.tensor([1, 1, 1, 0, 1, 1, 0, 1]).bool(), torch.tensor([1, 0, 0, 1, 1, 0, 0, 1]).bool()
    share, (low, high) = paired(first, second)  # 3 gained, 1 lost, of 8
    gain, loss = 4 / 10, 2 / 10
    half = 1.959963984540054 * math.sqrt((gain + loss - 0.04) / 10)
    assert share == pytest.approx(2 / 8) and (low, high) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-12)
    assert paired(first, first)[0] == 0 and paired(first, first)[1].low < 0 < paired(first, first)[1].high


def test_the_interval_of_a_difference_holds_the_truth_about_as_often_as_it_says():
    g = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        u = torch.rand(120, generator=g)
        bounds = paired(u < 0.5, (u > 0.1) & (u < 0.4))[1]  # the truth is 0.2
        held += bounds.low <= 0.2 <= bounds.high
    assert 0.92 <= held / 400 <= 0.99


def test_knn_linear_and_lowshot_tell_intervals_chance_and_tables_and_the_same_twice():
    train, test, task = Drawn(300, 0), Drawn(200, 1), Alone(Stages())
    for made in (lambda: KNN(train, test, **KIND), lambda: Linear(train, test, **KIND, stages=("stage1", "stage2"))):
        judged, again = made().judge(task), made().judge(task)
        assert judged == again and made().run(task).items() <= judged.figures.items()
        for name, (low, high) in judged.intervals.items():
            assert low < judged.figures[name] < high, name
        assert judged.told["chance"]["guess"] == pytest.approx(1 / 3)
    behind = judged.told["behind"]
    assert (
        behind["best"] == "stage2"
        and behind["stage1"]["share"] > 0
        and set(judged.tables) == {f"linear-stage{i}-{kind}.csv" for i in (1, 2) for kind in ("per-class", "confusion")}
    )
    assert sum(int(row["test"]) for row in read(judged.tables["linear-stage2-per-class.csv"])) == 200
    few = LowShot(train, test, **KIND, parts=(0.1,), draws=3).judge(task)
    middle, half = few.figures["lowshot_top1/10%"], few.figures["lowshot_half_width/10%"]
    assert few.intervals["lowshot_top1/10%"] == pytest.approx((max(0, middle - half), min(1, middle + half)))
    assert len(few.told["draws"]["10%"]) == 3


def test_top_5_of_linear_is_told_where_there_are_more_than_five_classes(monkeypatch):
    scores = torch.eye(7)[[0, 1, 2]] + torch.arange(7) / 100  # the last four, and their own, are the five highest
    linear, labels = Linear(Drawn(9, 0), Drawn(9, 1), **KIND), torch.tensor([0, 2, 6])
    monkeypatch.setattr(linear, "_fitted", lambda task: ({"": (scores, 1e-3)}, labels, torch.arange(7)))
    judged = linear.judge(Alone(Stages()))
    assert judged.figures == {"linear_top1": 1 / 3, "linear_top5": 2 / 3}
    assert judged.intervals["linear_top5"] == wilson(2, 3)


def features(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Five overlapping clouds whose features are of different sizes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 5
    centers = torch.randn(5, 24, generator=torch.Generator().manual_seed(99))
    return (centers[labels] * 0.5 + torch.randn(count, 24, generator=g)) * torch.logspace(-2, 2, 24), labels


@pytest.mark.parametrize("penalty", [1e-4, 1e-2])
def test_linear_lies_within_half_a_point_of_scikit_learns_converged_logistic_regression(penalty):
    linear_model = pytest.importorskip("sklearn.linear_model")
    (train, labels), (test, wanted) = features(1500, 0), features(3000, 1)
    ours = linear_top1(train, labels, test, wanted, penalty=penalty)
    std, mean = torch.std_mean(train.double(), 0)
    # ours: mean loss + penalty |w|^2; theirs: C * sum of losses + |w|^2 / 2
    theirs = linear_model.LogisticRegression(C=1 / (2 * penalty * len(train)), tol=1e-8, max_iter=5000)
    theirs.fit(((train - mean) / std).numpy(), labels.numpy())
    score = theirs.score(((test - mean) / std).numpy(), wanted.numpy())
    assert abs(ours - score) <= 0.005 and 0.4 < score < 0.99


def test_neighbours_are_those_of_scikit_learn_but_for_ties():
    neighbors = pytest.importorskip("sklearn.neighbors")
    (train, _), (test, _) = features(700, 0), features(90, 1)
    unit = [torch.nn.functional.normalize(one, dim=1) for one in (train, test)]
    similarity, index = nearest(unit[1], unit[0], 20, block=128)
    exact = [torch.nn.functional.normalize(one.double(), dim=1) for one in (train, test)]
    far, theirs = neighbors.NearestNeighbors(n_neighbors=20, algorithm="brute").fit(exact[0]).kneighbors(exact[1])
    own = (exact[1] @ exact[0].T).gather(1, index)
    assert (own - similarity).abs().max() < 1e-6
    other = torch.from_numpy(1 - far**2 / 2)  # the cosines of their neighbours
    assert ((index == torch.from_numpy(theirs)) | ((own - other).abs() < 1e-6)).all()
    assert (index == torch.from_numpy(theirs)).double().mean() > 0.99
