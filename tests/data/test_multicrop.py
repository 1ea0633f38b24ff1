"""Boxes against torchvision's RandomResizedCrop, pixels against Pillow, and what the draws may depend on."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from seer.core import rng
from seer.core.errors import RequestError
from seer.data.transforms import multi_crop
from seer.data.transforms.multi_crop import MultiCrop, resize
from tests.data.image_files import pixels

KEYS = [rng.key(0, "multicrop", i) for i in range(4000)]


def drawn(crop: MultiCrop, height: int, width: int, n: int = 4000):
    return [crop.draw(height, width, key) for key in KEYS[:n]]


def agree(ours: np.ndarray, theirs: np.ndarray, sigmas: float = 4.5) -> bool:
    """Whether two samples' means differ by no more than chance."""
    error = math.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
    return abs(ours.mean() - theirs.mean()) <= sigmas * error + 1e-12


@pytest.mark.parametrize(
    ("height", "width", "scale", "aspect"),
    [
        (300, 200, (0.14, 1.0), (3 / 4, 4 / 3)),
        (200, 300, (0.05, 0.14), (3 / 4, 4 / 3)),
        (64, 160, (0.5, 1.0), (3 / 4, 4 / 3)),
        (40, 40, (0.9, 1.0), (3 / 4, 4 / 3)),
        (90, 90, (0.1, 0.5), (1, 3)),  # wide ones only
    ],
)
def test_boxes_are_spread_like_those_of_torchvision(height, width, scale, aspect):
    transforms = pytest.importorskip("torchvision.transforms")
    boxes = np.concatenate([d.boxes for d in drawn(MultiCrop((32,), (2,), (scale,), aspect), height, width, 2000)])
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = np.array([transforms.RandomResizedCrop.get_params(blank, scale, aspect) for _ in range(4000)])
    assert boxes.shape == theirs.shape == (4000, 4)
    for figure in (
        lambda b: b[:, 2] * b[:, 3] / (height * width),  # area
        lambda b: (b[:, 2] * b[:, 3] / (height * width)) ** 2,
        lambda b: np.log(b[:, 3] / b[:, 2]),  # aspect
        lambda b: np.log(b[:, 3] / b[:, 2]) ** 2,
        lambda b: b[:, 0] + b[:, 2] / 2,  # center
        lambda b: b[:, 1] + b[:, 3] / 2,
        lambda b: (b[:, 0] == 0).astype(float),  # touches the edges
        lambda b: (b[:, 1] + b[:, 3] == width).astype(float),
    ):
        assert agree(figure(boxes), figure(theirs))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all() and (boxes[:, 1] + boxes[:, 3] <= width).all()
    assert boxes.dtype == np.int64 and boxes[:, 2:].min() >= 1


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (8, 800), (801, 9)])
def test_where_no_box_fits_the_central_one_of_torchvision_is_taken(height, width):
    transforms = pytest.importorskip("torchvision.transforms")
    expected = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), (0.9, 1.0), (3 / 4, 4 / 3))
    boxes = np.concatenate([d.boxes for d in drawn(MultiCrop((32,), (2,), ((0.9, 1.0),)), height, width, 20)])
    assert (boxes == expected).all()


def test_an_image_of_fitting_shape_at_full_scale_and_aspect_one_is_taken_whole():
    crop = MultiCrop((32,), (2,), ((1.0, 1.0),), aspect=(1.0, 1.0))
    assert (drawn(crop, 50, 50, 1)[0].boxes == [0, 0, 50, 50]).all()


@pytest.mark.parametrize("size", [16, 33, 96])
def test_views_are_the_boxes_resized_as_pillow_resizes_them(size):
    image = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    crop = MultiCrop((size,), (8,), ((0.05, 1.0),))
    draw = crop.draw(120, 90, 5)
    out = {f"views/{size}": np.empty((8, size, size, 3), np.uint8)}
    crop.crop(image, draw, out, 0)
    assert 0 < draw.flip.sum() < 8  # both kinds are compared
    for view, (top, left, height, width), flip in zip(
        out[f"views/{size}"], draw.boxes.tolist(), draw.flip, strict=True
    ):
        cut = Image.fromarray(image[top : top + height, left : left + width])
        expected = np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        found = view.astype(int)
        assert np.abs((found[:, ::-1] if flip else found) - expected).max() <= 1


