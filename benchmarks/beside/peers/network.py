"""torchvision's RegNetY by our name of it, without its classifier, as lightly's examples take a backbone."""

import torchvision
from torch import nn

NAMES = {
    "regnety_400mf": "regnet_y_400mf",
    "regnety_1_6gf": "regnet_y_1_6gf",
    "regnety_16gf": "regnet_y_16gf",
}


def backbone(name: str) -> nn.Module:
    """Returns the network; its attribute `width` is the number of features. KeyError for a model that is not in NAMES."""
    network: nn.Module = getattr(torchvision.models, NAMES[name])()
    network.width = network.fc.in_features
    network.fc = nn.Identity()
    return network
