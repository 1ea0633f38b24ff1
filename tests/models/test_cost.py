"""What a network costs is compared with counts made by hooks on its layers, and with the table of the zoo."""

import pytest
import torch
from torch import nn

from seer.models import cost
from seer.models.zoo import build, names
from tests.program import ROOT

TABLE = {
    line.split("`")[1]: [cell.strip() for cell in line.split("|")[2:4]]
    for line in (ROOT / "docs" / "zoo.md").read_text().splitlines()
    if line.startswith("| `")
}


@pytest.mark.parametrize("name", names())
def test_parameters_and_multiplications_are_those_of_the_table(name):
    network = build(name, device="meta")
    found = cost.of(network.architecture, 224)
    parameters, gigamacs = TABLE[name]
    assert found["parameters"] == int(parameters.replace(",", ""))
    published = found["macs"] + network.feature_dim * 1000  # the table counts a layer of 1000 classes
    digits = len(gigamacs.partition(".")[2])
    assert published / 1e9 == pytest.approx(float(gigamacs), abs=0.51 * 10**-digits)
    stored = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    assert found["weight_bytes"] == 4 * sum(tensor.numel() for tensor in stored)


@pytest.mark.parametrize("changes", [{}, {"stem_stride": 1}, {"in_channels": 1}])
def test_multiplications_are_those_that_hooks_count(changes):
    network, counted = build("regnety_200mf", device="meta", **changes), []

    def count(layer, given, output):
        counted.append(output.numel() * layer.weight[0].numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.empty(1, network.in_channels, 96, 96, device="meta"))
    assert cost.of(network.architecture, 96)["macs"] == sum(counted)


@pytest.mark.parametrize(
    ("name", "float_mb", "int8_mb"), [("regnety_200mf", 11.19, 3.05), ("regnety_400mf", 15.63, 4.23)]
)
def test_predicted_files_are_those_that_executorch_wrote(name, float_mb, int8_mb):
    found = cost.of(build(name, device="meta").architecture, 224)
    assert found["fp32_file_bytes"] / 1e6 == pytest.approx(float_mb, rel=0.01)
    assert found["int8_file_bytes"] / 1e6 == pytest.approx(int8_mb, rel=0.01)


@pytest.mark.parametrize(("side", "channels"), [(224, 3), (96, 1)])
def test_what_lives_at_once_in_the_first_block_is_the_sum_of_its_maps(side, channels):
    """The first block of a 200MF is its widest place: the image, the stem, the shortcut, and the block's first two maps."""
    half, quarter = side // 2, side // 4
    maps = channels * side**2 + 32 * half**2 + 24 * quarter**2 + 24 * half**2 + 24 * quarter**2
    network = build("regnety_200mf", device="meta", in_channels=channels)
    assert cost.of(network.architecture, side)["live_bytes"] == 4 * maps
