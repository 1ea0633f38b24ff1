"""Networks of timm and torchvision by name: the same maps as in the library, back from a bundle, weights in its own names."""

import threading

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from seer.core.errors import RequestError
from seer.models import library_network, zoo
from seer.models.bundle import read_bundle, write_bundle
from seer.models.library_network import LibraryNetwork
from seer.models.surgery import freeze
from seer.run.weights import start_from

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def theirs() -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model("test_resnet").eval()


def test_maps_are_those_of_the_library_with_its_weights(theirs, tmp_path):
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    ours = zoo.build("timm:test_resnet")
    licence = start_from(str(tmp_path / "theirs.safetensors"), ours, mean=MEAN, std=STD)
    assert "timm" in licence
    _, expected = theirs.forward_intermediates(X)
    with torch.no_grad():
        found = list(ours.eval().forward_stages(X).values())
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(ours(X), expected[-1].mean((2, 3)))
    assert ours.feature_dim == expected[-1].shape[1]


def test_torchvision_s_stages_are_cut_where_its_own_layers_end(tmp_path):
    theirs = torchvision.models.resnet18(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = zoo.build("torchvision:resnet18")
    start_from(str(tmp_path / "theirs.pth"), ours, mean=MEAN, std=STD)
    with torch.no_grad():
        x = theirs.relu(theirs.bn1(theirs.conv1(X)))
        expected = [x]
        x = theirs.maxpool(x)
        for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            expected.append(x := layer(x))
        found = ours.eval().forward_stages(X)
        assert list(found) == ["stage1", "stage2", "stage3", "stage4", "stage5"]
        assert all(torch.equal(a, b) for a, b in zip(found.values(), expected, strict=True))
        torch.testing.assert_close(theirs.fc(ours(X)), theirs(X))


@pytest.mark.parametrize(
    "name", ["timm:test_resnet", "timm:test_efficientnet", "torchvision:squeezenet1_1", "torchvision:regnet_y_400mf"]
)
def test_a_bundle_brings_it_back_with_equal_outputs(name, tmp_path):
    ours = zoo.build(name, in_channels=1).eval()
    write_bundle(tmp_path, ours, card={})
    back, described = read_bundle(tmp_path)
    assert described["architecture"]["name"] == name == zoo.name_of(back.architecture)
    assert isinstance(back, LibraryNetwork) and back.architecture == ours.architecture
    with torch.no_grad():
        assert torch.equal(back(X[:, :1]), ours(X[:, :1]))


def test_freezing_holds_batch_norms_of_the_library_s_own_classes():
    ours = zoo.build("timm:test_efficientnet")
    norms = [m for m in ours.modules() if isinstance(m, _BatchNorm)]
    assert any(type(m) is not nn.BatchNorm2d for m in norms)
    ours.eval()
    with torch.no_grad():
        before = ours(X)
    freeze(ours).train()
    assert torch.equal(ours(X), before) and torch.equal(ours(X), before)


def test_building_it_again_in_a_thread_leaves_calls_of_others_alone():
    ours, stop, wrong = zoo.build("torchvision:squeezenet1_1").eval(), threading.Event(), list[Exception]()

    def calling() -> None:
        while not stop.is_set():
            try:
                with torch.no_grad():
                    ours(X[:1, :, :32, :32])
            except Exception as error:
                wrong.append(error)
                return

    thread = threading.Thread(target=calling)
    thread.start()
    for _ in range(20):
        zoo.of(ours.architecture, device="meta")
    stop.set()
    thread.join()
    assert wrong == []


def test_nothing_is_drawn_inside():
    ours = zoo.build("torchvision:efficientnet_b0").train()
    state = torch.get_rng_state()
    ours(X)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "name",
    [
        "timm:resnet17",
        "timm:hf-hub:a/b",
        "torchvision:fasterrcnn_resnet50_fpn",
        "timm:test_vit",
        "torchvision:vit_b_32",
        "torchvision:os",
    ],
)
def test_what_it_does_not_list_or_has_no_maps_is_refused(name):
    with pytest.raises(RequestError):
        zoo.build(name, device="meta")


@pytest.mark.slow
def test_sizes_that_it_does_not_take_are_told_without_computing(capfd):
    fixed = zoo.build("torchvision:maxvit_t", device="meta")
    assert fixed.shapes_of((2, 3, 224, 224))[-1][1] == fixed.feature_dim
    with pytest.raises(RequestError, match="96 x 96"):
        fixed.shapes_of((2, 3, 96, 96))
    assert capfd.readouterr().err == ""


def test_a_file_of_another_network_is_refused(theirs, tmp_path):
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    start_from(str(tmp_path / "theirs.pth"), zoo.build("timm:test_resnet"), mean=MEAN, std=STD)
    with pytest.raises(RequestError, match="lack"):
        start_from(str(tmp_path / "theirs.pth"), zoo.build("timm:test_convnext"), mean=MEAN, std=STD)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["cpu", "meta"])
def test_a_network_whose_graph_holds_numbers_of_its_own_can_be_built_again(first, monkeypatch):
    monkeypatch.setattr(library_network, "_TRACED", {})
    LibraryNetwork("torchvision", "maxvit_t", device=first)
    one, two = (LibraryNetwork("torchvision", "maxvit_t").eval() for _ in range(2))
    two.load_state_dict(one.state_dict())
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(one(x), two(x))
