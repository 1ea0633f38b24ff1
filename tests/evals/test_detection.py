"""Average precision where it is known by hand, and against pycocotools on boxes drawn at random."""

import contextlib
import io

import numpy as np
import pytest

from seer.evals.detection import Answer, assign, matched, overlaps, precision


def answer(found=(), true=()):
    """found: (box, label, score); true: (box, label) or (box, label, ignored)."""
    true = [(*one, False)[:3] for one in true]
    return Answer(
        np.array([box for box, _, _ in found], dtype=float).reshape(-1, 4),
        np.array([label for _, label, _ in found], dtype=int),
        np.array([score for _, _, score in found], dtype=float),
        np.array([box for box, _, _ in true], dtype=float).reshape(-1, 4),
        np.array([label for _, label, _ in true], dtype=int),
        np.array([ignored for _, _, ignored in true], dtype=bool),
    )


def ap(answers, label=0):
    return precision(matched(answers, label), np.ones((1, len(answers))))[0]


BOX, FAR = (0, 0, 10, 10), (100, 100, 110, 110)


def test_all_right_is_1_at_every_threshold_and_nothing_found_is_0_and_no_true_box_no_figure():
    assert ap([answer([(BOX, 0, 0.9)], [(BOX, 0)])]).tolist() == pytest.approx([1.0] * 10)
    assert ap([answer([], [(BOX, 0)])]).tolist() == [0.0] * 10
    assert np.isnan(ap([answer([(BOX, 0, 0.9)], [(BOX, 1)])])).all()


def test_an_overlap_of_three_fifths_is_right_up_to_060():
    each = ap([answer([((0, 0, 10, 8), 0, 0.5)], [((0, 2, 10, 10), 0)])])  # 60 of 100
    assert each.tolist() == pytest.approx([1, 1, 1, *[0.0] * 7])
    assert overlaps(np.array([[0, 0, 10, 8.0]]), np.array([[0, 2, 10, 10.0]]), np.array([False]))[0, 0] == 0.6


def test_a_surer_wrong_box_before_a_right_one_halves_it_and_half_the_boxes_missed_leave_51_of_101_recalls():
    assert ap([answer([(FAR, 0, 0.9), (BOX, 0, 0.8)], [(BOX, 0)])])[0] == pytest.approx(0.5)
    assert ap([answer([(BOX, 0, 0.9)], [(BOX, 0), (FAR, 0)])])[0] == pytest.approx(51 / 101)
    # right, wrong, right: precision 1 up to recall 1/2, then 2/3
    found = [(BOX, 0, 0.9), ((50, 50, 60, 60), 0, 0.8), (FAR, 0, 0.7)]
    assert ap([answer(found, [(BOX, 0), (FAR, 0)])])[0] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_box_is_found_once_and_the_second_finding_is_wrong_and_a_crowd_swallows_any_number():
    twice = [(BOX, 0, 0.9), (BOX, 0, 0.8), (FAR, 0, 0.7)]
    assert ap([answer(twice, [(BOX, 0), (FAR, 0)])])[0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    crowd = [(BOX, 0), (FAR, 0), ((0, 0, 40, 40), 0, True)]
    assert ap([answer(twice, crowd)])[0] == pytest.approx(1.0)
    right, passed = assign(np.array([[0.9, 0.95], [0.9, 0.6]]), np.array([False, True]))
    assert right[0].tolist() == [True, False] and passed[0].tolist() == [False, True]


def test_images_drawn_twice_count_twice_and_those_not_drawn_not_at_all():
    answers = [answer([(BOX, 0, 0.9 - i / 50)], [(BOX if i % 2 else FAR, 0)]) for i in range(6)]
    weights = np.array([[2.0, 0, 1, 3, 0, 0], [0, 1, 0, 0, 0, 0]])
    for own, found in zip(weights, precision(matched(answers, 0), weights), strict=True):
        drawn = [answers[i] for i, times in enumerate(own) for _ in range(int(times))]
        assert found.tolist() == pytest.approx(ap(drawn).tolist(), abs=1e-9)


def drawn(seed: int, images: int = 30, classes: int = 3) -> list[Answer]:
    g = np.random.default_rng(seed)
    made = []
    for _ in range(images):
        true = []
        for _ in range(g.integers(0, 6)):
            corner, side = g.integers(0, 60, 2), g.integers(5, 40, 2)
            true.append(((*corner, *(corner + side)), int(g.integers(classes)), bool(g.random() < 0.15)))
        found = []
        for box, label, _ in true:
            for _ in range(g.integers(0, 3)):
                moved = np.array(box) + g.integers(-4, 5, 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                found.append(
                    (tuple(moved), label if g.random() < 0.8 else int(g.integers(classes)), round(g.random(), 2))
                )
        for _ in range(g.integers(0, 3)):
            corner, side = g.integers(0, 60, 2), g.integers(5, 40, 2)
            found.append(((*corner, *(corner + side)), int(g.integers(classes)), round(g.random(), 2)))
        made.append(answer(found, true))
    return made


@pytest.mark.parametrize("seed", range(5))
def test_numbers_are_those_of_pycocotools(seed):
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    answers, truth, found = drawn(seed), [], []
    for image, one in enumerate(answers):
        for box, label, crowd in zip(one.true_edges, one.true_labels, one.ignored, strict=True):
            wide = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": wide,
                    "iscrowd": int(crowd),
                }
                | {"area": wide[2] * wide[3]}
            )
        for box, label, score in zip(one.edges, one.labels, one.scores, strict=True):
            wide = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            found.append({"image_id": image, "category_id": int(label), "bbox": wide, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(answers))],
            "categories": [{"id": y} for y in range(3)],
            "annotations": truth,
        }
        known.createIndex()
        judged = COCOeval(known, known.loadRes(found), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    table = judged.eval["precision"][:, :, :, 0, 2].mean(1)  # [T, Y] of all areas, 100 boxes
    ours = np.stack([ap(answers, y) for y in range(3)], 1)
    assert np.abs(ours - table).max() < 1e-9
    assert (ours.mean(), ours[0].mean()) == pytest.approx((judged.stats[0], judged.stats[1]), abs=1e-9)
