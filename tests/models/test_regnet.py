"""RegNetY against torchvision's implementation, the facts about its initialisation, and meta construction."""

import math
import time

import pytest
import torch
from torch import nn

from seer.core.protocols import Backbone
from seer.models.families.regnet import FAMILY
from seer.models.regnet import RegNet, Shape, from_parameters
from seer.models.zoo import build
from tests.messages import naming

torchvision_regnet = pytest.importorskip("torchvision.models.regnet")

# depth, w_0, w_a, w_m, group width -> widths, depths, group widths.
# RegNet paper, appendix; from 64GF on VISSL's configurations of SEER.
PUBLISHED = {
    "200mf": ((13, 24, 36.44, 2.49, 8), (24, 56, 152, 368), (1, 1, 4, 7), (8,) * 4),
    "400mf": ((16, 48, 27.89, 2.09, 8), (48, 104, 208, 440), (1, 3, 6, 6), (8,) * 4),
    "600mf": ((15, 48, 32.54, 2.32, 16), (48, 112, 256, 608), (1, 3, 7, 4), (16,) * 4),
    "800mf": ((14, 56, 38.84, 2.4, 16), (64, 128, 320, 768), (1, 3, 8, 2), (16,) * 4),
    "1_6gf": ((27, 48, 20.71, 2.65, 24), (48, 120, 336, 888), (2, 6, 17, 2), (24,) * 4),
    "3_2gf": ((21, 80, 42.63, 2.66, 24), (72, 216, 576, 1512), (2, 5, 13, 1), (24,) * 4),
    "4gf": ((22, 96, 31.41, 2.24, 64), (128, 192, 512, 1088), (2, 6, 12, 2), (64,) * 4),
    "6_4gf": ((25, 112, 33.22, 2.27, 72), (144, 288, 576, 1296), (2, 7, 14, 2), (72,) * 4),
    "8gf": ((17, 192, 76.82, 2.19, 56), (168, 448, 896, 2016), (2, 4, 10, 1), (56,) * 4),
    "12gf": ((19, 168, 73.36, 2.37, 112), (224, 448, 896, 2240), (2, 5, 11, 1), (112,) * 4),
    "16gf": ((18, 200, 106.23, 2.48, 112), (224, 448, 1232, 3024), (2, 4, 11, 1), (112,) * 4),
    "32gf": ((20, 232, 115.89, 2.53, 232), (232, 696, 1392, 3712), (2, 5, 12, 1), (232,) * 4),
    "64gf": ((20, 352, 147.48, 2.4, 328), (328, 984, 1968, 4920), (2, 5, 12, 1), (328,) * 4),
    "128gf": ((27, 456, 160.83, 2.52, 264), (528, 1056, 2904, 7392), (2, 7, 17, 1), (264,) * 4),
    "256gf": ((27, 640, 230.83, 2.53, 373), (746, 1492, 4103, 10444), (2, 7, 17, 1), (373,) * 4),
    "256gf of ClassyVision": (
        (27, 640, 124.47, 2.04, 848),
        (640, 1696, 2544, 5088),
        (3, 7, 16, 1),
        (640, 848, 848, 848),
    ),
    "10b": ((27, 1744, 620.83, 2.52, 1010), (2020, 4040, 11110, 28280), (2, 7, 17, 1), (1010,) * 4),
}


def small(**changes) -> RegNet:
    arguments = {"widths": (16, 24, 40, 64), "depths": (1, 2, 2, 1), "group_widths": (8, 8, 8, 16)}
    return RegNet(**(arguments | changes))


