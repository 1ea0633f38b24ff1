"""The zoo's rows against published parameter counts and costs, and what an unknown name answers."""

from pathlib import Path

import pytest
import torch
from torch import nn

from seer.models import zoo
from seer.models.families import FAMILIES

# name: parameters with a 1000-class layer, without it; then for 224 x 224 images, with that layer, multiplications in 1e9
# and outputs of convolutions in 1e6, both with as many digits as are published (None: not published).
PUBLISHED = {
    "regnety_200mf": (3_162_996, 2_793_996, "0.200", "2.2"),
    "regnety_400mf": (4_344_144, 3_903_144, "0.402", "3.9"),
    "regnety_600mf": (6_055_160, 5_446_160, "0.601", "4.3"),
    "regnety_800mf": (6_263_168, 5_494_168, "0.797", "5.2"),
    "regnety_800mf_tv": (6_432_512, 5_647_512, "0.83", None),
    "regnety_1_6gf": (11_202_430, 10_313_430, "1.612", "8.0"),
    "regnety_3_2gf": (19_436_338, 17_923_338, "3.176", "11.3"),
    "regnety_4gf": (20_646_656, 19_557_656, "3.973", "12.3"),
    "regnety_4gf_tv": (21_360_224, 20_271_224, "4.46", None),
    "regnety_6_4gf": (30_583_252, 29_286_252, "6.355", "16.4"),
    "regnety_8gf": (39_180_068, 37_163_068, "7.963", "18.0"),
    "regnety_8gf_tv": (39_381_472, 37_364_472, "8.47", None),
    "regnety_12gf": (51_822_544, 49_581_544, "12.09", "21.4"),
    "regnety_16gf": (83_590_140, 80_565_140, "15.912", "23.0"),
    "regnety_32gf": (145_046_770, 141_333_770, "32.28", "30.3"),
    "regnety_64gf": (281_378_786, 276_457_786, "64.07", "42.5"),
    "regnety_128gf": (644_812_894, 637_419_894, "127.518", "71.6"),
    "regnety_256gf": (1_282_601_138, 1_272_156_138, "254.385", "101.0"),
    "regnety_10b": (9_352_215_872, 9_323_934_872, "1863.3", "272.7"),
    "resnet_50": (25_557_032, 23_508_032, "4.09", "11.1"),
    "resnext_101_32x8d": (88_791_336, 86_742_336, "16.41", "31.2"),
}


DOCUMENTED = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text(encoding="utf-8").splitlines()


