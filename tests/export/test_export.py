"""Exports read back where they are meant to be read: torchvision's own RegNet, timm, and our loader."""

import json
import os
import re
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from seer.cli import export as cli_export
from seer.data import synthetic as sample
from seer.data.augment import normalize
from seer.data.decode import decode
from seer.data.shards.open import open_shards
from seer.data.shards.shard import image_of
from seer.evals.features import center
from seer.export import model_card, parity, to_safetensors, to_timm, to_torchvision
from seer.models.bundle import IMAGENET_MEAN, IMAGENET_STD, write_bundle
from seer.models.families import FAMILIES
from seer.models.pretrained import load_backbone
from seer.models.regnet import RegNet
from seer.models.zoo import build
from tests.messages import naming, says
from tests.models import foreign_files as foreign
from tests.program import seer

TIMM = {**FAMILIES["regnet"].timm.names, **FAMILIES["resnet"].timm.names}
CARD_FIELDS = {"recipe": "swav", "images_seen": 5, "metrics": {"knn_top1": 0.4}}


def drawn(first: int, count: int, side: int = 64) -> torch.Tensor:
    """Built-in images, [count, 3, side, side], normalized: never noise, which hides a wrong order of channels."""
    cut = [center(sample.draw(i % len(sample.SHAPE_CLASSES), i), side, side) for i in range(first, first + count)]
    return normalize(torch.stack(cut).float().div_(255), IMAGENET_MEAN, IMAGENET_STD)


def trained(model: RegNet) -> RegNet:
    """The model after a few forward passes in training mode, so that its statistics are its own, and far from 0 and 1."""
    with torch.no_grad():
        for step in range(10):
            model.train()(drawn(4 * step, 4))
    return model


def small(**changes) -> RegNet:
    torch.manual_seed(0)
    arguments = {"widths": (16, 24, 40, 64), "depths": (1, 2, 2, 1), "group_widths": (8, 8, 8, 16)}
    return trained(RegNet(**(arguments | changes)))


@pytest.fixture
def images() -> torch.Tensor:
    return drawn(100, 2)


@pytest.mark.parametrize(
    "make", [small, lambda: trained(build("regnety_200mf")), lambda: small(stem_width=24, se_ratio=0.5)]
)
def test_the_torchvision_file_loads_strictly_and_gives_the_same_features(tmp_path, images, make):
    regnet = pytest.importorskip("torchvision.models.regnet")
    backbone = make()
    result = to_torchvision.export(backbone, CARD_FIELDS, tmp_path / "out" / "model.pth", images)
    assert result["file"] == str(tmp_path / "out" / "model.pth")
    assert result["parity"] <= result["tolerance"] == 1e-5
    theirs = regnet.RegNet(regnet.BlockParams(**result["block_params"]), stem_width=backbone.stem_width)
    theirs.fc = nn.Identity()
    state = torch.load(result["file"], weights_only=True)
    theirs.load_state_dict(state, strict=True)
    with torch.no_grad():
        found, wanted = theirs.eval()(images), backbone.eval()(images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert all(type(tensor) is torch.Tensor and tensor.is_contiguous() for tensor in state.values())
    assert sorted(os.listdir(tmp_path / "out")) == ["model.pth", "model.pth.json"]
    assert json.dumps(result)


def test_a_torchvision_export_of_a_torchvision_builder_fits_that_builder(tmp_path, images):
    models = pytest.importorskip("torchvision.models")
    result = to_torchvision.export(trained(build("regnety_400mf")), {}, tmp_path, images)
    assert result["file"] == str(tmp_path / "torchvision.pth")
    theirs = models.regnet_y_400mf(weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(torch.load(result["file"], weights_only=True), strict=True)


def test_a_stem_stride_of_one_is_refused_for_torchvision_with_the_way_out(tmp_path, images):
    with pytest.raises(ValueError, match=naming("stem_stride=1", "to=safetensors")):
        to_torchvision.export(small(stem_stride=1), CARD_FIELDS, tmp_path / "model.pth", images)
    assert os.listdir(tmp_path) == []


def test_features_that_differ_raise_and_leave_the_older_file(tmp_path, images, monkeypatch):
    (tmp_path / "model.pth").write_bytes(b"older")
    swapped = {"f.a.1": "f.b.1", "f.b.1": "f.a.1"}  # same shapes from block 1 on, other meaning

    def wrong(state):
        return {next((k.replace(a, b) for a, b in swapped.items() if a in k), k): v for k, v in real(state).items()}

    row = FAMILIES["regnet"]
    real = row.torchvision.rename
    monkeypatch.setitem(FAMILIES, "regnet", replace(row, torchvision=replace(row.torchvision, rename=wrong)))
    with pytest.raises(ValueError, match=naming("features", "differ")):
        to_torchvision.export(small(), CARD_FIELDS, tmp_path / "model.pth", images)
    assert os.listdir(tmp_path) == ["model.pth"] and (tmp_path / "model.pth").read_bytes() == b"older"


def test_weights_that_are_not_finite_do_not_pass_the_parity_check(tmp_path, images):
    backbone = small()
    with torch.no_grad():
        backbone.stage4.block0.c.bn.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=naming("stage4.block0.c.bn.weight", "NaN")):
        to_torchvision.export(backbone, CARD_FIELDS, tmp_path / "model.pth", images)
    with pytest.raises(ValueError, match=naming("stage4.block0.c.bn.weight", "NaN")):
        to_safetensors.export(backbone, CARD_FIELDS, tmp_path / "bundle", images)
    assert os.listdir(tmp_path) == []


def test_the_safetensors_export_is_a_bundle_that_keeps_stride_and_card(tmp_path, images):
    backbone = small(stem_stride=1)
    result = to_safetensors.export(backbone, CARD_FIELDS, tmp_path / "b", images)
    assert result["parity"] <= result["tolerance"] == 1e-5
    loaded = load_backbone(result["bundle"])
    assert loaded.stem_stride == 1
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), backbone.eval()(images))
    described = json.loads((tmp_path / "b" / "bundle.json").read_text())
    assert described["provenance"]["images_seen"] == 5 and described["provenance"]["metrics"] == {"knn_top1": 0.4}
    assert json.dumps(result)


