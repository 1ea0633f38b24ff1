"""Model folders of Hugging Face and timm are read in each layout; an index leads nowhere but to files beside it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seer.core.errors import RequestError
from seer.models.pretrained import load_backbone, load_with_origin
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
