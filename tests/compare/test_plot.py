"""Numbers in the plot lie on nothing else, and points lie where their values say."""

import itertools
import random
import re
from xml.etree import ElementTree

import pytest

from seer.compare.plot import BOTTOM, PANELS, RADIUS, TOP, Point, meet, placed, svg
from seer.compare.subjects import KINDS


def crowded(count: int, seed: int) -> list[Point]:
    """Networks of three sizes whose accuracies are close together."""
    draw = random.Random(seed)
    found = []
    for i in range(count):
        value = 0.5 + draw.gauss(0, 0.02)
        images = None if i % 5 == 4 else draw.choice([0, 600_000, 1_200_000])
        found.append(
            Point(
                f"runs/<{i}> & more",
                KINDS[i % 5],
                draw.choice([10**5, 10**6, 4 * 10**6]),
                images,
                value,
                value - 0.01,
                value + 0.01,
            )
        )
    return found


@pytest.mark.parametrize("count", [1, 2, 6, 12])
@pytest.mark.parametrize("seed", range(5))
def test_no_number_lies_on_another_or_on_a_point_or_outside(count, seed):
    draw = random.Random(seed)
    left, right = PANELS[0]
    at = [(draw.choice([100.0, 250.0, 253.0]), draw.gauss(200, 12)) for _ in range(count)]
    bars = [(y - 15, y + 15) for _, y in at]
    found = placed(at, bars, (left, TOP, right, BOTTOM))
    boxes = [one.box for one in found]
    assert len(boxes) == count and not any(meet(a, b) for a, b in itertools.combinations(boxes, 2))
    for box in boxes:
        assert left < box[0] and box[2] < right and TOP < box[1] and box[3] < BOTTOM
        assert not any(meet(box, (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)) for x, y in at)


def test_the_plot_is_xml_with_a_row_for_each_and_higher_values_lie_higher():
    points = [
        Point("low", "scratch", 10**5, 0, 0.2, 0.15, 0.25),
        Point("a <b> & c", "imported", 10**6, None, 0.6, 0.55, 0.65),
        Point("same", "supervised", 10**6, 10**5, 0.4, 0.4, 0.4),
    ]
    text = svg(points, "linear_top1")
    root = ElementTree.fromstring(text)
    words = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a <b> & c", "unknown", "20.0 % (15.0 to 25.0)", "40.0 %", "1.00 M", "100 k"} <= set(words)
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4.0"', text)
    of_size, of_images = [[(float(x), float(y)) for x, y in circles[i : i + 3]] for i in (0, 3)]
    assert [y for _, y in of_size] == [y for _, y in of_images]
    assert of_size[1][1] < of_size[2][1] < of_size[0][1]  # 60 % above 40 % above 20 %
    assert of_size[0][0] < of_size[1][0] == of_size[2][0] and of_images[0][0] < of_images[2][0] < of_images[1][0]


def test_intervals_of_networks_of_one_size_do_not_lie_on_one_another():
    points = [Point(str(i), "imported", 10**6, 0, 0.5 + i / 100, 0.4, 0.6) for i in range(4)]
    lines = re.findall(r'<line x1="([\d.]+)" x2="\1" y1="[\d.]+" y2="[\d.]+" stroke="#2a7f3f"', svg(points, "f"))
    for i in (0, 4):
        across = sorted(map(float, lines[i : i + 4]))
        assert len(across) == 4 and all(b - a >= 2 * RADIUS for a, b in itertools.pairwise(across))


@pytest.mark.parametrize("images", [(0, None, 10), (0, None, 9_999_999), (0, None, 10**9), (5, 10**9, None), (0, 0, 0)])
def test_words_below_an_axis_lie_apart(images):
    points = [Point(str(i), "imported", 10 ** (5 + i), one, 0.5, 0.5, 0.5) for i, one in enumerate(images)]
    row = [
        (float(one.get("x")), len(one.text))
        for one in ElementTree.fromstring(svg(points, "f")).iter("{http://www.w3.org/2000/svg}text")
        if one.get("y") == f"{BOTTOM + 19:.1f}"
    ]
    for left, right in PANELS:
        words = sorted((x - 3.8 * n, x + 3.8 * n) for x, n in row if left <= x <= right)  # DejaVu Sans, a wide one
        assert words and all(one[1] < other[0] for one, other in itertools.pairwise(words))


@pytest.mark.parametrize("count", [1, 12])
def test_any_points_make_a_plot(count):
    for seed in range(3):
        ElementTree.fromstring(svg(crowded(count, seed), "knn_top1"))
    with pytest.raises(ValueError, match="point"):
        svg([], "knn_top1")
