"""Exports read back where they are meant to be read: torchvision's own RegNet, and our loader."""

import json
import os

import pytest
import torch
from torch import nn

from seer.export import parity, to_safetensors, to_torchvision
from seer.models.pretrained import load_backbone
from seer.models.regnet import RegNet
from seer.models.zoo import build

CARD = {"recipe": "swav", "images_seen": 5, "metrics": {"knn_top1": 0.4}}


def trained(model: RegNet) -> RegNet:
    """The model after a few forward passes in training mode, so that its statistics are its own."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(4, 3, 64, 64))
    return model


def small(**changes) -> RegNet:
    torch.manual_seed(0)
    arguments = {"widths": (16, 24, 40, 64), "depths": (1, 2, 2, 1), "group_widths": (8, 8, 8, 16)}
    return trained(RegNet(**(arguments | changes)))


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "make", [small, lambda: trained(build("regnety_200mf")), lambda: small(stem_width=24, se_ratio=0.5)]
)
def test_the_torchvision_file_loads_strictly_and_gives_the_same_features(tmp_path, pictures, make):
    regnet = pytest.importorskip("torchvision.models.regnet")
    backbone = make()
    result = to_torchvision.export(backbone, CARD, tmp_path / "out" / "model.pth", pictures)
    assert result["file"] == str(tmp_path / "out" / "model.pth")
    assert result["parity"] <= result["tolerance"] == 1e-5
    theirs = regnet.RegNet(regnet.BlockParams(**result["block_params"]), stem_width=backbone.stem_width)
    theirs.fc = nn.Identity()
    state = torch.load(result["file"], weights_only=True)
    theirs.load_state_dict(state, strict=True)
    with torch.no_grad():
        found, wanted = theirs.eval()(pictures), backbone.eval()(pictures)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert all(type(tensor) is torch.Tensor and tensor.is_contiguous() for tensor in state.values())
    assert os.listdir(tmp_path / "out") == ["model.pth"]
    assert json.dumps(result)


def test_a_torchvision_export_of_a_torchvision_builder_fits_that_builder(tmp_path, pictures):
    models = pytest.importorskip("torchvision.models")
    result = to_torchvision.export(trained(build("regnety_400mf")), {}, tmp_path, pictures)
    assert result["file"] == str(tmp_path / "torchvision.pth")
    theirs = models.regnet_y_400mf(weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(torch.load(result["file"], weights_only=True), strict=True)


def test_a_stem_stride_of_one_is_refused_for_torchvision_with_the_way_out(tmp_path, pictures):
    with pytest.raises(ValueError, match=r"stride-2 stem.*to=safetensors keeps"):
        to_torchvision.export(small(stem_stride=1), CARD, tmp_path / "model.pth", pictures)
    assert os.listdir(tmp_path) == []


def test_features_that_differ_raise_and_leave_the_older_file(tmp_path, pictures, monkeypatch):
    (tmp_path / "model.pth").write_bytes(b"older")
    swapped = {"f.a.1": "f.b.1", "f.b.1": "f.a.1"}  # same shapes from block 1 on, other meaning

    def wrong(state):
        return {next((k.replace(a, b) for a, b in swapped.items() if a in k), k): v for k, v in real(state).items()}

    real = to_torchvision.to_torchvision_names
    monkeypatch.setattr(to_torchvision, "to_torchvision_names", wrong)
    with pytest.raises(ValueError, match="differ from the original's"):
        to_torchvision.export(small(), CARD, tmp_path / "model.pth", pictures)
    assert os.listdir(tmp_path) == ["model.pth"] and (tmp_path / "model.pth").read_bytes() == b"older"


def test_weights_that_are_not_finite_do_not_pass_the_parity_check(tmp_path, pictures):
    backbone = small()
    with torch.no_grad():
        backbone.stage4.block0.c.bn.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="by nan"):
        to_torchvision.export(backbone, CARD, tmp_path / "model.pth", pictures)
    with pytest.raises(ValueError, match="by nan"):
        to_safetensors.export(backbone, CARD, tmp_path / "bundle", pictures)
    assert os.listdir(tmp_path) == ["bundle"] and os.listdir(tmp_path / "bundle") == []


def test_the_safetensors_export_is_a_bundle_that_keeps_stride_and_card(tmp_path, pictures):
    backbone = small(stem_stride=1)
    result = to_safetensors.export(backbone, CARD, tmp_path / "b", pictures)
    assert result["parity"] <= result["tolerance"] == 1e-5
    loaded = load_backbone(result["bundle"])
    assert loaded.stem_stride == 1
    with torch.no_grad():
        torch.testing.assert_close(loaded(pictures), backbone.eval()(pictures))
    described = json.loads((tmp_path / "b" / "bundle.json").read_text())
    assert described["provenance"]["images_seen"] == 5 and described["provenance"]["metrics"] == {"knn_top1": 0.4}
    assert json.dumps(result)


@pytest.mark.parametrize("exporter", [to_torchvision, to_safetensors])
def test_exporting_leaves_the_backbone_as_it_was(tmp_path, pictures, exporter):
    backbone = small().to(torch.float64).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    exporter.export(backbone, CARD, tmp_path / "out", pictures)
    assert backbone.training
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_parity_is_the_largest_difference_over_the_largest_wanted_value():
    wanted = torch.tensor([[1.0, -4.0], [0.0, 2.0]])
    found = torch.tensor([[1.0, -4.0], [0.1, 2.0]])
    assert parity.relative_difference(found, wanted) == pytest.approx(0.025)
    with pytest.raises(ValueError, match="were wanted"):
        parity.relative_difference(found[:1], wanted)


def test_a_parity_check_without_pictures_is_refused(tmp_path):
    with pytest.raises(ValueError, match="N >= 1"):
        to_safetensors.export(small(), CARD, tmp_path / "b", torch.zeros(0, 3, 64, 64))
    assert os.listdir(tmp_path) == []
