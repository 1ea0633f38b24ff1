"""The built-in images are what they claim: a pure function of the seed, real JPEGs, and a kind that only shape tells.

The truth outside the code under test: Pillow's decoder, an image drawn twice, and nearest neighbours at chance.
"""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from seer.data import synthetic as sample
from seer.data.synthetic import SHAPE_CLASSES, baselines, draw, encode, samples
from tests.messages import naming

CHANCE = 1 / len(SHAPE_CLASSES)


def _decoded(count: int, seed: int) -> list[tuple[np.ndarray, int]]:
    return [
        (np.asarray(Image.open(io.BytesIO(members["jpg"]))), int(members["cls"])) for _, members in samples(count, seed)
    ]


@pytest.fixture(scope="module")
def train() -> list[tuple[np.ndarray, int]]:
    return _decoded(1500, seed=1)


@pytest.fixture(scope="module")
def held_out() -> list[tuple[np.ndarray, int]]:
    return _decoded(500, seed=2)


def test_there_are_at_least_ten_kinds_with_names_of_their_own() -> None:
    assert len(SHAPE_CLASSES) >= 10
    assert len(set(SHAPE_CLASSES)) == len(SHAPE_CLASSES)


def test_an_image_is_the_same_every_time_it_is_drawn() -> None:
    for kind in range(len(SHAPE_CLASSES)):
        np.testing.assert_array_equal(draw(kind, 11), draw(kind, 11))


def test_the_global_random_state_neither_matters_nor_moves() -> None:
    np.random.seed(0)
    once = list(samples(5, seed=3))
    state = np.random.get_state()[1].copy()
    np.random.seed(1)
    assert list(samples(5, seed=3)) == once
    np.random.seed(0)
    assert np.array_equal(np.random.get_state()[1], state)


def test_seeds_and_kinds_each_change_the_image() -> None:
    drawn = {draw(kind, seed).tobytes() for kind in range(len(SHAPE_CLASSES)) for seed in (0, 1, 2, 2**63 - 1, 2**70)}
    assert len(drawn) == 5 * len(SHAPE_CLASSES)


def test_a_sample_does_not_depend_on_the_range_it_was_asked_for_in() -> None:
    whole = list(samples(37, seed=5))
    assert whole == [*samples(13, seed=5), *samples(24, seed=5, first=13)]
    assert [key for key, _ in samples(2, seed=5, first=123)] == ["00000123", "00000124"]


def test_another_seed_gives_other_images_in_another_order() -> None:
    ours, theirs = list(samples(50, seed=5)), list(samples(50, seed=6))
    assert not {m["jpg"] for _, m in ours} & {m["jpg"] for _, m in theirs}
    assert [m["cls"] for _, m in ours] != [m["cls"] for _, m in theirs]


@pytest.mark.slow
def test_no_image_comes_twice(train: list[tuple[np.ndarray, int]]) -> None:
    assert len({image.tobytes() for image, _ in train}) == len(train)


def test_the_members_are_a_jpeg_and_a_label() -> None:
    for key, members in samples(30, seed=9):
        assert len(key) == 8 and key.isdigit()
        assert set(members) == {"jpg", "cls"}
        assert 0 <= int(members["cls"]) < len(SHAPE_CLASSES)
        with Image.open(io.BytesIO(members["jpg"])) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            image.load()  # raises on a truncated file


def test_the_label_is_the_kind_that_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def blank(kind: int, seed: int) -> np.ndarray:
        drawn.append(kind)
        return np.zeros((64, 64, 3), np.uint8)

    monkeypatch.setattr(sample, "draw", blank)
    assert [int(members["cls"]) for _, members in samples(40, seed=4)] == drawn


def test_the_jpeg_shows_the_image_that_was_drawn() -> None:
    image = draw(0, 1)
    decoded = np.asarray(Image.open(io.BytesIO(encode(image, quality=95))))
    assert decoded.shape == image.shape
    assert np.abs(decoded.astype(int) - image).mean() < 6


@pytest.mark.slow
def test_sizes_shapes_and_qualities_are_mixed(train: list[tuple[np.ndarray, int]]) -> None:
    sizes = np.array([image.shape[:2] for image, _ in train])  # [N, 2]
    assert sizes.min() >= 64 and sizes.max() <= 160
    assert len(set(map(tuple, sizes))) > 500
    aspect = sizes[:, 1] / sizes[:, 0]
    assert (aspect > 1.2).mean() > 0.15 and (aspect < 1 / 1.2).mean() > 0.15
    tables = {str(Image.open(io.BytesIO(m["jpg"])).quantization) for _, m in samples(60, seed=1)}
    assert len(tables) > 10


