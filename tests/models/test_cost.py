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
