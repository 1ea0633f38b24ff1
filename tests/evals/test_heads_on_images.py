"""Heads on held-out images: figures against closed forms and scikit-learn, intervals against drawing images anew by hand, runs."""

import csv
import io
import json
import math

import numpy as np
import pytest
import torch

from seer.core.errors import RequestError
from seer.data.shards.open import open_shards
from seer.data.shards.writer import write_shards
from seer.data.transforms.one_view import OneView
from seer.evals import heads, resampling
from seer.evals.figures import average_precision, wilson
from seer.evals.heads import Heads, How, best_thresholds
from seer.evals.judged import Judged
from seer.evals.target_images import TargetImages
from seer.models.regnet import RegNet
from seer.tasks.heads import HeadsTask
from tests.data.image_files import encoded, png, write_tar
from tests.program import seer

HOW = How(200, 0, 15)
G = torch.Generator


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_classes_are_judged_by_top1_top5_and_calibration_in_closed_form():
    scores = torch.zeros(4, 6, dtype=torch.float64)
    scores[torch.arange(4), torch.tensor([0, 1, 2, 3])] = math.log(5)  # each is sure by 5 of 10
    parts = {"scores": [scores[:2], scores[2:]], "true": [torch.tensor([0, 1]), torch.tensor([2, 6])]}
    judged = Judged()
    heads._classify(judged, "h", parts, list("abcdef"), HOW)
    assert (
        judged.figures["h/top1"] == 0.75 and judged.figures["h/top5"] == 0.75
    )  # the last is of a class that is not known
    assert judged.figures["h/calibration"] == pytest.approx(0.25, abs=1e-12) and judged.told == {"h/unknown_classes": 1}
    assert judged.intervals["h/top1"] == wilson(3, 4)
    low, high = judged.intervals["h/calibration"]
    assert 0 <= low <= 0.25 <= high <= 0.5
    assert [row["right"] for row in read(judged.tables["h-per-class.csv"])] == ["1", "1", "1", "0", "0", "0"]


def test_tags_are_judged_as_by_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    g = G().manual_seed(0)
    true = (torch.rand(200, 5, generator=g) < 0.3).float()
    true[:, 4] = 0  # never
    scores = (torch.randn(200, 5, generator=g, dtype=torch.float64) + true).round(decimals=1)  # with ties
    thresholds, judged = np.array([0.5, 0.4, 0.6, 0.5, 0.5]), Judged()
    heads._tags(judged, "h", {"scores": [scores], "true": [true]}, list("abcde"), thresholds, HOW)
    expected = metrics.average_precision_score(true[:, :4].numpy(), scores[:, :4].numpy(), average="macro")
    assert judged.figures["h/map"] == pytest.approx(expected, abs=1e-9)
    found = (scores.sigmoid().numpy() >= thresholds)[:, :4]
    assert judged.figures["h/f1"] == pytest.approx(
        metrics.f1_score(true[:, :4].numpy(), found, average="macro"), abs=1e-9
    )
    rows = read(judged.tables["h-per-class.csv"])
    assert float(rows[1]["precision"]) == pytest.approx(
        metrics.precision_score(true[:, 1].numpy(), found[:, 1]), abs=1e-9
    )
    assert (
        rows[4]["ap"] == rows[4]["f1"] == ""
        and judged.intervals["h/map"].low < expected < judged.intervals["h/map"].high
    )


def test_numbers_are_judged_as_by_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    g = G().manual_seed(1)
    true = torch.randn(80, 2, generator=g)
    found, judged = (true + torch.randn(80, 2, generator=g)).double(), Judged()
    heads._regress(judged, "h", {"scores": [found], "true": [true]}, ["0", "1"], HOW)
    assert judged.figures["h/error"] == pytest.approx(
        metrics.mean_absolute_error(true.numpy(), found.numpy()), abs=1e-9
    )
    each = [np.corrcoef(found[:, y].numpy(), true[:, y].double().numpy())[0, 1] for y in (0, 1)]
    assert judged.figures["h/correlation"] == pytest.approx(np.mean(each), abs=1e-9)
    for name, value in judged.figures.items():
        assert judged.intervals[name].low < value < judged.intervals[name].high


