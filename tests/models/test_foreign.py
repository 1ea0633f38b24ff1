"""Weights of other libraries and of every container of VISSL load bit for bit; hostile and broken ones do nothing."""

import os
import random
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seer.models.families.regnet import to_names
from seer.models.key_maps import LIBRARIES, unwrapped
from seer.models.pretrained import load_backbone, load_with_origin
from seer.models.zoo import build
from tests.messages import naming, says
from tests.models import foreign_files as foreign

FRONTS = {
    "DDP": "module.",
    "feature extractor": "base_model.",
    "DDP around a feature extractor": "module.base_model.",
    "compiled": "_orig_mod.",
    "FSDP": "_fsdp_wrapped_module._fpw_module.",
}


def loads_bit_for_bit(path) -> None:
    loaded, wanted = load_backbone(path), foreign.weights()
    found = loaded.state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert (loaded.widths, loaded.depths, loaded.group_widths) == ((16, 24, 40), (1, 2, 1), (8, 8, 8))
    assert (loaded.se_ratio, loaded.stem_width, loaded.stem_stride) == (0.25, 32, 2) and not loaded.training


@pytest.mark.parametrize("parts", [False, True], ids=["plain", "10B parts"])
@pytest.mark.parametrize("container", foreign.CONTAINERS)
def test_every_container_of_vissl_loads_bit_for_bit(tmp_path, container, parts):
    trunk = foreign.named("vissl")
    path = tmp_path / "regnet_y_128gf_model_phase8.torch"  # the name lies on purpose
    loads_bit_for_bit(foreign.CONTAINERS[container](path, foreign.in_parts(trunk) if parts else trunk))


@pytest.mark.parametrize("container", ["sliced", "three shards"])
def test_a_cut_checkpoint_loads_from_where_it_was_moved_to(tmp_path, container):
    (tmp_path / "first").mkdir()
    path = foreign.CONTAINERS[container](tmp_path / "first" / "model.torch", foreign.named("vissl"))
    (tmp_path / "first").rename(tmp_path / "second")
    (tmp_path / "second" / path.name).rename(tmp_path / "second" / "renamed.torch")
    loads_bit_for_bit(tmp_path / "second" / "renamed.torch")


@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
@pytest.mark.parametrize("library", foreign.LIBRARIES)
def test_a_state_dict_of_every_library_loads_bit_for_bit_in_any_order(tmp_path, library, kind):
    state = foreign.named(library)
    state = dict(random.Random(1).sample(sorted(state.items()), len(state)))
    path = tmp_path / f"model{kind}"
    torch.save(state, path) if kind == ".pth" else save_file(state, path)
    loads_bit_for_bit(path)
    if kind == ".safetensors":
        loads_bit_for_bit(tmp_path)  # a folder, as timm and Hugging Face write it


@pytest.mark.parametrize("front", ["", "module."])
@pytest.mark.parametrize("library", foreign.LIBRARIES)
def test_a_file_without_any_counter_of_batch_norm_gives_the_same_features_and_is_told(tmp_path, caplog, library, front):
    whole = {f"{front}{key}": tensor for key, tensor in foreign.named(library).items()}
    counters = [key for key in whole if key.endswith("num_batches_tracked")]
    torch.save({key: tensor for key, tensor in whole.items() if key not in counters}, tmp_path / "bare.pth")
    torch.save(whole, tmp_path / "whole.pth")
    with caplog.at_level("INFO"):
        bare, origin = load_with_origin(tmp_path / "bare.pth")
    (told,) = (r.getMessage() for r in caplog.records if "num_batches_tracked" in r.getMessage())
    assert says(told, "bare.pth", len(counters)) and origin.left_out == 0
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(bare(images), load_backbone(tmp_path / "whole.pth")(images))
    assert all(int(bare.state_dict()[key]) == 0 for key in bare.state_dict() if key.endswith("num_batches_tracked"))
    torch.save({key: tensor for key, tensor in whole.items() if key != counters[3]}, tmp_path / "some.pth")
    with pytest.raises(ValueError, match=naming("missing", counters[3])):  # some of them are no file of another time
        load_backbone(tmp_path / "some.pth")
    torch.save({k: t for k, t in whole.items() if k not in counters and "running_mean" not in k}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"missing .*running_mean"):
        load_backbone(tmp_path / "none.pth")


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("library", foreign.LIBRARIES)
def test_prefixes_of_wrappers_are_no_part_of_a_name(tmp_path, library, front):
    torch.save({FRONTS[front] + key: value for key, value in foreign.named(library).items()}, tmp_path / "w.torch")
    loads_bit_for_bit(tmp_path / "w.torch")