def stirred(model: RegNet, seed: int = 0) -> RegNet:
    """The model with batch norms far from their start, so that a wrong statistic or affine shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model


def in_torchvision(model: RegNet) -> nn.Module:
    parameters = torchvision_regnet.BlockParams(
        depths=list(model.depths),
        widths=list(model.widths),
        group_widths=list(model.group_widths),
        bottleneck_multipliers=[1.0] * 4,
        strides=[2] * 4,
        se_ratio=0.25,
    )
    theirs = torchvision_regnet.RegNet(parameters)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(FAMILY.torchvision.rename(model.state_dict()), strict=True)
    return theirs


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("name", PUBLISHED)
def test_five_numbers_give_the_published_shape(name):
    numbers, widths, depths, group_widths = PUBLISHED[name]
    assert from_parameters(*numbers) == Shape(widths, depths, group_widths)
    if "of" not in name:
        assert build(f"regnety_{name}", device="meta").widths == widths


@pytest.mark.parametrize(
    "numbers", [(0, 24, 30.0, 2.5, 8), (13, 25, 30.0, 2.5, 8), (13, 24, -1.0, 2.5, 8), (13, 24, 3.0, 1.0, 8)]
)
def test_five_numbers_outside_their_range_are_refused(numbers):
    with pytest.raises(ValueError, match=naming("depth=", "w_0=", "w_a=", "w_m=")):
        from_parameters(*numbers)


@pytest.mark.parametrize("training", [False, True])
def test_features_equal_torchvisions_with_the_same_weights(training):
    torch.manual_seed(0)
    ours = stirred(build("regnety_200mf")).train(training)
    theirs = in_torchvision(ours).train(training)
    images = torch.randn(4, 3, 96, 96)
    with torch.no_grad():
        assert largest_difference(ours(images), theirs(images)) < 1e-5
    for key, value in FAMILY.torchvision.rename(ours.state_dict()).items():
        assert torch.allclose(value.float(), theirs.state_dict()[key].float(), rtol=1e-4, atol=1e-5), key


def test_gradients_equal_torchvisions_with_the_same_weights():
    torch.manual_seed(0)
    ours = stirred(small())
    theirs = in_torchvision(ours)
    images = torch.randn(4, 3, 64, 64)
    for model in (ours, theirs):
        model.double()(images.double()).square().sum().backward()
    gradients = FAMILY.torchvision.rename({name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("row", ["regnety_800mf", "regnety_1_6gf", "regnety_8gf_tv"])
def test_convolutions_start_normal_with_the_fan_out_of_all_groups(row):
    model = build(row, device="meta").to_empty(device="cpu")
    model.init_weights(torch.Generator().manual_seed(3))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            wanted = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            count = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(wanted, rel=5 / math.sqrt(2 * count)), name
            assert abs(module.weight.mean().item()) < 5 * wanted / math.sqrt(count), name
            if count > 5000:  # a uniform of the same variance has kurtosis 1.8 instead of 3
                assert (module.weight / wanted).pow(4).mean().item() == pytest.approx(3, abs=0.7), name


def test_squeeze_excite_biases_start_uniform_and_no_other_convolution_has_one():
    model = build("regnety_800mf")
    model.init_weights(torch.Generator().manual_seed(4))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and ".se." not in name:
            assert module.bias is None, name
        elif isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.in_channels)
            assert 0.5 * bound < module.bias.abs().max().item() <= bound, name


def test_batch_norms_start_at_one_and_zero_with_the_published_constants():
    norms = [module for module in small().modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 1 + 6 * 3 + 4
    for norm in norms:
        assert (norm.eps, norm.momentum) == (1e-5, 0.1)
        assert norm.weight.eq(1).all() and norm.bias.eq(0).all()
        assert norm.running_mean.eq(0).all() and norm.running_var.eq(1).all() and norm.num_batches_tracked == 0


@pytest.mark.parametrize("name", ["small", "regnety_200mf", "regnety_8gf_tv"])
def test_init_weights_leaves_no_value_of_an_empty_model_unfilled(name):
    model = small(device="meta") if name == "small" else build(name, device="meta")
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    model.init_weights(torch.Generator().manual_seed(0))
    for name, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all() and (tensor.is_floating_point() or tensor.eq(0).all()), name


def test_init_weights_depends_on_its_generator_alone():
    first, second, other = small(), small(), small()
    first.init_weights(torch.Generator().manual_seed(5))
    second.init_weights(torch.Generator().manual_seed(5))
    other.init_weights(torch.Generator().manual_seed(6))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.stem.conv.weight, other.stem.conv.weight)


def test_init_weights_refuses_a_module_that_it_would_leave_unfilled():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

    model = small()
    before = model.stem.conv.weight.clone()
    model.stage2.block0.se = Scale()
    with pytest.raises(TypeError, match=r"stage2\.block0\.se \(Scale\)"):
        model.init_weights()
    assert torch.equal(model.stem.conv.weight, before)


@pytest.mark.parametrize("route", ["argument", "context"])
def test_the_ten_billion_model_is_built_on_meta_within_a_second(route):
    build("regnety_200mf", device="meta")
    start = time.process_time()
    if route == "argument":
        model = build("regnety_10b", device="meta")
    else:
        with torch.device("meta"):
            model = build("regnety_10b")
    assert time.process_time() - start < 1.0
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_stages_halve_the_image_and_pool_to_the_features():
    model = small().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps, features = model.forward_stages(images), model(images)
    assert {name: list(tensor.shape) for name, tensor in maps.items()} == {
        "stem": [2, 32, 32, 32],
        "stage1": [2, 16, 16, 16],
        "stage2": [2, 24, 8, 8],
        "stage3": [2, 40, 4, 4],
        "stage4": [2, 64, 2, 2],
    }
    assert list(maps) == ["stem", "stage1", "stage2", "stage3", "stage4"]
    torch.testing.assert_close(maps["stage4"].mean((2, 3)), features)
    assert isinstance(model, Backbone)
    assert features.shape == (2, model.feature_dim) == (2, 64)


def test_stage_maps_are_not_overwritten_by_later_layers():
    model = small().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = model.forward_stages(images)
        alone = model.stage1(model.stem(images))
    torch.testing.assert_close(maps["stage1"], alone, rtol=0, atol=0)


def test_a_stem_stride_of_one_doubles_every_map_with_the_same_weights():
    coarse, fine = small().eval(), small(stem_stride=1).eval()
    fine.load_state_dict(coarse.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for two, one in zip(coarse.forward_stages(images).values(), fine.forward_stages(images).values(), strict=True):
            assert one.shape[2] == 2 * two.shape[2] and one.shape[3] == 2 * two.shape[3]


def test_the_squeeze_width_follows_from_the_width_that_enters_the_block():
    model = build("regnety_16gf", device="meta")
    assert model.stage1.block0.se.reduce.out_channels == 8
    assert model.stage1.block1.se.reduce.out_channels == 56
    assert model.stage4.block0.se.reduce.out_channels == 308


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widths": (16, 24, 40)}, "same length"),
        ({"depths": (1, 0, 2, 1)}, "at least 1"),
        ({"group_widths": (8, 8, 16, 16)}, "40.*16"),
        ({"stem_stride": 4}, "stem_stride=4"),
        ({"se_ratio": 0.01}, "se_ratio=0.01"),
    ],
)
def test_an_impossible_shape_is_refused_with_its_reason(changes, words):
    with pytest.raises(ValueError, match=words):
        small(**changes)


def test_the_architecture_rebuilds_the_same_shapes():
    model = small(se_ratio=0.5, stem_width=24, stem_stride=1, device="meta")
    again = RegNet(**model.architecture, device="meta")
    assert again.architecture == model.architecture
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
