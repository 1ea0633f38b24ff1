"""ResNets: torchvision's own features, files as torchvision, timm, SwAV and VISSL write them, and out again."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from seer.core.errors import RequestError
from seer.export import to_safetensors, to_timm, to_torchvision
from seer.models import families, zoo
from seer.models.bundle import read_bundle, write_bundle
from seer.models.pretrained import load_backbone, load_with_origin
from seer.models.resnet import ResNet
from tests.export.test_export import drawn
from tests.messages import naming

resnet = pytest.importorskip("torchvision.models.resnet")
SHAPES = {"plain": ([1, 2, 1, 1], 1, 16), "grouped": ([1, 1, 2, 1], 4, 8)}


def theirs(kind: str, classes: int = 10):
    """torchvision's network with trained statistics."""
    depths, groups, width = SHAPES[kind]
    torch.manual_seed(0)
    model = resnet.ResNet(resnet.Bottleneck, depths, classes, groups=groups, width_per_group=width)
    with torch.no_grad():
        for step in range(5):
            model.train()(drawn(4 * step, 4))
    return model.eval()


def features(model, images: torch.Tensor) -> torch.Tensor:
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        return model(images)


@pytest.fixture(params=SHAPES)
def kind(request) -> str:
    return request.param


WRAPPERS = {
    "torchvision": lambda s: s,
    "SwAV": lambda s: {
        **{f"module.{k}": v for k, v in s.items() if not k.startswith("fc.")},
        **{"module.projection_head.0.weight": torch.zeros(2, 2), "module.prototypes.weight": torch.zeros(3, 2)},
    },
    "VISSL": lambda s: {
        "classy_state_dict": {
            "base_model": {
                "model": {
                    "trunk": {f"_feature_blocks.{k}": v for k, v in s.items() if not k.startswith("fc.")},
                    "heads": {"0.projection_head.0.weight": torch.zeros(2, 2)},
                }
            }
        }
    },
    "without counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_files_of_every_make_give_torchvisions_features_bit_for_bit(tmp_path, kind, wrapper):
    model = theirs(kind)
    torch.save(WRAPPERS[wrapper](model.state_dict()), tmp_path / "weights.pth")
    backbone = load_backbone(tmp_path / "weights.pth")
    images = drawn(100, 2)
    with torch.no_grad():
        assert torch.equal(backbone(images), features(model, images))
    depths, groups, width = SHAPES[kind]
    assert backbone.architecture == {"family": "resnet", "depths": depths, "groups": groups, "width_per_group": width}


def test_a_classifier_is_left_out_and_counted(tmp_path):
    torch.save(theirs("plain").state_dict(), tmp_path / "weights.pth")
    assert load_with_origin(tmp_path / "weights.pth")[1].left_out == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s.pop("layer2.0.conv1.weight"), ("missing", "layer2.0.conv1.weight")),
        (lambda s: s.update({"layer2.0.extra.weight": torch.zeros(1)}), ("unexpected", "layer2.0.extra.weight")),
        (lambda s: s.update({"bn1.bias": torch.zeros(3)}), ("bn1.bias", "[3]", "[64]")),
        (lambda s: s.pop("layer1.0.conv2.weight"), ("weights.pth", "layer1.0.conv2.weight")),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path, damage, words):
    state = theirs("plain").state_dict()
    damage(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=naming(*words)):
        load_backbone(tmp_path / "weights.pth")


def test_a_resnet_of_plain_blocks_is_refused_with_the_reason(tmp_path):
    torch.save(resnet.resnet18().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(RequestError, match=naming("weights.pth", 18, 50)):
        load_backbone(tmp_path / "weights.pth")


def test_published_names_have_torchvisions_own_shapes():
    for ours, name in (("resnet_50", "resnet50"), ("resnext_101_32x8d", "resnext101_32x8d")):
        with torch.device("meta"):
            model = getattr(resnet, name)()
        shapes = {k: v.shape for k, v in model.state_dict().items() if not k.startswith("fc.")}
        assert {k: v.shape for k, v in zoo.build(ours, device="meta").state_dict().items()} == shapes


def test_every_tensor_is_filled_after_meta_as_torchvision_fills_it():
    model = zoo.of({"family": "resnet", "depths": [1, 1, 1, 1], "groups": 1, "width_per_group": 64}, device="meta")
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(99)
    torch.manual_seed(0)
    model.init_weights()
    state = model.state_dict()
    assert all(t.isfinite().all() for t in state.values()) and state["bn1.num_batches_tracked"] == 0
    fan_out = {k: t.shape[0] * t[0, 0].numel() for k, t in state.items() if t.ndim == 4}
    for key, outputs in fan_out.items():
        assert state[key].std().item() == pytest.approx((2 / outputs) ** 0.5, rel=0.05), key


def test_another_stem_stride_is_refused():
    with pytest.raises(ValueError, match=naming("stem", "resnet_50")):
        zoo.build("resnet_50", stem_stride=1)


def test_stages_are_what_the_pooled_features_come_from():
    model = ResNet(*SHAPES["plain"]).eval()
    with torch.no_grad():
        maps = model.forward_stages(drawn(0, 2))
        assert [tuple(m.shape[1:]) for m in maps.values()] == [
            *((64, 16, 16), (256, 16, 16), (512, 8, 8), (1024, 4, 4), (2048, 2, 2))
        ]
        assert torch.allclose(maps["layer4"].mean((2, 3)), model(drawn(0, 2)), atol=1e-6)


def test_a_bundle_brings_the_resnet_back(tmp_path, kind):
    torch.save(theirs(kind).state_dict(), tmp_path / "weights.pth")
    backbone = load_backbone(tmp_path / "weights.pth")
    write_bundle(tmp_path / "bundle", backbone, card={})
    again, described = read_bundle(tmp_path / "bundle")
    assert again.architecture == backbone.architecture and described["feature_dim"] == 2048
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), backbone.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("exporter", [to_torchvision, to_safetensors])
def test_exports_reload_with_the_same_features(tmp_path, kind, exporter):
    torch.save(theirs(kind).state_dict(), tmp_path / "weights.pth")
    found = exporter.export(load_backbone(tmp_path / "weights.pth"), {}, tmp_path / "out", drawn(100, 2))
    assert found["parity"] <= 1e-5