def cost(model: nn.Module, side: int) -> tuple[int, int]:
    """(multiplications, outputs) of all convolutions in one forward pass of [1, 3, side, side] on meta, counted by hooks."""
    counted = [0, 0]

    def count(module: nn.Conv2d, inputs, output: torch.Tensor) -> None:
        area = module.kernel_size[0] * module.kernel_size[1]
        counted[0] += output.numel() * area * (module.in_channels // module.groups)
        counted[1] += output.numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(torch.empty(1, 3, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    return counted[0], counted[1]


def as_published(value: float, published: str) -> str:
    return f"{value:.{len(published.partition('.')[2])}f}"


def test_the_zoo_holds_exactly_the_promised_names():
    assert zoo.names() == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_has_the_published_parameters_and_costs_the_published_arithmetic(name):
    total, trunk, gigamacs, activations = PUBLISHED[name]
    model = zoo.build(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == trunk
    assert trunk + model.feature_dim * 1000 + 1000 == total
    multiplications, outputs = cost(model, 224)
    assert as_published((multiplications + model.feature_dim * 1000) / 1e9, gigamacs) == gigamacs
    assert activations is None or as_published(outputs / 1e6, activations) == activations
    documented = next(line.split("|") for line in DOCUMENTED if line.startswith(f"| `{name}` |"))
    _, _, parameters, macs, outs, features, widths, torchvisions, timms, _ = (cell.strip() for cell in documented)
    assert int(parameters.replace(",", "")) == trunk and int(features) == model.feature_dim
    assert as_published((multiplications + model.feature_dim * 1000) / 1e9, macs) == macs
    assert as_published(outputs / 1e6, outs) == outs
    with torch.no_grad():
        maps = model.forward_stages(torch.empty(1, 3, 64, 64, device="meta"))
    assert list(map(int, widths.split(","))) == [m.shape[1] for name, m in maps.items() if name != "stem"]
    assert timms == {**FAMILIES["regnet"].timm.names, **FAMILIES["resnet"].timm.names}.get(name, "")
    if torchvisions:
        assert hasattr(pytest.importorskip("torchvision.models"), torchvisions)


def test_smaller_crops_cost_what_is_published():
    """Multiplications in 1e9 at 384, 160 and 96, and of SEER's crops of one image, 2 of 224 and 4 of 96, without the
    1000-class layer."""
    model = zoo.build("regnety_16gf", device="meta")
    at = {side: cost(model, side)[0] / 1e9 for side in (384, 224, 160, 96)}
    layer = model.feature_dim * 1000 / 1e9
    assert [f"{at[384] + layer:.1f}", f"{at[160] + layer:.2f}", f"{at[96] + layer:.2f}"] == ["46.7", "8.12", "2.93"]
    assert f"{2 * at[224] + 4 * at[96]:.1f}" == "43.5"


def test_batch_norm_buffers_of_the_large_rows_have_the_published_sizes():
    published = {"regnety_128gf": 415_158, "regnety_256gf": 586_506, "regnety_10b": 1_587_870}
    for name, elements in published.items():
        buffers = dict(zoo.build(name, device="meta").named_buffers())
        assert sum(buffer.numel() for buffer in buffers.values()) == elements, name  # the counters included


@pytest.mark.parametrize("name", ["800mf", "8gf", "400mf", "4gf"])
def test_rows_of_torchvisions_rounding_match_torchvisions_own_shapes(name):
    regnet = pytest.importorskip("torchvision.models.regnet")
    five = {
        "400mf": (16, 48, 27.89, 2.09, 8),
        "800mf": (14, 56, 38.84, 2.4, 16),
        "4gf": (22, 96, 31.41, 2.24, 64),
        "8gf": (17, 192, 76.82, 2.19, 56),
    }[name]
    theirs = regnet.BlockParams.from_init_params(*five)
    ours = zoo.build(f"regnety_{name}" + ("" if name == "400mf" else "_tv"), device="meta")
    assert list(ours.widths) == theirs.widths
    assert list(ours.depths) == theirs.depths
    assert list(ours.group_widths) == theirs.group_widths
    if name != "400mf":
        assert list(zoo.build(f"regnety_{name}", device="meta").widths) != theirs.widths


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("regnety_16g", "regnety_16gf"), ("regnet_y_128gf", "regnety_128gf"), ("regnety_10B", "regnety_10b")],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_how_to_list_them(wrong, near):
    with pytest.raises(ValueError) as caught:
        zoo.build(wrong)
    assert f"nearest name is {near!r}" in str(caught.value)
    assert "seer.models.zoo.names()" in str(caught.value)


def test_the_stem_stride_reaches_the_model():
    assert zoo.build("regnety_200mf", stem_stride=1, device="meta").stem.conv.stride == (1, 1)
    assert zoo.build("regnety_200mf", device="meta").stem.conv.stride == (2, 2)


def test_an_architecture_finds_its_name_whatever_its_stem_stride():
    for name in FAMILIES["regnet"].zoo:
        assert zoo.name_of(zoo.build(name, stem_stride=1, device="meta").architecture) == name
    for name in FAMILIES["resnet"].zoo:
        assert zoo.name_of(zoo.build(name, device="meta").architecture) == name
    other = zoo.build("regnety_200mf", device="meta").architecture
    assert zoo.name_of(other | {"stem_width": 24}) is None
    assert zoo.name_of(other | {"depths": [1, 1, 4, 8]}) is None
