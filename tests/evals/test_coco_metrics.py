"""Figures of boxes and masks: cases known by hand, and intervals' own sums against pycocotools' figures."""

import numpy as np
import pytest
import torch

from seer.core.errors import RequestError
from seer.data.coco import Scene, Thing
from seer.data.outlines import parsed
from seer.evals import coco_metrics
from seer.evals.detection import precision

pytest.importorskip("pycocotools")
SIZE = (120, 80)  # width, height


def thing(left, top, right, bottom, label=0, **more) -> Thing:
    outline = parsed([[left, top, right, top, right, bottom, left, bottom]])
    return Thing((left, top, right, bottom), label, outline, (right - left) * (bottom - top), **more)


def found(*rows):
    """rows: (box, label, score); each mask fills its box."""
    said = {
        "boxes": torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        "scores": torch.tensor([score for _, _, score in rows], dtype=torch.float32),
        "masks": torch.ones(len(rows), 28, 28),
    }
    return coco_metrics.in_image(said, (SIZE[1], SIZE[0]), (1.0, 1.0))


def figures(answers, scenes, kind, classes=1):
    return coco_metrics.measured(answers, [Scene(SIZE, tuple(each)) for each in scenes], classes, kind).figures


A, B = (10, 10, 50, 50), (60, 20, 110, 70)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_all_right_is_1_nothing_found_is_0_and_half_of_them_is_known(kind):
    there = [[thing(*A), thing(*B)]]
    assert figures([found((A, 0, 0.9), (B, 0, 0.8))], there, kind)["ap50"] == pytest.approx(1)
    assert figures([found()], there, kind)["ap50"] == 0
    half = figures([found((A, 0, 0.9))], there, kind)  # precision 1 up to recall 0.5: 51 of 101 recalls
    assert half["ap50"] == pytest.approx(51 / 101)
    assert kind == "segm" or half["ar100"] == pytest.approx(0.5)  # pasted masks are a little larger than their boxes
    wrong_first = figures([found(((0, 0, 5, 5), 0, 0.95), (A, 0, 0.9), (B, 0, 0.8))], there, kind)
    assert wrong_first["ap50"] == pytest.approx(2 / 3)


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong():
    scenes = [[thing(*A), thing(*B, crowd=True)]]
    rows = ((65, 25, 80, 40), 0, 0.95), (A, 0, 0.9)
    assert figures([found(*rows)], scenes, "bbox")["ap50"] == pytest.approx(1)
    assert figures([found(*rows)], scenes, "segm")["ap50"] == pytest.approx(1)
    assert figures([found(*rows)], [[thing(*A)]], "bbox")["ap50"] == pytest.approx(0.5)


def test_a_class_without_a_thing_has_no_figure_and_sizes_are_told_apart():
    got = figures([found((A, 0, 0.9))], [[thing(*A)]], "bbox", classes=3)
    assert got["ap50"] == pytest.approx(1) and got["ap_medium"] == pytest.approx(1)
    assert np.isnan(got["ap_small"]) and np.isnan(got["ap_large"])


def test_masks_lie_in_pixels_of_the_image_and_not_of_the_view():
    said = {"boxes": torch.tensor([[5.0, 5, 25, 25]]), "labels": torch.tensor([0]), "scores": torch.tensor([0.9])}
    one = coco_metrics.in_image({**said, "masks": torch.ones(1, 28, 28)}, (SIZE[1], SIZE[0]), (2.0, 2.0))
    from pycocotools import mask as packing

    there = packing.decode(one.masks[0])
    assert there.shape == (80, 120) and one.boxes.tolist() == [[10, 10, 50, 50]]
    assert there[10:50, 10:50].all() and there.sum() <= 42 * 42


def test_what_lies_in_the_padding_of_a_view_is_nothing_and_what_reaches_into_it_is_cut():
    one = found(((0, 90, 30, 110), 0, 0.9), ((100, 60, 140, 100), 0, 0.8))
    assert one.boxes.tolist() == [[100, 60, 120, 80]] and one.scores.tolist() == pytest.approx([0.8])
    from pycocotools import mask as packing

    there = packing.decode(one.masks[0])
    assert there.shape == (80, 120) and there[60:, 100:].all() and there.sum() <= 21 * 21


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_sums_that_make_intervals_give_pycocotools_own_figures(kind):
    g = np.random.default_rng(3)
    scenes, answers = [], []
    for _ in range(6):
        corners = [(*(low := g.integers(0, 50, 2)), *(low + g.integers(8, 30, 2))) for _ in range(4)]
        labels = g.integers(0, 2, 4)
        scenes.append([thing(*map(float, box), label=int(y)) for box, y in zip(corners, labels, strict=True)])
        moved = [tuple(float(n) for n in np.array(box) + g.integers(-3, 4, 4)) for box in corners]
        answers.append(found(*((box, int(y), float(g.random())) for box, y in zip(moved, labels, strict=True))))
    got = coco_metrics.measured(answers, [Scene(SIZE, tuple(each)) for each in scenes], 2, kind)
    own = np.stack([precision(one, np.ones((1, 6)))[0] for one in got.matched])
    assert own[:, 0].mean() == pytest.approx(got.figures["ap50"], abs=1e-9) and 0 < got.figures["ap50"] < 1
    assert own.mean() == pytest.approx(got.figures["ap"], abs=1e-9)


def test_without_pycocotools_one_line_says_which_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"\[coco\]"):
        coco_metrics.require()
