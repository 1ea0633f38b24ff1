"""Color and blur on the host: against torchvision's, against Pillow's, and against the pass that a GPU makes."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from seer.core.records import Color
from seer.data.augment import augment_batch
from seer.data.loading.batch_buffer import BatchLayout
from seer.data.multicrop import MultiCrop
from seer.data.transforms import color
from tests.data.image_files import pixels

FACTORS = {"brightness": [0.2, 0.7, 1.0, 1.8], "contrast": [0.2, 0.5, 1.0, 1.8], "saturation": [0.2, 0.4, 1.0, 1.8],
           "hue": [-0.2, -0.1, 0.0, 0.2]}  # fmt: skip
NAMES = list(FACTORS)


def views(side: int = 32) -> list[np.ndarray]:
    """uint8 [S, S, 3]: smooth images, and noise, which has every hue and some grays."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    noise[:4] = noise[:4, :, :1]
    noise[-2], noise[-1] = 0, 255
    return [*(pixels(i, side, side) for i in range(3)), noise]


def one(view: np.ndarray, name: str, factor: float) -> np.ndarray:
    found = view.copy()
    operation = NAMES.index(name)
    color.jitter(found, [operation], [factor if i == operation else 1.0 for i in range(4)])
    return found.astype(float)


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_that_of_torchvision_within_a_level_on_the_mean(name):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    theirs = getattr(functional, f"adjust_{name}")
    for factor in FACTORS[name]:
        for view in views():
            x = torch.from_numpy(view).permute(2, 0, 1).double() / 255
            expected = theirs(x, factor).permute(1, 2, 0).numpy() * 255
            difference = np.abs(one(view, name, factor) - expected)
            # hue and its shift are held in 256 levels a turn: a level off shows as 6 of a color of full strength, and value
            # and saturation are rounded, too
            assert difference.mean() <= 0.7 and difference.max() <= (10 if name == "hue" else 1.5)


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_that_of_pillow_within_two_levels_on_the_mean(name):
    functional = pytest.importorskip("torchvision.transforms.functional")
    for factor in FACTORS[name]:
        for view in views():
            expected = np.asarray(getattr(functional, f"adjust_{name}")(Image.fromarray(view), factor)).astype(float)
            assert np.abs(one(view, name, factor) - expected).mean() <= 2


def test_operations_follow_the_order_that_was_drawn():
    view, factors = views()[3], [1.6, 0.4, 1.7, 0.15]
    results = set()
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]):
        step_by_step = view
        for operation in order:
            step_by_step = one(step_by_step, NAMES[operation], factors[operation]).astype(np.uint8)
        at_once = view.copy()
        color.jitter(at_once, order, factors)
        np.testing.assert_array_equal(at_once, step_by_step)
        results.add(at_once.tobytes())
    assert len(results) == 3


def test_neutral_factors_leave_images_alone_but_for_the_rounding_of_hue():
    for view in views():
        found = view.copy()
        color.jitter(found, [0, 1, 2], [1.0, 1.0, 1.0, 0.0])
        np.testing.assert_array_equal(found, view)
        assert np.abs(one(view, "hue", 0.0) - view).mean() <= 0.6


def test_gray_is_that_of_pillow():
    for view in views():
        expected = np.asarray(Image.fromarray(view).convert("L").convert("RGB")).astype(int)
        color.gray(view)
        assert np.abs(view.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("side", [8, 33])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.9, 2.0])
def test_blur_is_the_gaussian_sum_with_edges_repeated(side, sigma):
    reach = math.ceil(8 * sigma)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    for view in views(side):
        expected = view.astype(float)
        for axis in (0, 1):
            padding = [(reach, reach) if axis == i else (0, 0) for i in range(3)]
            wide = np.pad(expected, padding, mode="edge")
            expected = sum(w * np.take(wide, np.arange(side) + i, axis=axis) for i, w in enumerate(weights))
        color.blur(view, sigma)
        assert np.abs(view - expected).mean() <= 0.5 and np.abs(view - expected).max() <= 2


def test_the_loader_paints_what_a_gpu_would_paint_within_a_level_on_the_mean():
    """The whole chain, drawn parameters and all, in both ways; and each of its parts is met."""
    crop = MultiCrop((48, 24), (2, 3), ((0.3, 1), (0.1, 0.3)), jitter=0.7, grayscale=0.3, blur=0.5)
    images, layout = 40, BatchLayout(crop.layout(40), 40)
    plain, painted = (layout.buffer(torch.empty(layout.bytes, dtype=torch.uint8)) for _ in range(2))
    for b in range(images):
        image = pixels(b, 60, 70)
        draw = crop.draw(60, 70, b)
        for one in (plain, painted):
            crop.crop(image, draw, one.arrays, b)
        crop.store_params(draw, plain.arrays, b)
        crop.apply_color(draw, painted.arrays, b)
    for size in crop.sizes:
        a, b = plain.tensors[f"views/{size}"], painted.tensors[f"views/{size}"]
        on_device = augment_batch(plain.tensors, size, crop.mean, crop.std)
        here = augment_batch({f"views/{size}": b}, size, crop.mean, crop.std)
        drawn = Color.of(plain.tensors, size)
        assert here.dtype == torch.float32 and here.is_contiguous(memory_format=torch.channels_last)
        levels = (here - on_device).abs() * 255 * torch.tensor(crop.std)[:, None, None]
        per_view = levels.mean((1, 2, 3))
        assert (
            per_view.mean() < 0.6 and per_view.max() < 4
        )  # factors of 1.8, one after another, enlarge what was rounded
        changed = (a != b).flatten(1).any(1)
        for part in (drawn.jitter, drawn.gray, drawn.sigma > 0):
            assert 0.1 < part.float().mean() < 0.9
        untouched = ~(drawn.jitter | drawn.gray | (drawn.sigma > 0))
        assert untouched.any() and not changed[untouched].any() and changed[drawn.jitter].all()