def test_maps_are_judged_as_by_scikit_learn_without_what_is_void():
    metrics = pytest.importorskip("sklearn.metrics")
    g = G().manual_seed(2)
    masks = torch.randint(3, (6, 8, 8), generator=g)
    said = torch.where(torch.rand(6, 8, 8, generator=g) < 0.6, masks, torch.randint(3, (6, 8, 8), generator=g))
    masks[:, :2] = 255
    judged, parts = Judged(), {"image": list(range(6))}
    spec = heads.Spec("map", classes=("x", "y", "z"))
    heads._take_map(parts, torch.nn.functional.one_hot(said, 3).movedim(3, 1), {"mask": masks}, spec, 6)
    heads._map(judged, "h", parts, ["x", "y", "z"], HOW)
    known = masks != 255
    a, b = masks[known].numpy(), said[known].numpy()
    assert judged.figures["h/pixel"] == pytest.approx(metrics.accuracy_score(a, b), abs=1e-9)
    assert judged.figures["h/class"] == pytest.approx(metrics.balanced_accuracy_score(a, b), abs=1e-9)
    assert judged.figures["h/miou"] == pytest.approx(metrics.jaccard_score(a, b, average="macro"), abs=1e-9)
    for name, value in judged.figures.items():
        assert judged.intervals[name].low < value < judged.intervals[name].high


def test_figures_of_draws_are_those_of_the_images_drawn():
    g = G().manual_seed(3)
    scores, positive = torch.randn(30, generator=g).double().round(decimals=1), torch.rand(30, generator=g) < 0.4
    true = torch.randn(30, generator=g).double()
    weights = np.concatenate(list(resampling.draws(30, 20, 0)))
    assert weights.shape == (20, 30) and (weights.sum(1) == 30).all()
    ap = resampling.average_precisions(scores.numpy(), positive.numpy(), weights)
    correlation = resampling.correlations(scores.numpy(), true.numpy(), weights)
    for i, own in enumerate(weights):
        rows = torch.from_numpy(np.repeat(np.arange(30), own.astype(int)))
        assert ap[i] == pytest.approx(average_precision(scores[rows], positive[rows]), abs=1e-12)
        assert correlation[i] == pytest.approx(np.corrcoef(scores[rows].numpy(), true[rows].numpy())[0, 1], abs=1e-9)