@pytest.mark.parametrize("outer", ["model_state_dict", "state_dict", "model"])
def test_a_state_dict_one_level_down_is_found(tmp_path, outer):
    torch.save({outer: foreign.named("vissl"), "epoch": 3}, tmp_path / "w.torch")
    loads_bit_for_bit(tmp_path / "w.torch")


@pytest.mark.parametrize(
    ("library", "head"),
    [
        ("vissl", foreign.HEADS),
        ("vissl", {f"heads.{name}": shape for name, shape in foreign.HEADS.items()}),
        ("vissl", {"0.clf.0.weight": (1000, 40), "0.clf.0.bias": (1000,), "0.channel_bn.running_mean": (40,)}),
        ("torchvision", {"fc.weight": (1000, 40), "fc.bias": (1000,)}),
        ("timm", {"head.fc.weight": (1000, 40), "head.fc.bias": (1000,)}),
        ("hugging_face", {"classifier.1.weight": (1000, 40), "classifier.1.bias": (1000,)}),
    ],
)
def test_heads_in_a_flat_file_are_left_out_and_counted(tmp_path, library, head):
    state = foreign.named(library)
    if library == "hugging_face":
        state = {f"regnet.{key}": value for key, value in state.items()}
    torch.save(state | {name: torch.rand(shape) for name, shape in head.items()}, tmp_path / "w.pth")
    loads_bit_for_bit(tmp_path / "w.pth")
    origin = load_with_origin(tmp_path / "w.pth")[1]
    assert origin.left_out == len(head)
    assert bool(origin.caution and "BGR" in origin.caution) == ("0.clf.0.weight" in head)


