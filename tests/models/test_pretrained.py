"""Bundles and foreign files through `load_backbone`: what loads, what is refused, and what refusal leaves behind."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seer.models import bundle
from seer.models.bundle import card_of, read_bundle, write_bundle
from seer.models.families.regnet import from_names, to_names
from seer.models.key_maps import TORCHVISION
from seer.models.pretrained import load_backbone
from seer.models.regnet import RegNet
from seer.models.zoo import build
from tests.messages import naming

CARD_FIELDS = {
    "recipe": "swav",
    "data_fingerprint": "9f3c",
    "commit": "0a1b2c",
    "images_seen": 1_000_000,
    "licence": None,
    "metrics": {"knn_top1": 0.41},
    "input_size": 160,
}


def small(**changes) -> RegNet:
    torch.manual_seed(0)
    arguments = {"widths": (16, 24, 40, 64), "depths": (1, 2, 2, 1), "group_widths": (8, 8, 8, 16)}
    model = RegNet(**(arguments | changes))
    for name, tensor in model.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
        elif "tracked" in name:
            tensor.fill_(7)
    return model


def same(a: RegNet, b: RegNet) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


# --- names ---------------------------------------------------------------------------------------------------------


def test_names_translate_to_torchvision_and_back_for_every_zoo_model():
    for name in ("regnety_200mf", "regnety_16gf", "regnety_10b"):
        ours = build(name, device="meta").state_dict()
        theirs = to_names(TORCHVISION, ours)
        assert len(theirs) == len(ours)
        back = from_names(TORCHVISION, theirs)
        assert list(back) == list(ours) and all(back[key] is ours[key] for key in ours)


def test_translated_names_are_those_of_torchvisions_own_model():
    models = pytest.importorskip("torchvision.models")
    theirs = models.regnet_y_400mf(weights=None).state_dict()
    ours = build("regnety_400mf", device="meta").state_dict()
    translated = to_names(TORCHVISION, ours)
    assert set(theirs) - set(translated) == {"fc.weight", "fc.bias"}
    assert all(translated[key].shape == theirs[key].shape for key in translated)
    assert set(from_names(TORCHVISION, theirs)) == set(ours)


def test_translation_refuses_foreign_names_and_names_the_first_five():
    state = {f"layer{i}.conv.weight": torch.zeros(1) for i in range(7)}
    for translate in (to_names, from_names):
        with pytest.raises(ValueError) as caught:
            translate(TORCHVISION, state)
        assert all(f"'layer{i}.conv.weight'" in str(caught.value) for i in range(5))
        assert "layer5" not in str(caught.value) and "and 2 more" in str(caught.value)


# --- bundles -------------------------------------------------------------------------------------------------------


def test_a_bundle_gives_back_weights_architecture_and_card(tmp_path):
    model = small(stem_stride=1, se_ratio=0.5)
    folder = write_bundle(tmp_path / "b", model, card=CARD_FIELDS)
    loaded, described = read_bundle(folder)
    assert same(loaded, model) and loaded.architecture == model.architecture and not loaded.training
    assert described == json.loads((folder / "bundle.json").read_text())
    assert described["feature_dim"] == 64 and described["input_size"] == 160
    assert described["normalisation"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert described["architecture"]["name"] is None and described["architecture"]["stem_stride"] == 1
    assert {key: card_of(described)[key] for key in CARD_FIELDS} == CARD_FIELDS
    assert sorted(os.listdir(folder)) == ["backbone.safetensors", "bundle.json"]


def test_a_bundle_of_a_zoo_model_carries_its_name(tmp_path):
    _, described = read_bundle(write_bundle(tmp_path, build("regnety_200mf"), card={}))
    assert described["architecture"]["name"] == "regnety_200mf"


def test_bundle_weights_are_contiguous_float32_whatever_the_model_holds(tmp_path):
    model = small().to(torch.float64).to(memory_format=torch.channels_last)
    folder = write_bundle(tmp_path, model, card={})
    stored = load_file(folder / "backbone.safetensors")
    assert {tensor.dtype for key, tensor in stored.items() if "tracked" not in key} == {torch.float32}
    assert all(tensor.is_contiguous() for tensor in stored.values())
    assert same(load_backbone(folder), model.float())


@pytest.mark.parametrize("where", ["bundle", "run", "file"])
def test_a_run_a_bundle_and_its_weights_file_load_the_same_backbone(tmp_path, where):
    model = small(stem_stride=1)
    folder = write_bundle(tmp_path / "run" / "bundle", model, card=CARD_FIELDS)
    place = {"bundle": folder, "run": tmp_path / "run", "file": str(folder / "backbone.safetensors")}[where]
    loaded = load_backbone(place)
    assert same(loaded, model)
    assert loaded.stem_stride == 1


def test_a_bundle_written_again_is_replaced_whole(tmp_path):
    write_bundle(tmp_path, small(), card={"images_seen": 1})
    second = small(widths=(8, 16, 24, 32), group_widths=(8, 8, 8, 8))
    write_bundle(tmp_path, second, card={"images_seen": 2})
    loaded, described = read_bundle(tmp_path)
    assert same(loaded, second) and described["provenance"]["images_seen"] == 2


def test_a_writing_cut_between_its_two_renames_still_reads_as_the_new_bundle(tmp_path, monkeypatch):
    write_bundle(tmp_path, small(), card={"images_seen": 1})
    second = small(widths=(8, 16, 24, 32), group_widths=(8, 8, 8, 8), stem_stride=1)
    real = os.replace

    def cut(source, target):
        if Path(target).name == "bundle.json":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(bundle.os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path, second, card={"images_seen": 2})
    monkeypatch.undo()
    loaded, described = read_bundle(tmp_path)
    assert same(loaded, second) and loaded.stem_stride == 1 and described["provenance"]["images_seen"] == 2
    assert sorted(os.listdir(tmp_path)) == ["backbone.safetensors", "bundle.json"]


def test_a_writing_that_fails_leaves_the_old_bundle_untouched(tmp_path, monkeypatch):
    first = small()
    write_bundle(tmp_path, first, card={"images_seen": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        write_bundle(tmp_path, small(widths=(8, 16, 24, 32), group_widths=(8,) * 4), card={})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_gathered_weights_bundle_a_backbone_that_holds_none(tmp_path):
    model = small()
    empty = small(device="meta")
    with pytest.raises(ValueError, match=naming("meta", "state dict")):
        write_bundle(tmp_path / "b", empty, card={})
    assert not (tmp_path / "b").exists()
    assert same(load_backbone(write_bundle(tmp_path / "b", empty, card={}, state_dict=model.state_dict())), model)


def test_a_changed_module_is_refused_before_anything_is_written(tmp_path):
    model = small()
    model.stage1.block0.se = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"missing stage1\.block0\.se\.reduce\.weight"):
        write_bundle(tmp_path / "b", model, card={})
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"license": "MIT"}, ("'license'", "'licence'")),
        ({"mean": [0.5]}, ("mean", "[0.5]", 3)),
        ({"metrics": {"knn_top1": float("nan")}}, ("metrics", "nan")),
    ],
)
def test_a_malformed_card_is_refused_before_anything_is_written(tmp_path, card, words):
    with pytest.raises(ValueError, match=naming(*words)):
        write_bundle(tmp_path / "b", small(), card=card)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(version=3), ("version", 3)),
        (lambda d: d.update(format="other"), ("format",)),
        (lambda d: d["architecture"].pop("stem_stride"), ("architecture.stem_stride",)),
        (lambda d: d["architecture"].update(depths=[1, 2, 2, 2]), ("missing", "stage4.block1.a.conv.weight")),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path, change, words):
    write_bundle(tmp_path, small(), card={})
    described = json.loads((tmp_path / "bundle.json").read_text())
    change(described)
    (tmp_path / "bundle.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=naming(*words)):
        load_backbone(tmp_path)


def test_a_folder_and_a_path_without_a_backbone_say_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match=naming(tmp_path, "backbone.safetensors", "bundle.json")):
        load_backbone(tmp_path)
    with pytest.raises(FileNotFoundError, match=naming("none.pth")):
        load_backbone(tmp_path / "none.pth")


# --- foreign files -------------------------------------------------------------------------------------------------


def test_torchvisions_state_dict_loads_from_a_pth_and_gives_its_features(tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = models.regnet_y_400mf(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "regnet_y_128gf.pth")  # the name lies on purpose
    ours = load_backbone(tmp_path / "regnet_y_128gf.pth")
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        wanted = theirs(images)
        assert (ours(images) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert ours.widths == (48, 104, 208, 440) and ours.depths == (1, 3, 6, 6)


@pytest.mark.parametrize("spelling", ["ours", "torchvision"])
@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stem_width": 24, "se_ratio": 0.1},
        {"widths": (16, 40), "depths": (3, 1), "group_widths": (4, 40)},
    ],
)
def test_every_dimension_is_read_off_the_tensors(tmp_path, spelling, kind, changes):
    model = small(**changes)
    state = model.state_dict() if spelling == "ours" else to_names(TORCHVISION, model.state_dict())
    state = dict(random.Random(1).sample(sorted(state.items()), len(state)))
    path = tmp_path / f"weights{kind}"
    torch.save(state, path) if kind == ".pth" else save_file(state, path)
    loaded = load_backbone(path)
    assert same(loaded, model)
    assert loaded.stem_stride == 2


def test_half_precision_files_load_as_float32(tmp_path):
    torch.save(small().half().state_dict(), tmp_path / "w.pth")
    assert {p.dtype for p in load_backbone(tmp_path / "w.pth").parameters()} == {torch.float32}


@pytest.mark.parametrize("spelling", ["ours", "torchvision"])
def test_the_first_five_bad_keys_are_named_in_one_error_as_the_file_spells_them(tmp_path, spelling):
    ours = small().state_dict()
    renamed = to_names(TORCHVISION, ours) if spelling == "torchvision" else dict(ours)
    spell = dict(zip(ours, renamed, strict=True))
    missing = [spell["stage2.block1.c.conv.weight"], spell["stem.bn.bias"]]
    for key in missing:
        del renamed[key]
    wrong = spell["stage1.block0.a.conv.weight"]
    renamed[wrong] = torch.zeros(16, 31, 1, 1)
    text = spell["stage3.block0.b.bn.weight"]
    renamed[text] = "not a tensor"
    for extra in ("extra.one", "extra.two", "extra.three"):
        renamed[extra] = torch.zeros(1)
    torch.save(renamed, tmp_path / "w.pth")
    with pytest.raises(ValueError) as caught:
        load_backbone(tmp_path / "w.pth")
    message = str(caught.value)
    for key in (*missing, wrong, text, "extra.one"):
        assert key in message, key
    assert "[16, 31, 1, 1], wanted [16, 32, 1, 1]" in message
    assert "extra.two" not in message and "and 2 more" in message


class Payload:
    """Unpickled by an unrestricted reader, this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_runs_nothing(tmp_path, legacy):
    trap = tmp_path / "trap"
    state = small().state_dict() | {"stem.conv.weight": Payload(trap)}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=naming("w.pth", "objects")):
        load_backbone(tmp_path / "w.pth")
    assert not trap.exists()
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert trap.exists(), "the trap itself must work, or this test shows nothing"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"classy_state_dict": {"base_model": {}}}, ("base_model > model > trunk",)),
        ({"encoder": {"a": torch.zeros(1)}, "optimizer": {}}, ("'encoder'", "'optimizer'")),
        ({"conv1.weight": torch.zeros(1)}, ("RegNetY", "ResNet", "conv1.weight")),
        ({}, ("keys", "none")),
        ({"stem.0.weight": torch.zeros(1), "trunk_output.block1.block1-0.f.a.0.weight": torch.zeros(1)}, ("RegNetX",)),
        ({"stage1.block0.se.reduce.weight": torch.zeros(8)}, ("architecture",)),
        ({"stage1.block0.se.reduce.weight": torch.zeros(8), 3: 4}, ("key", 3)),
        ([torch.zeros(1)], ("list", "state dict")),
    ],
)
def test_other_formats_are_refused_in_a_clear_sentence(tmp_path, state, words):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=naming("w.pth", *words)):
        load_backbone(tmp_path / "w.pth")


def test_a_stage_numbered_in_the_hundred_thousands_is_refused_at_once(tmp_path):
    state = small().state_dict()
    torch.save(state | {"stage4.block999999.a.bn.weight": torch.zeros(64)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=naming("w.pth", "blocks", "whole")):
        load_backbone(tmp_path / "w.pth")


def test_a_tensor_that_claims_more_than_it_stores_is_refused(tmp_path):
    state = small().state_dict() | {"stage4.block0.a.bn.weight": torch.zeros(1).expand(10**12)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=naming("w.pth", "stage4.block0.a.bn.weight", 10**12, "4 bytes")):
        load_backbone(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_cut_file_is_refused_by_name(tmp_path, name):
    path = tmp_path / name
    state = small().state_dict()
    torch.save(state, path) if name.endswith("pth") else save_file(state, path)
    for size in (0, 100, path.stat().st_size // 2):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match=name):
            load_backbone(path)


def test_a_loaded_backbone_does_not_look_into_its_file_any_more(tmp_path):
    model = small()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_backbone(tmp_path / "w.safetensors")
    with open(tmp_path / "w.safetensors", "r+b") as file:
        file.write(b"\0" * (tmp_path / "w.safetensors").stat().st_size)
    assert same(loaded, model)