def test_an_interval_of_a_mean_is_that_of_the_normal_distribution_where_there_are_many_images():
    values = torch.randn(4000, generator=G().manual_seed(4)).double().numpy()
    low, high = resampling.interval(4000, 2000, 0, lambda w: w @ values / 4000)
    half = 1.96 * values.std() / math.sqrt(4000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert resampling.interval(10, 0, 0, lambda w: w[:, 0]) is None
    assert resampling.interval(10, 5, 0, lambda w: w[:, 0] * math.nan) is None


def test_a_threshold_is_where_f1_is_best():
    scores, true = torch.tensor([[3.0], [2.0], [1.0], [0.0], [-1.0]]), torch.tensor([[1.0], [0], [1], [0], [0]])
    found = best_thresholds(scores, true)  # F1 of the first 1, 2, 3, … : 2/3, 1/2, 4/5, 2/3, 4/7
    assert found[0] == pytest.approx(float(torch.tensor([1.0, 0.0]).sigmoid().mean()))
    assert best_thresholds(scores, torch.zeros(5, 1))[0] == 0.5
    assert 0 < best_thresholds(scores, torch.ones(5, 1))[0] < float(torch.tensor(-1.0).sigmoid())


ROWS = (
    "{what: {kind: classify, classes: [a, b]}, where: {kind: map, classes: [x, y, z], stages: [stage1]}, size: {kind: regress}, "
    "things: {kind: detect, classes: [u], width: 8}}"
)


def write(folder, count: int, seed: int):
    """Images whose mask, box, number and class can be told from their pixels: noise with a bright square."""
    g, rows = np.random.default_rng(seed), []
    for i in range(count):
        image = g.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        (x, y), side = g.integers(2, 14, 2), int(g.integers(8, 16))
        image[y : y + side, x : x + side, i % 2] = 255
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[y : y + side, x : x + side] = 1 + i % 2
        mask[:1] = 255
        box = [int(x), int(y), int(x) + side, int(y) + side, 0]
        members = {"png": encoded(image, "PNG"), "cls": b"%d" % (i % 2), "mask.png": encoded(mask, "PNG")}
        members |= {"boxes.json": json.dumps([box]).encode(), "value.json": json.dumps(side / 16).encode()}
        rows.append((f"{i:03d}", members))
    write_shards(rows, folder, total=count, per_shard=count, card={"classes": ["a", "b"]})
    return folder


WORDS = (
    "pretrain", "task=heads", "augment=one_view", "augment.size=32", "model=regnety_tiny", "model.widths=[8,16,24]",
    "model.group_widths=[8,8,8]", "optim=sgd", "batch=8", "steps=2", "every.log=1", "every.evaluate=1",
    "log.tensorboard=false", "data.threads=1", "parallel.device=cpu",
)  # fmt: skip
KEYS = {"what/top1", "what/calibration", "where/pixel", "where/class", "where/miou", "size/error", "size/correlation"}
KEYS |= {"things/ap", "things/ap50"}


def task_of(kinds) -> HeadsTask:
    torch.manual_seed(0)
    body = RegNet(widths=[8, 16, 24], depths=[1, 1, 1], group_widths=[8, 8, 8])
    return HeadsTask(body, OneView(32), heads=kinds)


def test_what_a_head_answers_is_held_against_the_targets_of_its_image(tmp_path):
    shards = open_shards(str(write(tmp_path / "test", 7, 1)))
    task = task_of(
        {"what": {"kind": "classify", "classes": ["b", "a"]}, "where": {"kind": "map", "classes": ["x", "y", "z"]}}
    )
    images = TargetImages(shards, task.targets, size=32, classes=("b", "a"))
    mean, std = task.transform.mean, task.transform.std
    found = Heads(images, None, mean=mean, std=std, batch=3, draws=0).judge(task)
    x, mask, label = [], [], []
    for one in images.batches(100):
        x, mask, label = one["pixels"], one["mask"].long(), one["label"]
    assert label.tolist() == [1, 0, 1, 0, 1, 0, 1]  # by name: the head has b first
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    with torch.no_grad():
        said = task.model.eval()((x.float() / 255 - mean) / std)
    assert found.figures["what/top1"] == pytest.approx(
        (said["what"].argmax(1) == label).double().mean().item(), abs=1e-9
    )
    right = (said["where"].argmax(1) == mask)[mask != 255].double().mean().item()
    assert found.figures["where/pixel"] == pytest.approx(right, abs=1e-9) and not set(found.intervals) - {"what/top1"}
    assert found.told == {"images": 7}


def test_images_without_what_a_head_is_to_find_are_left_out_and_where_all_are_so_it_is_a_wrong_request(tmp_path):
    rows = [
        ("0.png", png(0)),
        ("1.png", png(1)),
        ("1.value.json", b"2.5"),
        ("2.png", png(2)),
        ("2.value.json", b"[1, 2]"),
    ]
    images = TargetImages(open_shards(str(write_tar(tmp_path / "x.tar", rows))), ["values"], size=16, values=1)
    images.check("here")
    assert [one["values"].tolist() for one in images.batches(2)] == [[[2.5]]] and images.left_out == {"target": 2}
    list(images.batches(2))
    assert images.left_out == {"target": 2}
    bare = TargetImages(open_shards(str(write_tar(tmp_path / "y.tar", rows[:2]))), ["mask"], size=16)
    with pytest.raises(RequestError, match=r"here.*mask"):
        bare.check("here")


def test_a_network_that_knows_the_boxes_has_ap_1_and_one_box_moved_less():
    from seer.evals.detection import Answer

    edges = np.array([[2.0, 2, 12, 12]])
    there = (edges, np.array([0]), np.array([False]))
    exact, off = (Answer(one, np.array([0]), np.array([0.9]), *there) for one in (edges, edges + 2.0))
    judged = Judged()
    heads._detect(judged, "h", {"answers": [exact] * 3}, ["u"], HOW)
    assert judged.figures == pytest.approx({"h/ap50": 1.0, "h/ap": 1.0})
    heads._detect(judged, "h", {"answers": [exact, exact, off, off]}, ["u"], HOW)  # 64 of 136 is no match at 0.5
    low, high = judged.intervals["h/ap50"]
    assert low < judged.figures["h/ap50"] < 1 and high <= 1


@pytest.mark.slow
def test_heads_are_judged_while_training_and_by_the_verb_with_the_same_figures_twice(tmp_path, capfd):
    train, test = write(tmp_path / "train", 24, 0), write(tmp_path / "test", 12, 1)
    run = tmp_path / "run"
    ended = seer(capfd, *WORDS, f"task.heads={ROWS}", f"data.source={train}", f"eval.test={test}", f"output={run}")
    assert ended.status == 0, ended.words
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "what/top1" in row]
    assert [row["step"] for row in logged] == [0, 0, 1] and KEYS - {"size/correlation"} <= set(logged[-1])
    assert ended.result["where/miou"] == logged[-1]["where/miou"] and "knn_top1" not in ended.result
    words = ("evaluate", "eval=head", f"weights={run}", f"data.test={test}", "device=cpu", "threads=1")
    first, second = seer(capfd, *words, f"output={tmp_path / 'out'}"), seer(capfd, *words)
    assert first.status == 0, first.words
    for key in KEYS:
        assert first.result[key] == second.result[key]
        assert first.result[key] is None or first.result[key] == pytest.approx(logged[-1][key], abs=1e-6), key
    assert first.result["interval95"] == second.result["interval95"] and first.result["images"] == 12
    assert {"what/top1", "where/miou", "size/error"} <= set(first.result["interval95"])
    assert first.result["weights_sha256"] == second.result["weights_sha256"] and first.result["seed"] == 0
    assert {"what-confusion.csv", "where-per-class.csv", "things-per-class.csv"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    wrong = seer(capfd, "evaluate", "eval=head", f"weights={run / 'bundle'}", f"data.test={test}")
    assert wrong.status == 78


@pytest.mark.slow
def test_test_images_without_masks_are_a_wrong_request_before_there_is_a_run(tmp_path, capfd):
    train, bare = write(tmp_path / "train", 24, 0), write_tar(tmp_path / "bare.tar", [("0.png", png(0))])
    words = (
        *WORDS,
        "task.heads={where: {kind: map, classes: [x, y, z]}}",
        f"data.source={train}",
        f"output={tmp_path / 'run'}",
    )
    ended = seer(capfd, *words, f"eval.test={bare}")
    assert ended.status == 78 and "mask" in ended.words and not (tmp_path / "run").exists(), ended.words
    assert (
        seer(capfd, "pretrain", f"data.source={train}", f"eval.test={train}", f"output={tmp_path / 'run'}").status == 78
    )


def test_thresholds_of_tags_are_chosen_on_known_images_and_the_result_says_so(tmp_path):
    rows = [(f"{i}", {"png": png(i), "cls": b"0 1" if i % 3 == 0 else b"1" if i % 3 == 1 else b""}) for i in range(12)]
    write_shards(rows, tmp_path / "x", total=12, per_shard=12, card={"classes": ["a", "b"]})
    task = task_of({"h": {"kind": "tags", "classes": ["a", "b"]}})
    images = TargetImages(open_shards(str(tmp_path / "x")), task.targets, size=32, classes=("a", "b"))
    how = {"mean": task.transform.mean, "std": task.transform.std, "draws": 0}
    plain, chosen = Heads(images, None, **how).judge(task), Heads(images, images, **how).judge(task)
    assert (plain.told["threshold_chosen_on"], chosen.told["threshold_chosen_on"]) == (None, "train")
    thresholds = [[float(row["threshold"]) for row in read(one.tables["h-per-class.csv"])] for one in (plain, chosen)]
    assert thresholds[0] == [0.5, 0.5] != thresholds[1]
    assert chosen.figures["h/f1"] >= plain.figures["h/f1"] and chosen.figures["h/map"] == plain.figures["h/map"]
    assert [int(row["test"]) for row in read(plain.tables["h-per-class.csv"])] == [4, 8]