@pytest.mark.slow
def test_timm_loads_an_exported_resnet_50_by_name(tmp_path):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    backbone = zoo.build("resnet_50").eval()
    found = to_timm.export(backbone, {}, tmp_path / "out", drawn(100, 2))
    assert found["timm"] == "resnet50" and found["parity"] <= 1e-5


def widened(times: int) -> nn.Sequential:
    """SwAV's ResNet-50w2 in small, put together by hand of torchvision's blocks: every width is `times` the usual."""
    torch.manual_seed(0)
    stages, entering = [], 64 * times
    for number, planes in enumerate((64, 128, 256, 512)):
        stride = 1 if number == 0 else 2
        leaving = planes * times * 4
        projection = nn.Sequential(nn.Conv2d(entering, leaving, 1, stride, bias=False), nn.BatchNorm2d(leaving))
        first = resnet.Bottleneck(entering, planes * times, stride, projection)
        stages.append(nn.Sequential(first, resnet.Bottleneck(leaving, planes * times)))
        entering = leaving
    stem = OrderedDict(
        conv1=nn.Conv2d(3, 64 * times, 7, 2, 3, bias=False),
        bn1=nn.BatchNorm2d(64 * times),
        relu=nn.ReLU(),
        maxpool=nn.MaxPool2d(3, 2, 1),
    )
    layers = OrderedDict((f"layer{number + 1}", stage) for number, stage in enumerate(stages))
    return nn.Sequential(stem | layers | OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))


@pytest.mark.slow
@pytest.mark.parametrize("times", [2])
def test_a_widened_resnet_of_swav_gives_its_features_bit_for_bit_and_goes_to_a_bundle_alone(tmp_path, times):
    model = widened(times)
    with torch.no_grad():
        model.train()(drawn(0, 2))  # so that its statistics are its own
    model.eval()
    head = {"module.projection_head.0.weight": torch.zeros(2, 2), "module.prototypes.weight": torch.zeros(3, 2)}
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()} | head, tmp_path / "w.pth")
    backbone = load_backbone(tmp_path / "w.pth")
    images = drawn(100, 2)
    with torch.no_grad():
        assert torch.equal(backbone(images), model(images))
    assert backbone.architecture == {
        "family": "resnet",
        "depths": [2] * 4,
        "groups": 1,
        "width_per_group": 64,
        "widen": times,
    }
    assert backbone.feature_dim == 2048 * times == families.of_model(backbone).features(backbone.architecture)
    for exporter in (to_torchvision, to_timm):
        with pytest.raises(RequestError, match=naming(f"widen={times}", "to=safetensors")):
            exporter.export(backbone, {}, tmp_path / "out", images)
    found = to_safetensors.export(backbone, {}, tmp_path / "out", images)
    again, described = read_bundle(tmp_path / "out")
    assert found["parity"] == 0.0 and again.architecture == backbone.architecture
    assert described["architecture"]["widen"] == times and zoo.name_of(backbone.architecture) is None


def test_torchvisions_wide_resnet_widens_its_middle_alone(tmp_path):
    model = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], width_per_group=128).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    backbone = load_backbone(tmp_path / "w.pth")
    assert backbone.architecture == {"family": "resnet", "depths": [1] * 4, "groups": 1, "width_per_group": 128}


def test_every_tensor_of_a_widened_resnet_is_made_on_meta_too():
    shape = {"family": "resnet", "depths": [1] * 4, "groups": 1, "width_per_group": 64, "widen": 2}
    model = zoo.of(shape, device="meta")
    assert all(p.is_meta for p in (*model.parameters(), *model.buffers())) and model.architecture == shape
