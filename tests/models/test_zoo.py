"""The zoo's rows against published parameter counts, and what an unknown name answers."""

import pytest

from seer.models import zoo

# Parameters without the classifier: totals of ClassyVision's and torchvision's builds less the 1000-class layer.
TRUNK_PARAMETERS = {
    "regnety_200mf": 2_793_996,
    "regnety_400mf": 3_903_144,
    "regnety_600mf": 5_446_160,
    "regnety_800mf": 5_494_168,
    "regnety_800mf_tv": 6_432_512 - 785_000,
    "regnety_1_6gf": 10_313_430,
    "regnety_3_2gf": 17_923_338,
    "regnety_4gf": 19_557_656,
    "regnety_4gf_tv": 20_271_224,
    "regnety_6_4gf": 29_286_252,
    "regnety_8gf": 37_163_068,
    "regnety_8gf_tv": 39_381_472 - 2_017_000,
    "regnety_12gf": 49_581_544,
    "regnety_16gf": 80_565_140,
    "regnety_32gf": 141_333_770,
    "regnety_64gf": 276_457_786,
    "regnety_128gf": 637_419_894,
    "regnety_256gf": 1_272_156_138,
    "regnety_10b": 9_323_934_872,
}


def test_the_zoo_holds_exactly_the_promised_names():
    assert zoo.names() == list(TRUNK_PARAMETERS)


@pytest.mark.parametrize("name", TRUNK_PARAMETERS)
def test_a_row_has_the_published_number_of_parameters(name):
    model = zoo.build(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == TRUNK_PARAMETERS[name]


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
    for name in zoo.names():
        assert zoo.name_of(zoo.build(name, stem_stride=1, device="meta").architecture) == name
    other = zoo.build("regnety_200mf", device="meta").architecture
    assert zoo.name_of(other | {"stem_width": 24}) is None
    assert zoo.name_of(other | {"depths": [1, 1, 4, 8]}) is None