@pytest.mark.parametrize("exporter", [to_torchvision, to_safetensors, to_timm])
def test_exporting_leaves_the_backbone_and_the_generator_as_they_were(tmp_path, images, exporter):
    if exporter is to_timm:
        pytest.importorskip("timm")
    backbone = build("regnety_200mf").to(torch.float64).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    exporter.export(backbone, CARD_FIELDS, tmp_path / "out", images)
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone.training
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("card", [{}, {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": 160}])
def test_the_timm_folder_loads_strictly_in_timm_and_gives_the_same_features(tmp_path, images, card):
    timm = pytest.importorskip("timm")
    backbone = trained(build("regnety_200mf"))
    result = to_timm.export(backbone, card, tmp_path / "out", images)
    assert result["timm"] == "regnety_002" and result["parity"] <= result["tolerance"] == 1e-5
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]
    plain = timm.create_model("regnety_002", num_classes=0).eval()
    plain.load_state_dict(load_file(result["file"]), strict=True)
    whole = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        wanted = backbone.eval()(images)
        assert (plain(images) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        assert torch.equal(whole(images), plain(images))
    found = timm.data.resolve_model_data_config(whole)
    side = card.get("input_size", 224)
    assert list(found["input_size"]) == [3, side, side]
    assert tuple(found["mean"]) == tuple(card.get("mean", IMAGENET_MEAN))
    assert tuple(found["std"]) == tuple(card.get("std", IMAGENET_STD))
    assert json.dumps(result)
    loaded = load_backbone(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in backbone.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timms_model_of_each_name_has_our_widths(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(TIMM[name], num_classes=0)
    ours = build(name, device="meta")
    with torch.no_grad():
        maps = ours.forward_stages(torch.empty(1, 3, 64, 64, device="meta"))
    assert [stage["num_chs"] for stage in theirs.feature_info[1:]] == [m.shape[1] for m in list(maps.values())[1:]]
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: build("regnety_200mf", stem_stride=1), ("stem_stride=1", "to=safetensors")),
        (lambda: small(), ("timm", "16, 24, 40, 64", "to=torchvision", "to=safetensors")),
        (lambda: build("regnety_4gf_tv", device="meta"), ("timm", "regnety_4gf_tv")),
    ],
)
def test_a_backbone_that_timm_cannot_build_is_refused_with_the_way_out(tmp_path, images, make, words):
    with pytest.raises(ValueError, match=naming(*words)):
        to_timm.export(make(), CARD_FIELDS, tmp_path / "out", images)
    assert os.listdir(tmp_path) == []


def test_a_timm_whose_widths_differ_is_refused_before_anything_is_written(tmp_path, images, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setitem(FAMILIES["regnet"].timm.names, "regnety_800mf_tv", "regnety_008")
    with pytest.raises(ValueError, match=naming("regnety_008", "architecture", "[144, 64, 1, 1]", "[128, ")):
        to_timm.export(build("regnety_800mf_tv"), CARD_FIELDS, tmp_path / "out", images)
    assert os.listdir(tmp_path) == []


def test_without_timm_the_remedy_is_named_and_nothing_is_written(tmp_path, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=naming("to=timm", "pip install timm")):
        to_timm.export(build("regnety_200mf"), CARD_FIELDS, tmp_path / "out", images)
    assert os.listdir(tmp_path) == []


def test_a_timm_export_that_fails_its_parity_leaves_the_older_folder(tmp_path, images, monkeypatch):
    pytest.importorskip("timm")
    (tmp_path / "model.safetensors").write_bytes(b"older")
    monkeypatch.setattr(to_timm, "timm_model", lambda folder: lambda x: torch.ones(len(x), 368))
    with pytest.raises(ValueError, match=naming("features", "differ")):
        to_timm.export(build("regnety_200mf").eval(), CARD_FIELDS, tmp_path, images)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == b"older"


def test_the_model_card_tells_normalization_recipe_data_licence_and_metrics(tmp_path, images):
    card = {
        "mean": [0.5, 0.25, 0.125],
        "std": [1, 2, 4],
        "recipe": json.dumps({"optim.lr": 0.6, "batch": 256}),
        "data_fingerprint": "9f3c",
        "images_seen": 1234567,
        "licence": "CC BY-NC | <b>4.0</b>",
        "metrics": {"knn_top1": 0.4567891},
    }
    to_safetensors.export(small(), card, tmp_path, images)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n") and text.count("\n---\n") == 1
    for words in (
        "mean 0.5, 0.25, 0.125, over std 1, 2, 4",
        "    optim.lr: 0.6\n    batch: 256\n",
        "1,234,567 images seen, fingerprint 9f3c",
        "| licence of imported weights | CC BY-NC \\| &lt;b>4.0&lt;/b> |",
        "| knn_top1 | 0.4568 |",
        "widths 16, 24, 40, 64",
    ):
        assert words in text, (words, text)
    unknown = model_card.model_card(json.loads((small_bundle(tmp_path / "b") / "bundle.json").read_text()))
    for words in (
        "No metric is recorded",
        "No recipe is recorded",
        "fingerprint unknown",
        "nothing imported is recorded",
    ):
        assert words in unknown, (words, unknown)


def small_bundle(folder):
    return write_bundle(folder, small(), card={})


# of the largest feature, on photographs
MOST = {
    "torchvision": 0,
    "timm": 0,
    "safetensors": 0,
    "huggingface": 1e-6,
    "torch_export": 1e-6,
    "onnx": 3e-5,
    "executorch": 3e-5,
}


@pytest.mark.slow  # 400MF: 15 s, and 30 more where onnx and transformers are installed
@pytest.mark.parametrize(
    ("name", "pictures", "preprocessing"),
    [
        ("regnety_400mf", 8, "outside"),
        pytest.param("regnety_200mf", 64, "inside", marks=pytest.mark.long),
        pytest.param("regnety_400mf", 64, "inside", marks=pytest.mark.long),
        pytest.param("regnety_16gf", 4, "outside", marks=pytest.mark.long),  # 2 minutes
    ],
)
def test_every_target_gives_the_features_of_photographs(tmp_path, shared_data, capfd, name, pictures, preprocessing):
    """With batch-norm statistics of photographs and weights that training has moved."""
    pytest.importorskip("timm")
    source = str(shared_data / "photos-500.tar")
    shard = open_shards(source)[0]
    photos = torch.stack([center(decode(image_of(shard.read(0, row))), 96, 96) for row in range(100, 148)])
    batches = normalize(photos.float().div_(255), IMAGENET_MEAN, IMAGENET_STD).split(16)
    torch.manual_seed(0)
    backbone = build(name)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5  # statistics that have left their start behind after 12 steps
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
    for step in range(12):
        loss = nn.functional.cross_entropy(backbone(batches[step % 3])[:, :16], torch.arange(16))  # which image is it
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = write_bundle(tmp_path / "bundle", backbone, card={})
    words = (f"weights={folder}", "to=all", f"output={tmp_path / 'out'}", f"source={source}")
    words = (*words, f"pictures={pictures}", f"preprocessing={preprocessing}")
    ended = seer(capfd, "export", *words)
    assert ended.status == 0, ended.result
    rows = ended.result["targets"]
    assert set(rows) == set(MOST)
    written = {target: row["parity"] for target, row in rows.items() if "not_installed" not in row}
    assert written.keys() >= {"torchvision", "timm", "safetensors", "torch_export"}
    for target, most in MOST.items():
        assert written.get(target, 0) <= most, written
    with torch.no_grad():
        features = load_backbone(folder)(batches[0])
    told_apart = (features.std(0).mean() / features.abs().max()).item()
    assert told_apart > 0.02, "equal features would agree in every library"
    print(name, f"spread {told_apart:.3f}", written)


@pytest.mark.slow
def test_a_failing_target_is_in_the_table_and_in_the_exit_status(tmp_path, capfd):
    folder = write_bundle(tmp_path / "bundle", small(), card={"input_size": 64})
    ended = seer(capfd, "export", f"weights={folder}", "to=all", f"output={tmp_path / 'out'}", "pictures=1")
    assert ended.status == 78 and ended.result["exit"] == 78
    assert says(ended.result["error"], 2, 6, "failed")
    rows = ended.result["targets"]
    assert "timm" in rows["timm"]["error"] and "transformers" in rows["huggingface"]["error"]
    assert rows["torchvision"]["parity"] <= 1e-5
    for target in ("timm", "huggingface"):
        assert re.search(rf"^{target} +FAILED: ", ended.words, re.M), ended.words
    written = {target for target, row in rows.items() if "parity" in row}
    assert set(os.listdir(tmp_path / "out")) == written >= {"safetensors", "torch_export", "torchvision"}


@pytest.mark.slow
def test_a_defect_in_one_target_does_not_keep_the_others_from_being_written(tmp_path, capfd, monkeypatch):
    def broken(*given):
        raise KeyError("gone")

    monkeypatch.setitem(cli_export.TARGETS, "torchvision", broken)
    folder = write_bundle(tmp_path / "bundle", small(), card={"input_size": 64})
    ended = seer(capfd, "export", f"weights={folder}", "to=all", f"output={tmp_path / 'out'}", "pictures=1")
    assert ended.status == 70 and says(ended.result["error"], 3, 6, "failed")
    assert "KeyError" in ended.words and (tmp_path / "out" / "safetensors" / "README.md").is_file()


@pytest.mark.parametrize(
    ("licence", "wanted"), [("", "imported from w.torch in names of VISSL"), ("CC BY-NC", "CC BY-NC")]
)
def test_the_licence_of_imported_weights_reaches_the_model_card(tmp_path, capfd, licence, wanted):
    torch.save({"model_state_dict": foreign.named("vissl")}, tmp_path / "w.torch")
    words = (f"weights={tmp_path / 'w.torch'}", "to=safetensors", f"output={tmp_path / 'out'}", "pictures=1")
    ended = seer(capfd, "export", *words, *([f"licence={licence}"] if licence else []))
    assert ended.status == 0, ended.result
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"| licence of imported weights | {wanted}" in text
    assert ("non-commercial" in text) == (not licence)


@pytest.mark.parametrize("supervised", [True, False])
def test_that_supervised_weights_of_vissl_may_want_bgr_is_told_and_stays_with_the_bundle(tmp_path, capfd, supervised):
    trunk = foreign.named("vissl")
    heads = {"0.clf.0.weight": torch.zeros(2, 2)} if supervised else {"0.prototypes0.weight": torch.zeros(2, 2)}
    torch.save({"classy_state_dict": {"base_model": {"model": {"trunk": {**trunk, **heads}}}}}, tmp_path / "w.torch")
    ended = seer(
        capfd, "export", f"weights={tmp_path / 'w.torch'}", "to=safetensors", f"output={tmp_path / 'out'}", "pictures=1"
    )
    assert ended.status == 0, ended.result
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    described = json.loads((tmp_path / "out" / "bundle.json").read_text())
    for text in (ended.words, card, described["provenance"]["caution"] or ""):
        assert ("BGR" in text) == supervised


def test_parity_is_the_largest_difference_over_the_largest_wanted_value():
    wanted = torch.tensor([[1.0, -4.0], [0.0, 2.0]])
    found = torch.tensor([[1.0, -4.0], [0.1, 2.0]])
    assert parity.relative_difference(found, wanted) == pytest.approx(0.025)
    with pytest.raises(ValueError, match=naming([1, 2], [2, 2])):
        parity.relative_difference(found[:1], wanted)


def test_a_parity_check_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=naming("[0, 3, 64, 64]")):
        to_safetensors.export(small(), CARD_FIELDS, tmp_path / "b", torch.zeros(0, 3, 64, 64))
    assert os.listdir(tmp_path) == []