def test_attribute_dicts_of_vissl_load_as_plain_dicts(tmp_path, monkeypatch):
    path = foreign.write_consolidated(tmp_path / "w.torch", foreign.named("vissl"))
    content = torch.load(path, weights_only=True)
    for package in ("vissl", "vissl.config", "vissl.utils"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    for module in ("vissl.config.attr_dict", "vissl.utils.hydra_config"):
        attr_dict = type("AttrDict", (dict,), {"__module__": module})
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        sys.modules[module].AttrDict = attr_dict
        content["classy_state_dict"]["meters"] = [attr_dict(name="accuracy_list_meter", params=attr_dict(top=[1, 5]))]
        torch.save(content, path)
        assert b"AttrDict" in path.read_bytes()
        loads_bit_for_bit(path)


# --- refused -------------------------------------------------------------------------------------------------------


class Payload:
    """Unpickled by an unrestricted reader, this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def poison(path: Path, *place: object, payload: Payload, legacy: bool = False) -> Path:
    """Puts the payload into a file of torch.save, at the place that these keys lead to."""
    content = torch.load(path, weights_only=True)
    node = content
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = payload
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


MODEL = ("classy_state_dict", "base_model", "model")
META = ("classy_state_dict", "base_model", "meta", "trunk")
HOSTILE = {
    "consolidated": [
        ("w.torch", ("loss",)),
        ("w.torch", ("classy_state_dict", "meters")),
        ("w.torch", (*MODEL, "heads")),
    ],
    "sliced": [("w.torch", (*MODEL, "heads")), ("w_layers", ("weight",))],
    "sliced under layers": [("w.torch", ("type",)), ("w_layers", ("type",))],
    "one shard": [("w.torch", ("shards",)), ("w_shard0.torch", (*META, "buffer_names"))],
    "three shards": [("w_shard2.torch", ("type",)), ("w_shard1.torch", (*META, "param_metadata"))],
    "three older shards": [("w_shard1.torch", (*MODEL, "heads"))],
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("container", "number"), [(c, n) for c, places in HOSTILE.items() for n in range(len(places))])
def test_a_hostile_pickle_anywhere_in_a_container_runs_nothing(tmp_path, container, number, legacy):
    path = foreign.CONTAINERS[container](tmp_path / "w.torch", foreign.named("vissl"))
    name, place = HOSTILE[container][number]
    file = tmp_path / name if (tmp_path / name).is_file() else sorted((tmp_path / name).iterdir())[3]
    trap = tmp_path / "trap"
    poison(file, *place, payload=Payload(trap), legacy=legacy)
    with pytest.raises(ValueError, match=r"objects.*\(\w+\.mkdir\)"):
        load_backbone(path)
    assert not trap.exists()
    torch.load(file, weights_only=False)
    assert trap.exists(), "the trap itself must work, or this test shows nothing"


@pytest.mark.parametrize("recorded", ["/etc/passwd", "../secret.torch", "a/../../secret.torch", "..", "", 7])
@pytest.mark.parametrize("container", ["sliced", "one shard"])
def test_a_list_cannot_point_outside_its_own_folder(tmp_path, container, recorded):
    folder = tmp_path / "in"
    folder.mkdir()
    path = foreign.CONTAINERS[container](folder / "w.torch", foreign.named("vissl"))
    torch.save({"type": "slice", "weight": torch.full((32, 3, 3, 3), 7.0)}, tmp_path / "secret.torch")
    content = torch.load(path, weights_only=True)
    if container == "sliced":
        content["classy_state_dict"]["base_model"]["model"]["trunk"]["_feature_blocks.conv1.stem.0.weight"] = recorded
    else:
        content["shards"][0] = recorded
    torch.save(content, path)
    with pytest.raises(ValueError, match=naming(path, repr(recorded), folder)):
        load_backbone(path)


@pytest.mark.parametrize("container", ["sliced", "three shards"])
def test_a_part_alone_and_a_list_without_a_part_name_what_to_give(tmp_path, container):
    path = foreign.CONTAINERS[container](tmp_path / "w.torch", foreign.named("vissl"))
    part = sorted((tmp_path / "w_layers").iterdir())[0] if container == "sliced" else tmp_path / "w_shard1.torch"
    with pytest.raises(ValueError, match=naming(part, "list")):
        load_backbone(part)
    part.unlink()
    with pytest.raises(ValueError, match=naming(part.name, f"in {part.parent}")):
        load_backbone(path)


def change(path: Path, *place: object, value: object) -> None:
    content = torch.load(path, weights_only=True)
    node = content
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    torch.save(content, path)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("key", ["numels", "shapes", "names", "padding"])
def test_shards_that_do_not_fit_their_metadata_are_refused(tmp_path, older, key):
    path = foreign.write_shards(tmp_path / "w.torch", foreign.named("vissl"), ranks=2, older=older)
    inside = {"numels": "param_numels", "shapes": "param_shapes", "names": "param_names", "padding": "num_padded"}
    place = (*META, "param_metadata", 0, *((inside[key],) if older else ("params", "flat_param_0", key)))
    wrong = {"numels": [1, 2], "shapes": [[-1]], "names": ["a", "b"], "padding": [3] if older else 3}[key]
    change(tmp_path / "w_shard0.torch", *place, value=wrong)
    with pytest.raises(ValueError, match=naming(2, "shards", "metadata")) as caught:
        load_backbone(path)
    if key == "padding":
        assert says(str(caught.value), "flat_param_0", "numbers", "metadata")


def test_shards_without_metadata_are_refused(tmp_path):
    path = foreign.write_shards(tmp_path / "w.torch", foreign.named("vissl"), ranks=2, older=False)
    change(tmp_path / "w_shard1.torch", "classy_state_dict", "base_model", "meta", value={})
    with pytest.raises(ValueError, match=naming("w_shard1.torch", "base_model > meta > trunk")):
        load_backbone(path)


@pytest.mark.parametrize("library", foreign.LIBRARIES)
def test_the_first_five_bad_keys_are_named_as_the_file_spells_them(tmp_path, library):
    state = {f"module.{key}": value for key, value in foreign.named(library).items()}
    keys = list(state)
    missing, wrong, extra = [keys[10], keys[70]], keys[20], [f"module.extra.{n}" for n in range(4)]
    for key in missing:
        del state[key]
    state[wrong] = torch.zeros(3, 2)
    torch.save(state | dict.fromkeys(extra, torch.zeros(1)), tmp_path / "w.pth")
    with pytest.raises(ValueError) as caught:
        load_backbone(tmp_path / "w.pth")
    message = str(caught.value)
    for key in (*missing, wrong, *extra[:2]):
        assert key in message, (key, message)
    assert "is [3, 2], wanted [" in message and "and 2 more" in message and extra[2] not in message


def test_a_tensor_under_two_names_is_refused(tmp_path):
    state = foreign.named("vissl")
    key = next(iter(state))
    torch.save(state | {f"module.{key}": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=naming(repr(key), repr(f"module.{key}"))):
        load_backbone(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "key",
    [
        "res3.block1-0.f.a.0.weight",  # the two numbers of a stage disagree
        "res2.block1-00.f.a.0.weight",
        "res1.block0-0.f.a.0.weight",
        "res2.block1-0.f.d.weight",
        "res2.block1-0.f.a.0.gain",
        "s1.b0.conv1.conv.weight",
        "trunk_output.block1.block2-0.f.a.0.weight",
        "encoder.stages.0.layers.-1.layer.0.convolution.weight",
    ],
)
def test_a_key_that_is_nearly_a_name_is_none(key):
    assert all(names.to_ours(key) is None for names in LIBRARIES)


# --- the libraries themselves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["regnety_400mf", "regnety_16gf", "regnety_10b"])
@pytest.mark.parametrize("names", LIBRARIES, ids=lambda names: names.library)
def test_names_translate_there_and_back_for_the_zoo(names, name):
    ours = list(build(name, device="meta").state_dict())
    theirs = [names.from_ours(key) for key in ours]
    assert [names.to_ours(key) for key in theirs] == ours and len(set(theirs)) == len(ours)
    assert [unwrapped(key) for key in theirs] == theirs


def shapes(state) -> dict:
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize(("ours", "theirs"), [("regnety_400mf", "regnety_004"), ("regnety_256gf", "regnety_2560")])
def test_timms_own_model_has_the_names_and_shapes_that_we_give_it(ours, theirs):
    timm = pytest.importorskip("timm")
    names = next(n for n in LIBRARIES if n.library == "timm")
    with torch.device("meta"):
        model = timm.create_model(theirs, num_classes=0)
    assert shapes(to_names(names, build(ours, device="meta").state_dict())) == shapes(model.state_dict())


def test_hugging_faces_own_model_has_the_names_and_features_that_we_give_it():
    transformers = pytest.importorskip("transformers")
    names = next(n for n in LIBRARIES if n.library == "Hugging Face")
    ours = build("regnety_400mf").eval()
    config = transformers.RegNetConfig(
        embedding_size=32, hidden_sizes=[48, 104, 208, 440], depths=[1, 3, 6, 6], groups_width=8, layer_type="y"
    )
    theirs = transformers.RegNetModel(config).eval()
    theirs.load_state_dict(to_names(names, ours.state_dict()), strict=True)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        wanted = ours(images)
        assert (theirs(images).pooler_output.flatten(1) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
