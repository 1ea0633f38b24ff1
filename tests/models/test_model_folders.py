"""Model folders of Hugging Face and timm are read in each layout; an index leads nowhere but to files beside it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seer.core.errors import RequestError
from seer.export import to_timm
from seer.models.bundle import IMAGENET_MEAN, IMAGENET_STD
from seer.models.pretrained import load_backbone, load_with_origin
from seer.models.zoo import build
from seer.run import weights as run_weights
from tests.messages import naming, says
from tests.models import foreign_files as foreign
from tests.models.test_trainers import gives, other

SAFE, BIN = "model.safetensors", "pytorch_model.bin"


def whole(folder: Path, name: str, state: dict) -> None:
    save_file(state, folder / name) if name == SAFE else torch.save(state, folder / name)


def parts(folder: Path, name: str, state: dict, count: int = 3) -> Path:
    """Writes parts and their index as transformers does; returns the index."""
    stem, ending = name.rsplit(".", 1)
    keys, where = list(state), {}
    for number in range(count):
        file = f"{stem}-{number + 1:05d}-of-{count:05d}.{ending}"
        held = {key: state[key] for key in keys[number::count]}
        save_file(held, folder / file) if name == SAFE else torch.save(held, folder / file)
        where |= dict.fromkeys(held, file)
    index = folder / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def published() -> dict:
    """As facebook/regnet-y-*-seer: Hugging Face's names behind `regnet.`, with a classifier in some."""
    state = {f"regnet.{key}": value for key, value in foreign.named("hugging_face").items()}
    return state | {"classifier.1.weight": torch.ones(3, 40), "classifier.1.bias": torch.ones(3)}


@pytest.mark.parametrize("name", [SAFE, BIN])
@pytest.mark.parametrize("cut", [False, True])
def test_each_layout_loads_bit_for_bit_from_the_folder(tmp_path, name, cut):
    (parts if cut else whole)(tmp_path, name, published())
    (tmp_path / "config.json").write_text("{}")
    backbone, origin = load_with_origin(tmp_path)
    assert gives(backbone, foreign.weights())
    assert origin.library == "Hugging Face" and origin.left_out == 2


def test_an_index_can_be_given_itself(tmp_path):
    assert gives(load_backbone(parts(tmp_path, BIN, published())), foreign.weights())


def test_of_several_layouts_one_is_read_and_told(tmp_path, caplog):
    caplog.set_level("INFO", logger="seer")
    whole(tmp_path, BIN, other(published()))
    whole(tmp_path, SAFE, published())
    parts(tmp_path, BIN, other(published()))
    assert gives(load_backbone(tmp_path), foreign.weights())
    assert says(caplog.text, SAFE, BIN, f"{BIN}.index.json")


def test_parts_in_a_cache_of_links_are_followed(tmp_path):
    """As the hub's own cache lays them out: snapshots hold links to blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    parts(blobs, SAFE, published())
    for number, file in enumerate(sorted(blobs.iterdir())):
        (snapshot / file.name).symlink_to(file.rename(blobs / f"{number:064x}"))
    assert gives(load_backbone(snapshot), foreign.weights())


def change(index: Path, change) -> None:
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../outside.safetensors", "a/b.safetensors", "..", "", 7, None, "a\\b"]
)
def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    index = parts(folder, SAFE, published())
    save_file(published(), tmp_path / "outside.safetensors")
    key = next(iter(published()))
    change(index, lambda where: where.update({key: name}))
    with pytest.raises(RequestError, match=naming(index, repr(key), repr(name))):
        load_backbone(folder)


def test_a_part_that_is_absent_and_a_tensor_that_is_not_in_its_part_are_named(tmp_path):
    index = parts(tmp_path, SAFE, published())
    key = next(iter(published()))
    second = "model-00002-of-00003.safetensors"
    change(index, lambda where: where.update({key: second}))
    with pytest.raises(RequestError, match=naming(second, repr(key))):
        load_backbone(tmp_path)
    (tmp_path / second).unlink()
    with pytest.raises(RequestError, match=naming(repr(second), tmp_path)):
        load_backbone(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "<html>"])
def test_an_index_that_is_none_is_refused(tmp_path, content):
    (tmp_path / f"{SAFE}.index.json").write_text(content)
    with pytest.raises(RequestError, match=naming(f"{SAFE}.index.json")):
        load_backbone(tmp_path)


def test_a_folder_without_weights_names_the_layouts_and_what_is_not_read(tmp_path):
    (tmp_path / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(FileNotFoundError, match=naming(SAFE, BIN, "tf_model.h5")):
        load_backbone(tmp_path)


def test_a_name_of_the_hub_is_answered_with_how_to_fetch_it():
    with pytest.raises(FileNotFoundError, match="hf download facebook/regnet-y-320-seer"):
        load_backbone("facebook/regnet-y-320-seer")
    with pytest.raises(FileNotFoundError) as caught:
        load_backbone("runs/model.pth")
    assert "hf download" not in str(caught.value)


def test_what_a_folder_says_of_its_pixels_is_heeded(tmp_path):
    """timm's folder, as the export writes it and timm reads it; and one of Hugging Face."""
    timm = pytest.importorskip("timm")
    model = build("regnety_200mf").eval()
    card = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.1], "input_size": 96}
    to_timm.export(model, card, tmp_path / "timm", torch.rand(1, 3, 64, 64))
    theirs = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True))
    found = run_weights.state(str(tmp_path / "timm")).card
    assert {key: found[key] for key in card} == card
    assert (list(theirs["mean"]), list(theirs["std"]), theirs["input_size"][-1]) == tuple(card.values())

    (tmp_path / "hf").mkdir()
    whole(tmp_path / "hf", BIN, published())
    said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 384}}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(said))
    (tmp_path / "hf" / "config.json").write_text(json.dumps({"model_type": "regnet", "depths": [1]}))
    for place in (tmp_path / "hf", tmp_path / "hf" / BIN):
        found = run_weights.state(str(place)).card
        assert (found["mean"], found["std"], found["input_size"]) == ([0.5] * 3, [0.5] * 3, 384)


@pytest.mark.parametrize(
    "said", ['{"image_mean": "x", "image_std": [0, 1, 1], "size": -3}', "nonsense", "[1]", '{"size": {}}']
)
def test_what_makes_no_sense_of_the_pixels_is_told_and_passed_over(tmp_path, caplog, said):
    whole(tmp_path, BIN, published())
    (tmp_path / "preprocessor_config.json").write_text(said)
    found = run_weights.state(str(tmp_path)).card
    assert (found["mean"], found["std"], found["input_size"]) == (list(IMAGENET_MEAN), list(IMAGENET_STD), 224)
    assert ("preprocessor_config.json" in caplog.text) == (said != "[1]")


def test_the_result_of_a_verb_says_which_part_was_taken(tmp_path):
    both = {"student": {f"backbone.{k}": v for k, v in foreign.named("timm").items()}}
    both["teacher"] = other(both["student"])
    torch.save(both, tmp_path / "w.pth")
    told = run_weights.state(str(tmp_path / "w.pth")).origin
    assert told == {
        "weights_step": None,
        "weights_from": "file",
        "weights_part": "student > backbone.*",
        "weights_others": ["teacher > backbone.*"],
    }
