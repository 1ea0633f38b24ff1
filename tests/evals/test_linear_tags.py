"""Linear evaluation of several classes an image: Newton's method for each class, mAP by hand and by scikit-learn, from shards."""

import json

import numpy as np
import pytest
import torch

from seer.core.errors import RequestError
from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.evals import linear_tags
from seer.evals.figures import mean_average_precision
from seer.evals.linear import Linear
from tests.cli.test_finetune import BASE, tagged
from tests.evals.test_linear import newton
from tests.program import seer


def data(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g)
    noise = torch.randn(n, 3, generator=g)
    return x, (x[:, :3] + 0.7 * x[:, 3:] + noise > torch.tensor([0.0, 0.8, 2.0])).float()


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_each_class_has_the_weights_of_newton_s_method(penalty):
    (train, targets), (test, _) = data(300, 0), data(500, 1)
    std, mean = train.double().std(0).numpy(), train.double().mean(0).numpy()
    found = linear_tags.fit(train, targets, penalty=penalty)
    for y in range(3):
        w = newton((train.double().numpy() - mean) / std, targets[:, y].numpy(), 2 * penalty)
        scores = (test.double().numpy() - mean) / std @ w[:-1] + w[-1]
        np.testing.assert_allclose(found.scores(test)[:, y].numpy(), scores, atol=0.03)


def by_hand(scores: np.ndarray, true: np.ndarray) -> float:
    """The mean over positives, of the share of positives among what scores at least as high."""
    return float(np.mean([true[scores >= one].mean() for one in scores[true]]))


def test_the_figure_is_mean_average_precision_to_1e_9():
    (train, targets), (test, true) = data(200, 0), data(300, 1)
    scores = linear_tags.fit(train, targets, penalty=1e-3).scores(test)
    judged = linear_tags.judged({"": (scores, 1e-3)}, true, targets, ["a", "b", "c"], 100)
    each = [by_hand(scores[:, y].double().numpy(), true[:, y].numpy() > 0.5) for y in range(3)]
    assert judged.figures["linear_map"] == pytest.approx(np.mean(each), abs=1e-9)
    low, high = judged.intervals["linear_map"]
    assert low < judged.figures["linear_map"] < high
    assert judged.told["chance"]["map"] == pytest.approx(float(true.mean(0).mean()), abs=1e-6)
    metrics = pytest.importorskip("sklearn.metrics")
    assert judged.figures["linear_map"] == pytest.approx(
        metrics.average_precision_score(true.numpy(), scores.numpy(), average="macro"), abs=1e-9
    )


def test_a_penalty_is_chosen_where_it_was_not_learned_and_a_class_that_never_occurs_has_no_figure():
    (train, targets), (test, true) = data(60, 0), data(400, 1)
    targets[:, 2] = 0
    true[:, 2] = 0
    best = linear_tags.choose(train, targets, (1e-6, 0.03, 10.0))
    assert best in (1e-6, 0.03, 10.0)
    aside = torch.arange(60) % 5 == 4
    rated = {}
    for one in (1e-6, 0.03, 10.0):
        scores = linear_tags.fit(train[~aside], targets[~aside], penalty=one).scores(train[aside])
        rated[one] = mean_average_precision(scores, targets[aside] > 0.5)[0]
    assert rated[best] == max(rated.values())
    judged = linear_tags.judged(
        {"": (linear_tags.fit(train, targets, penalty=best).scores(test), best)}, true, targets, list("abc"), 0
    )
    assert judged.tables["linear-per-class.csv"].splitlines()[3] == "c,0,0,"
    assert linear_tags.choose(train[:3], targets[:3], (1.0, 2.0, 3.0)) == 2.0
    with pytest.raises(RequestError, match="penalty"):
        linear_tags.fit(train, targets, penalty=-1)


@pytest.mark.slow
def test_evaluate_reads_tags_and_says_the_same_twice(tmp_path, capfd):
    for side, seed in (("train", 3), ("test", 4)):
        write_shards(
            tagged(40, seed), tmp_path / side, total=40, per_shard=40, card={"classes": [*sample.SHAPE_CLASSES, "even"]}
        )
    words = ("evaluate", "eval=linear", "eval.several=true", "eval.penalty=[0.001,0.1]", f"weights={BASE}", "device=cpu",
             f"data.train={tmp_path / 'train'}", f"data.test={tmp_path / 'test'}")  # fmt: skip
    first = seer(capfd, *words, f"output={tmp_path / 'judged'}")
    assert first.status == 0, first.words
    again = seer(capfd, *words)
    assert first.result["linear_map"] == again.result["linear_map"] > 0
    assert first.result["interval95"]["linear_map"] == again.result["interval95"]["linear_map"]
    assert first.result["penalty_chosen_on"] and first.result["linear_penalty"] in (0.001, 0.1)
    rows = (tmp_path / "judged" / "linear-per-class.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows[1:]] == [*sample.SHAPE_CLASSES, "even"]
    assert "linear-per-class.csv" in json.loads((tmp_path / "judged" / "result.json").read_text())["files"]
    staged = seer(capfd, *words, "eval.stages=[stage1,stage2]")
    assert {"linear_map/stage1", "linear_map/stage2"} <= set(staged.result)
    single = seer(capfd, *words, "data.labels=folder")
    assert single.status == 78 and "data.labels=folder" in single.result["error"]


def test_images_of_the_other_kind_are_refused():
    with pytest.raises(RequestError, match=r"eval\.several"):
        Linear(None, None, mean=(0.0,), std=(1.0,), several=True)
