"""Folders for Hugging Face are read by transformers itself: the network, and what is done to images before it."""

import json
import os
import socket
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

from seer.core.errors import RequestError
from seer.data import synthetic as sample
from seer.data.augment import normalize
from seer.data.transforms.one_view import center
from seer.export import checked_folder, to_huggingface
from seer.models.bundle import write_bundle
from seer.models.pretrained import load_backbone
from seer.models.zoo import build
from seer.run.weights import state
from tests.export.test_export import drawn, small, trained
from tests.messages import naming
from tests.program import seer


@pytest.fixture
def images() -> torch.Tensor:
    return drawn(100, 2)


@pytest.mark.parametrize("name", ["AutoModel", "RegNetModel"])
def test_the_folder_loads_in_transformers_and_gives_the_same_features(tmp_path, images, name):
    transformers = pytest.importorskip("transformers")
    backbone = trained(build("regnety_200mf"))
    result = to_huggingface.export(backbone, {"input_size": 64}, tmp_path / "out", images)
    assert result["parity"] <= result["tolerance"] == 1e-6
    assert sorted(os.listdir(tmp_path / "out")) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "out").eval()
    assert type(theirs) is transformers.RegNetModel
    with torch.no_grad():
        found, wanted = theirs(images).pooler_output.flatten(1), backbone.eval()(images)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    loaded = load_backbone(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in backbone.state_dict().items())
    with safe_open(result["file"], framework="pt") as opened:
        assert opened.metadata()["format"] == "pt"
    assert json.dumps(result)


@pytest.mark.parametrize(("side", "shorter"), [(224, 256), (392, 448), (32, 32)])
def test_its_image_processor_cuts_and_normalizes_as_we_do(tmp_path, images, side, shorter):
    transformers = pytest.importorskip("transformers")
    card = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "input_size": side}
    to_huggingface.export(small(group_widths=(8, 8, 8, 8)), card, tmp_path / "out", images)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    # sides that leave nothing to round: transformers cuts off where we round, which moves the square by a pixel
    image = np.tile(sample.draw(3, 7), (1, 2, 1))[:100, :200]
    found = processor(image, return_tensors="pt")["pixel_values"]
    wanted = normalize(center(image, shorter, side)[None].float() / 255, card["mean"], card["std"])
    assert found.shape == wanted.shape == (1, 3, side, side)
    levels = (found - wanted).abs() * torch.tensor(card["std"])[:, None, None] * 255
    assert levels.max() < 1.01
    said = state(str(tmp_path / "out")).card
    assert (said["mean"], said["std"], said["input_size"]) == (card["mean"], card["std"], side)


def test_the_model_card_has_the_figures_of_the_run_and_loads_as_it_says(tmp_path, images):
    pytest.importorskip("transformers")
    card = {"metrics": {"knn_top1": 0.4567891}, "images_seen": 1234567, "licence": "CC BY-NC"}
    to_huggingface.export(build("regnety_200mf"), card, tmp_path, images)
    text = (tmp_path / "README.md").read_text()
    for words in ("library_name: transformers", "| knn_top1 | 0.4568 |", "1,234,567 images seen", "CC BY-NC"):
        assert words in text, words
    lines = text.partition("```python\n")[2].partition("```")[0].replace('"this folder"', repr(str(tmp_path)))
    names = {"image": sample.draw(3, 7)}
    exec(compile(lines, "README.md", "exec"), names)
    assert names["features"].shape == (1, 368)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stem_stride": 1}, ("stem_stride=1", "to=safetensors")),
        ({}, ("group widths 8, 8, 8, 16", "to=onnx")),
        ({"group_widths": (8, 8, 8, 8), "se_ratio": 0.5}, ("se_ratio=0.5", "to=torch_export")),
    ],
)
def test_what_transformers_cannot_hold_is_refused_with_the_way_out(tmp_path, images, changes, words):
    with pytest.raises(RequestError, match=naming("transformers", *words)):
        to_huggingface.export(small(**changes), {}, tmp_path / "out", images)
    assert os.listdir(tmp_path) == []


def test_a_gray_network_is_held_with_one_channel(tmp_path):
    transformers = pytest.importorskip("transformers")
    backbone = build("regnety_200mf", in_channels=1)
    to_huggingface.export(backbone, {}, tmp_path, drawn(0, 2)[:, :1])
    assert transformers.AutoModel.from_pretrained(tmp_path).config.num_channels == 1


def test_without_transformers_the_extra_is_named_and_nothing_is_written(tmp_path, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RequestError, match=naming("pip install 'seer-pretrain[huggingface]'")):
        to_huggingface.export(build("regnety_200mf"), {}, tmp_path / "out", images)
    assert os.listdir(tmp_path) == []


def test_a_tensor_that_transformers_would_draw_anew_is_no_export(tmp_path, images, monkeypatch):
    """It loads what it finds and mentions the rest."""
    pytest.importorskip("transformers")
    written = checked_folder.write_safetensors

    def without_one(state, path):
        written({key: value for key, value in state.items() if "stages.3.layers.0.shortcut" not in key}, path)

    monkeypatch.setattr(checked_folder, "write_safetensors", without_one)
    with pytest.raises(ValueError, match=naming("missing_keys", "shortcut.convolution.weight")):
        to_huggingface.export(build("regnety_200mf"), {}, tmp_path, images)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow  # 20 s, of which 15 for ONNX
def test_nothing_asks_the_network(tmp_path, capfd, monkeypatch):
    for name in ("timm", "transformers", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    asked = []

    def refuse(*given, **more):
        asked.append(given)
        raise OSError("the network is cut off")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    folder = write_bundle(tmp_path / "bundle", build("regnety_200mf"), card={"input_size": 64})
    ended = seer(capfd, "export", f"weights={folder}", "to=all", f"output={tmp_path / 'out'}", "pictures=1")
    assert ended.status == 0, ended.result
    assert not asked and all("parity" in row for row in ended.result["targets"].values())