def test_resize_takes_two_sides_and_leaves_an_image_of_that_size_alone():
    x = torch.from_numpy(pixels(0, 40, 30))[None].permute(0, 3, 1, 2)
    assert resize(x, 40, 30) is x
    expected = np.asarray(Image.fromarray(pixels(0, 40, 30)).resize((17, 23), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resize(x, 23, 17)[0].permute(1, 2, 0).numpy() - expected).max() <= 1


@pytest.mark.parametrize("sides", [(1100, 300), (600, 900), (292, 292), (300, 20)])
@pytest.mark.parametrize("kind", ["photo", "noise", "checks"])
def test_images_resized_columns_first_are_within_a_level_of_pillows_that_takes_rows_first(kind, sides, monkeypatch):
    image = {
        "photo": pixels(0, *sides),
        "noise": np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8),
        "checks": 255
        * (np.indices((*sides, 1)).sum(0) % 2).astype(np.uint8).repeat(3, -1),  # the largest steps there are
    }[kind]
    calls, interpolate = [], multi_crop._interpolate
    monkeypatch.setattr(multi_crop, "_interpolate", lambda x, size: calls.append(size) or interpolate(x, size))
    found = resize(torch.from_numpy(image)[None].permute(0, 3, 1, 2), 224)[0].permute(1, 2, 0).numpy().astype(int)
    assert calls == [(224, sides[1]), (224, 224)]
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(found - expected).max() <= 1


def test_draws_depend_on_key_and_size_alone_and_pixels_not_on_the_place_in_the_batch():
    crop, again = (
        MultiCrop((24, 16), (2, 3), ((0.3, 1), (0.1, 0.3))),
        MultiCrop((24, 16), (2, 3), ((0.3, 1), (0.1, 0.3))),
    )
    image, results = pixels(1, 70, 50), []
    for b, place, maker in ((1, 0, crop), (5, 3, again)):
        maker.draw(20, 20, 999)  # an earlier draw moves nothing
        out = {f"views/{s}": np.zeros((v * b, s, s, 3), np.uint8) for v, s in zip((2, 3), (24, 16), strict=True)}
        maker.crop(image, maker.draw(70, 50, 12), out, place)
        results.append([o[place::b] for o in out.values()])
        assert sum(int(o.sum()) for o in out.values()) == sum(
            int(r.sum()) for r in results[-1]
        )  # others stay untouched
    assert all((x == y).all() for x, y in zip(*results, strict=True))


def test_draws_of_many_keys_at_once_are_those_of_each_alone():
    crop = MultiCrop((24, 16), (2, 3), ((0.3, 1), (0.1, 0.3)))
    together = crop.draws(np.array(KEYS[:20], dtype=np.uint64))
    for i, key in enumerate(KEYS[:20]):
        one, alone = together.at(i, 70, 50 + i), crop.draw(70, 50 + i, key)
        for name in ("boxes", "flip", "jitter", "order", "factors", "gray", "sigma"):
            np.testing.assert_array_equal(getattr(one, name), getattr(alone, name))


def test_every_crop_goes_to_the_resizing_that_is_three_times_as_fast(monkeypatch):
    seen = []

    def resized(pixels, size):
        found = resize(pixels, size)
        seen.append(found.is_contiguous(memory_format=torch.channels_last))  # the other one gives rows of channels
        return found

    monkeypatch.setattr(multi_crop, "resize", resized)
    crop = MultiCrop((24, 16), (2, 3), ((0.3, 1), (0.1, 0.3)))
    out = {f"views/{s}": np.zeros((v, s, s, 3), np.uint8) for v, s in ((2, 24), (3, 16))}
    crop.crop(pixels(1, 70, 50), crop.draw(70, 50, 3), out, 0)
    assert seen == [True] * 5


def test_views_of_one_image_and_draws_of_two_keys_differ():
    crop = MultiCrop((24,), (6,), ((0.1, 1),))
    a, b = crop.draw(200, 200, 1), crop.draw(200, 200, 2)
    for name in ("boxes", "factors"):
        assert len(np.unique(np.concatenate([getattr(a, name), getattr(b, name)]), axis=0)) == 12