@pytest.mark.slow
def test_kinds_are_balanced_and_shuffled(train: list[tuple[np.ndarray, int]]) -> None:
    labels = [label for _, label in train]
    assert set(Counter(labels).values()) == {len(train) // len(SHAPE_CLASSES)}
    blocks = np.array(labels).reshape(-1, len(SHAPE_CLASSES))  # [N / kinds, kinds]
    assert len(np.unique(blocks, axis=0)) > 0.9 * len(blocks)


@pytest.mark.slow
def test_the_scene_does_not_know_the_kind() -> None:
    """Same seed, two kinds: the same size, and the same pixels wherever neither figure reaches."""
    for seed in range(20):
        images = np.stack([draw(kind, seed) for kind in range(len(SHAPE_CLASSES))])  # stacking needs equal sizes
        outside = (images == images[0]).all(axis=(0, -1))  # [h, w]
        assert outside.mean() > 0.2


@pytest.mark.slow
def test_the_figure_is_large_and_stands_out_without_color() -> None:
    """Two kinds of one scene differ where either figure is, by its contrast: enough pixels, enough gray levels."""
    discs, bars = SHAPE_CLASSES.index("disc"), SHAPE_CLASSES.index("stripes")
    areas, contrasts = [], []
    for seed in range(100):
        gray = [draw(kind, seed).astype(float) @ (0.299, 0.587, 0.114) for kind in (discs, bars)]
        gap = np.abs(gray[0] - gray[1])  # [h, w]
        areas.append((gap > 20).mean())
        contrasts.append(np.median(gap[gap > 20]))
    assert np.mean(areas) > 0.08
    assert np.mean(contrasts) > 60


@pytest.mark.slow
def test_nearest_neighbours_that_learned_nothing_stay_near_chance(
    train: list[tuple[np.ndarray, int]], held_out: list[tuple[np.ndarray, int]]
) -> None:
    for name, accuracy in baselines(train, held_out).items():
        assert 0.3 * CHANCE < accuracy <= 0.20, name


@pytest.mark.slow
def test_mean_color_does_not_depend_on_kind(train: list[tuple[np.ndarray, int]]) -> None:
    """One-way analysis of variance: what a label explains of an image's mean color is what chance would."""
    labels = np.array([label for _, label in train])  # [N]
    color = np.stack([image.mean((0, 1)) for image, _ in train])  # [N, 3]
    between = np.stack([color[labels == kind].mean(0) for kind in range(len(SHAPE_CLASSES))])  # [kinds, 3]
    explained = between.var(0) / color.var(0)  # expected (kinds - 1) / N = 0.006
    assert (explained < 0.02).all()


def test_the_baselines_find_what_pixels_and_colors_do_tell() -> None:
    rng = np.random.default_rng(0)

    def patches(count: int, by_color: bool) -> list[tuple[np.ndarray, int]]:
        made = []
        for label in rng.integers(0, 2, count):
            noise = rng.integers(0, 60, (40, 50, 3))
            if by_color:
                noise[..., label] += 150  # red or green all over
            else:
                noise[:, :25] += 150 * label  # a light half, left or right: equal histograms
                noise[:, 25:] += 150 * (1 - label)
            made.append((noise.astype(np.uint8), int(label)))
        return made

    assert baselines(patches(60, True), patches(40, True), k=5)["knn_colour_histogram"] == 1.0
    by_place = baselines(patches(60, False), patches(40, False), k=5)
    assert by_place["knn_pixels"] == 1.0
    assert by_place["knn_colour_histogram"] < 0.8


def test_a_kind_that_does_not_exist_is_refused() -> None:
    for kind in (-1, len(SHAPE_CLASSES)):
        with pytest.raises(ValueError, match=naming(f"kind = {kind}", len(SHAPE_CLASSES))):
            draw(kind, 0)


def test_more_neighbours_than_images_are_refused() -> None:
    few = [(draw(0, 0), 0), (draw(1, 0), 1)]
    with pytest.raises(ValueError, match=naming("k = 20", 2)):
        baselines(few, few)
