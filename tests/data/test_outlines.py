"""Masks of outlines: squares and triangles by hand, run lengths in both forms against pycocotools, and what is no outline."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from seer.data.outlines import Runs, filled, parsed, unpacked

SHARED = Path(__file__).parents[3] / "shared" / "data"


def by_middles(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """A pixel at a time: how many edges a ray to the left from its middle crosses."""
    found = np.zeros((height, width), dtype=bool)
    for r in range(height):
        for c in range(width):
            y, crossings = r + 0.5, 0
            for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                if min(y0, y1) <= y < max(y0, y1):
                    crossings += x0 + (y - y0) * (x1 - x0) / (y1 - y0) < c + 0.5
            found[r, c] = crossings % 2
    return found


def test_a_square_has_the_pixels_whose_middle_it_holds():
    square = np.array([[2.4, 1.6], [5.6, 1.6], [5.6, 4.4], [2.4, 4.4]])
    wanted = np.zeros((6, 8), dtype=bool)
    wanted[2:4, 2:6] = True  # middles from 2.5 to 5.5 across, from 2.5 to 3.5 down
    assert (filled([square], 6, 8) == wanted).all()


@pytest.mark.parametrize("seed", range(5))
def test_any_polygon_is_filled_as_pixel_by_pixel_also_where_it_leaves_the_image(seed):
    points = np.random.default_rng(seed).uniform(-6, 22, (7, 2))
    found = filled([points], 13, 17)
    assert (found == by_middles(points, 13, 17)).all() and found.any()


def test_several_polygons_of_a_thing_add_up():
    a, b = np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]]), np.array([[2.0, 2], [6, 2], [6, 6], [2, 6]])
    assert filled([a, b], 6, 6).sum() == 16 + 16 - 4 and filled([], 3, 3).sum() == 0


def test_run_lengths_go_down_the_columns_background_first():
    found = parsed({"size": [2, 3], "counts": [1, 2, 3]})
    assert isinstance(found, Runs) and found.mask().tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize("seed", range(3))
def test_packed_run_lengths_are_those_of_pycocotools(seed):
    packing = pytest.importorskip("pycocotools.mask")
    g = np.random.default_rng(seed)
    mask = (g.random((37, 211)) < (0.5, 0.02, 0.999)[seed]).astype(np.uint8)
    packed = packing.encode(np.asfortranarray(mask))
    found = parsed({"size": packed["size"], "counts": packed["counts"].decode()})
    assert (found.mask() == mask).all()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("x", "polygons"), ([[1, 2, 3]], "x and y"), ([["a", "b"]], "numbers"), ([[1, 2, float("nan"), 4]], "finite"), ([5], "x and y"),
        ({"size": [2], "counts": []}, "size"), ({"size": [2, 2], "counts": [1, 2]}, "add up to 3"),
        ({"size": [2, 2], "counts": [-4, 8]}, "run"),
        ({"size": [2, 2], "counts": "\n"}, "text"), ({"size": [2, 2], "counts": "P"}, "middle"), ({"counts": [4]}, "size"),
        ({"size": [2**20, 2**20], "counts": [2**40]}, "add up"),
    ],
)  # fmt: skip
def test_what_is_no_outline_is_refused(what, words):
    with pytest.raises(ValueError) as caught:
        parsed(what)
    assert words in str(caught.value)


def test_polygons_that_enclose_nothing_are_left_out():
    assert parsed([[1, 1, 5, 5], [1, 1, 1, 4, 1, 9]]) == [] and len(parsed([[1, 1, 5, 5], [0, 0, 2, 0, 2, 2]])) == 1
    assert unpacked("") == []


def test_outlines_of_coco_are_those_of_pycocotools_but_for_the_border():
    packing = pytest.importorskip("pycocotools.mask")
    if not (SHARED / "coco-mini-train.tar").exists():
        pytest.skip("the folder of real images is not beside the checkout")
    with tarfile.open(SHARED / "coco-mini-train.tar") as tar:
        content = json.load(tar.extractfile("coco-mini/annotations/instances_train2017.json"))
    sizes = {row["id"]: (row["height"], row["width"]) for row in content["images"]}
    overlaps = []
    for row in content["annotations"]:
        size, outline = sizes[row["image_id"]], parsed(row["segmentation"])
        if isinstance(outline, Runs):
            theirs = packing.decode(packing.frPyObjects(row["segmentation"], *size)) > 0
            assert (outline.mask() == theirs).all()
        elif row["area"] > 256:
            theirs = packing.decode(packing.merge(packing.frPyObjects(row["segmentation"], *size))) > 0
            ours = filled(outline, *size)
            overlaps.append((ours & theirs).sum() / (ours | theirs).sum())
    assert len(overlaps) > 400 and min(overlaps) > 0.85 and np.mean(overlaps) > 0.975
