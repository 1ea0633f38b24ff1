"""Colors against torchvision's float kernels and Pillow, the blur against a direct float64 Gaussian."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from seer.core.records import Color
from seer.data.augment import augment_batch, blur, brightness, contrast, gray, hue, normalize, saturation
from tests.data.image_files import pixels

FACTORS = {"brightness": [0.2, 0.7, 1.0, 1.8], "contrast": [0.0, 0.5, 1.0, 1.8], "saturation": [0.0, 0.4, 1.0, 1.8],
           "hue": [-0.5, -0.1, 0.0, 0.2]}  # fmt: skip
OURS = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
# torchvision's float gray has 0.2989 for red where ITU-R 601 (and ours) has 0.299: 1e-4 of a gray that enters by 1 - factor.
# Its hue is rounded through six sectors of the circle and back in float32; at the edge of a sector the formulas meet.
TOLERANCE = {"brightness": 1e-6, "contrast": 1.2e-4, "saturation": 1.2e-4, "hue": 1e-3}


def views(n: int, side: int = 24) -> torch.Tensor:
    """uint8 [N, 3, S, S]: smooth images, and noise, which has every hue and some grays."""
    smooth = [pixels(i, side, side) for i in range(n - 1)]
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    noise[:4] = noise[:4, :, :1]
    noise[-2], noise[-1] = 0, 255
    return torch.from_numpy(np.stack([*smooth, noise])).permute(0, 3, 1, 2).contiguous()


def column(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None]


def still(n: int, **changed) -> Color:
    """Colors that change nothing, but for what is given."""
    numbers = {
        "jitter": torch.zeros(n, dtype=torch.bool),
        "order": torch.arange(4, dtype=torch.uint8).repeat(n, 1),
        "factors": torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(n, 1),
        "gray": torch.zeros(n, dtype=torch.bool),
        "sigma": torch.zeros(n),
    }
    return Color(**{**numbers, **changed})


def fields(x: torch.Tensor, color: Color) -> dict[str, torch.Tensor]:
    size = x.shape[-1]
    return {f"views/{size}": x, **{f"color/{size}/{name}": value for name, value in vars(color).items()}}


def finished(x: torch.Tensor, color: Color) -> torch.Tensor:
    """Without normalization: pixels in [0, 1]."""
    return augment_batch(fields(x, color), x.shape[-1], (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("operation", OURS)
def test_each_view_gets_what_torchvision_does_with_its_own_factor(operation):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    theirs = getattr(functional, f"adjust_{operation}")
    x = views(4).float() / 255
    for shift in range(4):  # every factor meets every image
        factors = FACTORS[operation][shift:] + FACTORS[operation][:shift]
        expected = torch.stack([theirs(one, f) for one, f in zip(x, factors, strict=True)])
        found = OURS[operation](x.clone(), column(factors))
        assert (found - expected).abs().max() <= TOLERANCE[operation]
        assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("operation", OURS)
def test_colors_agree_with_pillow_within_two_levels_on_the_mean(operation):
    functional = pytest.importorskip("torchvision.transforms.functional")
    theirs = getattr(functional, f"adjust_{operation}")
    x = views(4)
    for factor in FACTORS[operation]:
        found = OURS[operation](x.float() / 255, column([factor] * 4)) * 255
        for one, image in zip(found, x, strict=True):
            expected = np.asarray(theirs(Image.fromarray(image.permute(1, 2, 0).numpy()), factor)).astype(float)
            assert np.abs(one.permute(1, 2, 0).numpy() - expected).mean() <= 2


def test_neutral_factors_leave_images_alone():
    x = views(3).float() / 255
    for name, neutral in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.0), ("hue", 1.0)):
        torch.testing.assert_close(OURS[name](x.clone(), column([neutral] * 3)), x, rtol=0, atol=2e-6)


def test_hue_leaves_grays_alone_and_a_third_of_a_turn_makes_red_green():
    gray_ramp = torch.linspace(0, 1, 16).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    torch.testing.assert_close(hue(gray_ramp.clone(), column([0.37])), gray_ramp, rtol=0, atol=0)
    red = torch.tensor([0.8, 0.1, 0.1]).view(1, 3, 1, 1)
    torch.testing.assert_close(hue(red.clone(), column([1 / 3])).flatten(), torch.tensor([0.1, 0.8, 0.1]))
    torch.testing.assert_close(hue(red.clone(), column([-1 / 3])).flatten(), torch.tensor([0.1, 0.1, 0.8]))


def test_gray_weighs_red_green_and_blue_as_itu_601_does():
    x = torch.eye(3).view(3, 3, 1, 1)
    torch.testing.assert_close(gray(x).flatten(), torch.tensor([0.299, 0.587, 0.114]), rtol=0, atol=0)
    image = views(2)
    expected = np.stack([np.asarray(Image.fromarray(p.permute(1, 2, 0).numpy()).convert("L")) for p in image])
    found = finished(image, still(2, gray=torch.tensor([True, True])))
    assert (found[:, 0] == found[:, 1]).all() and (found[:, 0] == found[:, 2]).all()
    assert np.abs(found[:, 0].numpy() * 255 - expected).max() <= 1


def test_operations_come_in_the_drawn_order():
    x = views(2)
    factors = torch.tensor([[1.6, 0.5, 1.7, 0.2]]).repeat(2, 1)
    orders = torch.tensor([[3, 2, 1, 0], [0, 1, 2, 3]], dtype=torch.uint8)
    found = finished(x, still(2, jitter=torch.tensor([True, True]), order=orders, factors=factors))
    for i, order in enumerate(orders.tolist()):
        one = x[i : i + 1].float() / 255
        for operation in order:
            one = list(OURS.values())[operation](one, factors[i, operation])
        torch.testing.assert_close(found[i : i + 1], one, rtol=0, atol=1e-6)
    swapped = finished(x, still(2, jitter=torch.tensor([True, True]), order=orders.flip(0), factors=factors))
    assert (swapped - found).abs().mean() > 0.01  # the order matters here


def test_views_without_jitter_keep_their_colors_whatever_the_factors():
    x = views(2)
    factors = torch.tensor([[1.6, 0.5, 1.7, 0.2]]).repeat(2, 1)
    found = finished(x, still(2, jitter=torch.tensor([False, True]), factors=factors))
    torch.testing.assert_close(found[0], x[0].float() / 255, rtol=0, atol=0)
    assert (found[1] - x[1].float() / 255).abs().max() > 0.05


def direct_gaussian(x: np.ndarray, sigma: float, reach: int) -> np.ndarray:
    """float64 [3, S, S]: the sum over shifted images with edges repeated, as the formula is written."""
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        padding = [(0, 0)] * 3
        padding[axis] = (reach, reach)
        wide = np.pad(x, padding, mode="edge")
        x = sum(w * np.take(wide, np.arange(x.shape[axis]) + i, axis=axis) for i, w in enumerate(weights))
    return x


@pytest.mark.parametrize("side", [5, 24])
def test_blur_is_the_gaussian_sum_with_edges_repeated(side):
    x = views(5, side)
    sigmas = [0.1, 0.5, 1.0, 1.9, 2.0]
    found = finished(x, still(5, sigma=torch.tensor(sigmas))).double().numpy()
    for one, image, sigma in zip(found, x.double().numpy() / 255, sigmas, strict=True):
        assert np.abs(one - direct_gaussian(image, sigma, math.ceil(3 * sigma))).max() < 1e-6
        # what three sigmas leave out of a Gaussian: 0.27 % of its weight in each direction, less than a level
        assert np.abs(one - direct_gaussian(image, sigma, math.ceil(8 * sigma))).max() < 1 / 255


def test_blur_of_a_flat_image_changes_nothing_and_a_sharp_view_stays_sharp():
    flat = torch.full((2, 3, 16, 16), 0.3)
    torch.testing.assert_close(blur(flat, torch.tensor([0.1, 3.0]), 9), flat)
    x = views(3)
    found = finished(x, still(3, sigma=torch.tensor([0.0, 2.0, 0.0])))
    assert torch.equal(found[[0, 2]], x[[0, 2]].float() / 255)
    assert (found[1] - x[1].float() / 255).abs().mean() > 0.005


def test_what_becomes_of_a_view_does_not_depend_on_the_others_in_its_batch():
    n = 6
    x, g = views(n), torch.Generator().manual_seed(0)
    color = Color(
        jitter=torch.tensor([True, False, True, True, True, False]),
        order=torch.stack([torch.randperm(4, generator=g) for _ in range(n)]).to(torch.uint8),
        factors=torch.rand(n, 4, generator=g) * torch.tensor([1.6, 1.6, 1.6, 0.4])
        + torch.tensor([0.2, 0.2, 0.2, -0.2]),
        gray=torch.tensor([False, True, False, False, True, False]),
        sigma=torch.tensor([0.3, 2.0, 0.0, 1.1, 0.7, 0.5]),
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    together = augment_batch(fields(x, color), x.shape[-1], mean, std)
    for i in range(n):
        own = fields(x[i : i + 1], Color(**{name: value[i : i + 1] for name, value in vars(color).items()}))
        torch.testing.assert_close(together[i : i + 1], augment_batch(own, x.shape[-1], mean, std), rtol=0, atol=1e-5)


def test_the_result_is_normalized_channels_last_and_the_crops_stay_as_they_were():
    x = views(3)
    before = x.clone()
    found = augment_batch(fields(x, still(3)), x.shape[-1], (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    expected = (x.double() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.5]).view(
        3, 1, 1
    )
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(x, before)


def test_normalize_agrees_with_torchvision():
    functional = pytest.importorskip("torchvision.transforms.functional")
    x, mean, std = views(2).float() / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    torch.testing.assert_close(normalize(x.clone(), mean, std), functional.normalize(x, mean, std))