def test_probabilities_and_ranges_are_those_asked_for():
    crop = MultiCrop((32,), (2,), ((0.2, 1),), flip=0.3, jitter=0.8, grayscale=0.2, blur=0.6, blur_sigma=(0.5, 1.5),
                     brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)  # fmt: skip
    draws = drawn(crop, 60, 60)
    n = 8000
    for name, p in (("flip", 0.3), ("jitter", 0.8), ("gray", 0.2)):
        share = np.concatenate([getattr(d, name) for d in draws]).mean()
        assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / n), name
    sigma = np.concatenate([d.sigma for d in draws])
    blurred = sigma[sigma > 0]
    assert abs(len(blurred) / n - 0.6) < 4.5 * math.sqrt(0.24 / n)
    assert (
        blurred.min() >= 0.5 and blurred.max() <= 1.5 and abs(blurred.mean() - 1) < 4.5 / math.sqrt(12 * len(blurred))
    )
    factors = np.concatenate([d.factors for d in draws])  # [n, 4]
    for i, (middle, reach) in enumerate(((1, 0.4), (1, 0.3), (1, 0.2), (0, 0.1))):
        assert np.abs(factors[:, i] - middle).max() <= reach + 1e-6
        assert np.abs(factors[:, i] - middle).max() > 0.98 * reach
        assert abs(factors[:, i].mean() - middle) < 4.5 * reach / math.sqrt(3 * n)
    orders = np.concatenate([d.order for d in draws])
    kinds, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(kinds) == 24 and (np.sort(kinds, axis=1) == np.arange(4)).all()
    assert ((counts - n / 24) ** 2 / (n / 24)).sum() < 23 + 5 * math.sqrt(46)


def test_the_numbers_of_a_view_are_unrelated():
    crop = MultiCrop((32,), (2,), ((0.2, 1),), blur=1.0)
    draws = drawn(crop, 60, 60)
    columns = np.stack(
        [
            np.concatenate([f(d) for d in draws]).astype(float)
            for f in (
                lambda d: d.boxes[:, 2], lambda d: d.flip, lambda d: d.jitter, lambda d: d.factors[:, 0],
                lambda d: d.factors[:, 1], lambda d: d.factors[:, 2], lambda d: d.factors[:, 3],
                lambda d: d.order[:, 0], lambda d: d.gray, lambda d: d.sigma,
            )
        ]
    )  # fmt: skip
    related = np.abs(np.corrcoef(columns)[~np.eye(10, dtype=bool)])
    assert related.max() < 4.5 / math.sqrt(8000)


def test_factors_of_strong_jitter_never_fall_below_zero_and_zero_strength_changes_nothing():
    strong = np.concatenate([d.factors for d in drawn(MultiCrop(brightness=3, contrast=3, saturation=3), 60, 60, 200)])
    assert strong[:, :3].min() == 0
    still = np.concatenate(
        [d.factors for d in drawn(MultiCrop(brightness=0, contrast=0, saturation=0, hue=0), 60, 60, 50)]
    )
    assert (still == [1, 1, 1, 0]).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"sizes": (224,)},
        {"sizes": (), "counts": (), "scales": ()},
        {"sizes": (96, 224)},
        {"sizes": (96, 96)},
        {"sizes": (224, 7)},
        {"counts": (2, 0)},
        {"scales": ((0.14, 1.1), (0.05, 0.14))},
        {"scales": ((0.0, 1), (0.05, 0.14))},
        {"scales": ((0.9, 0.2), (0.05, 0.14))},
        {"aspect": (2, 1)},
        {"aspect": (0, 1)},
        {"flip": 1.1},
        {"jitter": -0.1},
        {"grayscale": float("nan")},
        {"blur": 2},
        {"hue": 0.6},
        {"hue": -0.1},
        {"contrast": -1},
        {"blur_sigma": (0, 1)},
        {"blur_sigma": (2, 1)},
        {"device": "cuda"},
    ],
)
def test_wrong_arguments_are_refused_by_name(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong)) if len(wrong) == 1 else "augment"):
        MultiCrop(**wrong)
