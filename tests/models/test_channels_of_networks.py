"""Backbones of images with other than three channels: built, described, loaded, handed over."""

import json

import pytest
import torch

from seer.core.errors import RequestError
from seer.export import to_safetensors, to_timm, to_torchvision
from seer.models import zoo
from seer.models.bundle import card_of, read_bundle, write_bundle
from seer.models.pretrained import load_backbone

NAMES = ("regnety_200mf", "resnet_50")


def network(name: str, channels: int):
    torch.manual_seed(0)
    return zoo.build(name, in_channels=channels).eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 5])
def test_a_network_takes_so_many_channels_and_its_bundle_says_so(name, channels, tmp_path):
    model = network(name, channels)
    assert model.architecture["in_channels"] == channels and zoo.name_of(model.architecture) == name
    card = {"mean": [0.5] * channels, "std": [0.2] * channels, "ground": 255}
    write_bundle(tmp_path / "b", model, card=card)
    loaded, described = read_bundle(tmp_path / "b")
    x = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    found = card_of(described)
    assert found["mean"] == [0.5] * channels and found["ground"] == 255
    with pytest.raises(ValueError, match=f"{channels} numbers"):
        write_bundle(tmp_path / "c", model, card={"mean": [0.5] * 3})


@pytest.mark.parametrize("name", NAMES)
def test_three_channels_are_not_said_so_that_descriptions_stay_as_they_were(name, tmp_path):
    model = network(name, 3)
    assert "in_channels" not in model.architecture
    write_bundle(tmp_path, model, card={})
    described = json.loads((tmp_path / "bundle.json").read_text())
    assert "ground" not in described and "in_channels" not in described["architecture"]


@pytest.mark.parametrize("name", NAMES)
def test_the_channels_are_told_by_the_tensors_of_a_file(name, tmp_path):
    model = network(name, 4)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert load_backbone(tmp_path / "w.pth").architecture["in_channels"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_timm_and_safetensors_hold_other_channels_and_torchvision_refuses_them(name, tmp_path):
    model, x = network(name, 4), torch.randn(2, 4, 64, 64)
    card = {"mean": [0.1, 0.2, 0.3, 0.4], "std": [0.5] * 4, "input_size": 64}
    assert to_safetensors.export(model, card, tmp_path / "s", x)["parity"] == 0
    with pytest.raises(RequestError, match=r"4 channels.*safetensors"):
        to_torchvision.export(model, card, tmp_path / "t.pth", x)
    timm = pytest.importorskip("timm")
    assert to_timm.export(model, card, tmp_path / "timm", x)["parity"] <= 1e-5
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert timm.data.resolve_model_data_config(loaded)["input_size"] == (4, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-4)
