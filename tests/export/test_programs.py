"""Programs are read back by the library they are for, alone, and their features compared with the network's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from seer.core.errors import BadDataError, RequestError
from seer.data import synthetic as sample
from seer.data.augment import normalize
from seer.evals.features import center
from seer.export import program_file, to_onnx, to_torch_export
from seer.export.program import Program
from seer.models.bundle import write_bundle
from seer.models.zoo import build
from tests.export.test_export import small
from tests.messages import naming, says
from tests.program import seer

ROOT = Path(__file__).resolve().parents[2]
CARD = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "input_size": 64, "metrics": {"knn_top1": 0.4}}
FRESH = """
import sys, torch
loaded = torch.export.load(sys.argv[1]).module()
images = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    found = [torch.cat([loaded(part)["features"] for part in images.split(batch)]) for batch in (1, 3, 8)]
assert "seer" not in sys.modules
torch.save(found, sys.argv[3])
"""


def levels(count: int, side: int = 64) -> torch.Tensor:
    """Built-in images, uint8 [count, 3, side, side]."""
    return torch.stack([center(sample.draw(i % len(sample.SHAPE_CLASSES), i), side, side) for i in range(count)])


def features(backbone, pixels) -> torch.Tensor:
    with torch.no_grad():
        return backbone.eval()(normalize(pixels.float() / 255, CARD["mean"], CARD["std"]))


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.fixture(scope="module")
def pt2(tmp_path_factory):
    """(the backbone, its result as a `.pt2` that takes uint8)."""
    backbone = small()
    folder = tmp_path_factory.mktemp("pt2")
    return backbone, to_torch_export.export(backbone, CARD, folder, levels(2), "uint8")


@pytest.mark.slow
def test_the_pt2_takes_any_batch_in_a_process_with_torch_alone(tmp_path, pt2):
    backbone, result = pt2
    pixels = levels(16)
    torch.save(pixels, tmp_path / "images.pt")
    command = [sys.executable, "-c", FRESH, result["file"], tmp_path / "images.pt", tmp_path / "features.pt"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    wanted = features(backbone, pixels)
    for found in torch.load(tmp_path / "features.pt", weights_only=True):
        assert apart(found, wanted) <= 1e-6
    assert apart(wanted[:1].expand_as(wanted), wanted) > 0.05, "features of different images would agree anyhow"


@pytest.mark.slow
def test_the_description_beside_it_says_how_to_feed_it(pt2):
    backbone, result = pt2
    described = json.loads(Path(result["described"]).read_text())
    assert described == program_file.read(result["file"])
    assert described["input"] == {
        "name": "images",
        "dtype": "uint8",
        "shape": ["batch", 3, 64, 64],
        "values": "0 to 255",
        "colors": "RGB",
    }
    assert described["preprocessing"]["mean"] == CARD["mean"] and described["preprocessing"]["inside"]
    assert described["preprocessing"]["resize"]["shorter_side"] == 73  # 64 * 256 / 224
    row = {"name": "features", "shape": ["batch", 64], "dtype": "float32", "parity": result["parity"]}
    assert described["outputs"] == [row] and described["labels"] is None and described["precision"] == "fp32"
    assert described["cost"]["parameters"] == sum(p.numel() for p in backbone.parameters())
    assert described["provenance"]["metrics"] == {"knn_top1": 0.4}
    assert described["parity"].keys() == {"1", "3", "8"}
    assert json.dumps(result)


@pytest.mark.slow
def test_no_path_of_this_machine_is_in_the_file(pt2):
    """torch keeps lines of the source that made each operation, with their place."""
    content = Path(pt2[1]["file"]).read_bytes()
    assert not any(part in content for part in (str(ROOT).encode(), b"/program.py", b"stack_trace"))


@pytest.mark.parametrize("given", ["uint8", "float"])
def test_normalization_inside_is_before_the_border_is_padded(given):
    """Folded into the first convolution, zeros at the border would be black, not the mean color."""
    backbone, pixels = small().eval(), levels(3)
    program = Program(backbone, CARD, given)
    with torch.no_grad():
        found = program(pixels if given == "uint8" else pixels.float() / 255)["features"]
    assert apart(found, features(backbone, pixels)) <= 1e-6

    stem, mean, std = backbone.stem.conv, torch.tensor(CARD["mean"]), torch.tensor(CARD["std"])
    weight = stem.weight.detach() / std[:, None, None]
    bias = -(weight * mean[:, None, None]).sum((1, 2, 3))
    folded = F.conv2d(pixels.float() / 255, weight, bias, stride=2, padding=1)
    with torch.no_grad():
        right = stem(normalize(pixels.float() / 255, CARD["mean"], CARD["std"]))
    assert apart(folded[..., 1:, 1:], right[..., 1:, 1:]) < 1e-5 and apart(folded, right) > 0.1


def damaged(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "cut":
        del content[-1000:]
    elif how == "altered":
        content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "altered"])
def test_a_damaged_file_is_refused_before_torch_sees_it(tmp_path, pt2, monkeypatch, how):
    file = Path(pt2[1]["file"])
    for one in (file, program_file.beside(file)):
        (tmp_path / one.name).write_bytes(one.read_bytes())
    copied = tmp_path / file.name
    assert to_torch_export.load(copied)(levels(1))["features"].shape == (1, 64)
    damaged(copied, how)
    monkeypatch.setattr(torch.export, "load", lambda file: pytest.fail("torch has seen it"))
    with pytest.raises(BadDataError, match=naming(copied, "bytes", "again")):
        to_torch_export.load(copied)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", ("JSON",)), ('{"format": "other"}', ("seer-program",)), ('{"format": "seer-program", "version": 9}', (9,))],
)
def test_a_description_that_is_none_of_ours_is_refused(tmp_path, text, words):
    (tmp_path / "model.pt2").write_bytes(b"0")
    (tmp_path / "model.pt2.json").write_text(text)
    with pytest.raises(RequestError, match=naming("model.pt2.json", *words)):
        program_file.read(tmp_path / "model.pt2")
    with pytest.raises(FileNotFoundError):
        program_file.read(tmp_path / "other.pt2")


@pytest.mark.slow
def test_a_program_that_fails_its_parity_leaves_the_older_files(tmp_path, monkeypatch):
    for name in ("model.pt2", "model.pt2.json"):
        (tmp_path / name).write_bytes(b"older")
    monkeypatch.setattr(Program, "normalized", lambda self, images: images.float() / 255)  # forgets mean and std
    with pytest.raises(ValueError, match=naming("features", "differ")):
        to_torch_export.export(small(), CARD, tmp_path, levels(2), "uint8")
    assert sorted(os.listdir(tmp_path)) == ["model.pt2", "model.pt2.json"]
    assert {(tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == {b"older"}


@pytest.mark.slow  # 10 s: torch takes that long to translate
def test_the_onnx_file_takes_any_batch_of_uint8_in_onnxruntime(tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    backbone, pixels = small(), levels(16)
    result = to_onnx.export(backbone, CARD, tmp_path / "m.onnx", pixels[:2], "uint8")
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.json"]
    wanted = features(backbone, pixels)
    session = runtime.InferenceSession(result["file"], providers=["CPUExecutionProvider"])
    for batch in (1, 3, 8):
        parts = [session.run(["features"], {"images": part.numpy()})[0] for part in pixels.split(batch)]
        assert apart(torch.cat([torch.from_numpy(part) for part in parts]), wanted) <= 3e-5
    model = onnx.load(result["file"])
    onnx.checker.check_model(model)
    assert not [node.op_type for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert str(ROOT).encode() not in Path(result["file"]).read_bytes()
    assert json.dumps(result)
    damaged(tmp_path / "m.onnx", "altered")
    with pytest.raises(BadDataError, match=naming("m.onnx", "sha256")):
        to_onnx.session(result["file"])


def test_an_onnx_file_of_more_than_two_gigabytes_is_refused_before_anything_is_translated(tmp_path):
    with pytest.raises(RequestError, match=naming("to=onnx", "5.1 GB", "to=torch_export")):
        to_onnx.export(build("regnety_256gf", device="meta"), CARD, tmp_path, levels(1))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("missing", to_onnx.MODULES)
def test_without_onnx_one_line_says_what_to_install(tmp_path, monkeypatch, missing):
    for name in to_onnx.MODULES:
        monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
    with pytest.raises(RequestError, match=naming("to=onnx", missing, "pip install 'seer-pretrain[onnx]'")) as caught:
        to_onnx.export(small(), CARD, tmp_path, levels(1))
    assert caught.value.exit_status == 78 and os.listdir(tmp_path) == []


def test_an_output_of_another_kind_is_refused(tmp_path):
    for target in (to_torch_export, to_onnx):
        with pytest.raises(RequestError, match=naming("m.pth")):
            target.export(small(), CARD, tmp_path / "m.pth", levels(1))


def test_weights_have_no_preprocessing_inside(tmp_path, capfd):
    folder = write_bundle(tmp_path / "bundle", small(), card=CARD)
    words = (f"weights={folder}", f"output={tmp_path / 'out'}", "preprocessing=inside")
    ended = seer(capfd, "export", *words, "to=safetensors")
    assert ended.status == 78 and says(ended.result["error"], "preprocessing=inside", "to=torch_export", "to=onnx")


@pytest.mark.slow
def test_what_is_not_installed_is_told_and_does_not_fail_the_others(tmp_path, capfd, monkeypatch):
    for name in ("timm", "transformers", "onnx", "executorch.exir"):
        monkeypatch.setitem(sys.modules, name, None)
    folder = write_bundle(tmp_path / "bundle", build("regnety_200mf"), card={"input_size": 64})
    ended = seer(capfd, "export", f"weights={folder}", "to=all", f"output={tmp_path / 'out'}", "pictures=1")
    assert ended.status == 0, ended.result
    rows = ended.result["targets"]
    assert {name for name, row in rows.items() if "not_installed" in row} == {
        "timm",
        "huggingface",
        "onnx",
        "executorch",
    }
    assert says(rows["huggingface"]["not_installed"], "seer-pretrain[huggingface]") and says(ended.words, "not written")
    assert sorted(os.listdir(tmp_path / "out")) == ["safetensors", "torch_export", "torchvision"]
