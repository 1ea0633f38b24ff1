"""A backbone and its heads become one program: one pass, named outputs, only the stages that are read; read back by torch,
onnxruntime and ExecuTorch, each compared with the network itself."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from seer.core.errors import BadDataError, RequestError
from seer.data.augment import normalize
from seer.export import program_file, to_executorch, to_onnx, to_torch_export
from seer.export.program import Program, traced
from seer.export.unshare import CONVOLUTIONS, unshared
from seer.models.bundle import plain, read_bundle, read_heads, write_bundle
from seer.models.head_files import HeadCard, hash_of_tensors, stored
from seer.models.multi_head import MultiHead
from seer.models.resnet import ResNet
from tests.export.test_export import small
from tests.export.test_programs import CARD, apart, damaged, levels
from tests.messages import naming

CARDS = {  # of `small()`: 16, 24, 40, 64 channels. Names are in no order of the alphabet
    "kind": HeadCard("classify", (), (64,), 3, ("round", "long", "flat")),
    "any": HeadCard("tags", ("stage3",), (40,), 2, ("red", "blue"), (0.5, 0.25)),
    "far": HeadCard("regress", ("stage2",), (24,), 2),
    "where": HeadCard("map", ("stage2",), (24,), 2, ("ground", "thing"), None, 8),
    "boxes": HeadCard("detect", ("stage2", "stage3", "stage4"), (24, 40, 64), 2, ("cell", "dust"), None, 8),
}
OUTPUTS = ["kind", "any", "far", "where", "boxes_scores", "boxes_edges"]
IN_INT8 = OUTPUTS[:4]


def with_heads(backbone, cards=CARDS, seed: int = 1) -> dict:
    """Heads of random weights, as a bundle holds them; biases and statistics are drawn, too, so that none is zero."""
    torch.manual_seed(seed)
    made = {}
    for name, card in cards.items():
        head = card.build()
        for module in head.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
            elif isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.weight, std=0.3)  # and not 0.01, which answers alike to all images
        made[name] = head.state_dict()
    own = hash_of_tensors({k: plain(v) for k, v in backbone.state_dict().items()})
    return {
        name: stored(cards[name], {k: plain(v) for k, v in one.items()}, backbone=own) for name, one in made.items()
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    backbone = small().eval()
    return write_bundle(tmp_path_factory.mktemp("bundle"), backbone, card=CARD, heads=with_heads(backbone))


def wanted(bundle: Path, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `MultiHead`, which training and evaluation use, says."""
    model = MultiHead(read_bundle(bundle)[0], {name: head.build() for name, head in read_heads(bundle).items()}).eval()
    with torch.no_grad():
        said = model(normalize(pixels.float() / 255, CARD["mean"], CARD["std"]))
    boxes = said.pop("boxes")
    return {**said, "boxes_scores": boxes.scores, "boxes_edges": boxes.edges}


def exported(target, bundle: Path, output: Path, count: int, **more) -> dict:
    return target.export(read_bundle(bundle)[0], CARD, output, levels(count), "uint8", heads=read_heads(bundle), **more)


@pytest.mark.slow
def test_every_kind_of_head_in_one_pt2(tmp_path, bundle):
    result = exported(to_torch_export, bundle, tmp_path, 3)
    assert result["outputs"] == OUTPUTS and result["parity"] <= result["tolerance"] == 1e-6
    loaded, pixels = torch.export.load(result["file"]).module(), levels(64)
    truth = wanted(bundle, pixels)
    for batch in (1, 8):
        parts = [loaded(part) for part in pixels.split(batch)]
        assert list(parts[0]) == OUTPUTS
        for name in OUTPUTS:
            found = torch.cat([part[name] for part in parts])
            assert found.shape == truth[name].shape and apart(found, truth[name]) <= 1e-6
    assert truth["where"].shape == (64, 2, 64, 64)
    for name in OUTPUTS:  # otherwise a program that forgets its input would agree
        assert apart(truth[name][:1].expand_as(truth[name]), truth[name]) > 0.01, name


@pytest.mark.slow
def test_the_description_says_what_outputs_mean(tmp_path, bundle):
    described = program_file.read(exported(to_torch_export, bundle, tmp_path, 2)["file"])
    rows = {row["name"]: row for row in described["outputs"]}
    assert list(rows) == OUTPUTS
    assert {name: (row["kind"], row["head"], row["shape"][1:]) for name, row in rows.items()} == {
        "kind": ("classify", "kind", [3]),
        "any": ("tags", "any", [2]),
        "far": ("regress", "far", [2]),
        "where": ("map", "where", [2, 64, 64]),
        "boxes_scores": ("detect", "boxes", [64 + 16 + 4, 2]),
        "boxes_edges": ("detect", "boxes", [64 + 16 + 4, 4]),
    }
    assert all(row["parity"] <= 1e-6 and row["values"] for row in rows.values())
    assert described["labels"] == {
        "kind": ["round", "long", "flat"], "any": ["red", "blue"], "where": ["ground", "thing"], "boxes": ["cell", "dust"],
    }  # fmt: skip
    assert described["thresholds"] == {"any": [0.5, 0.25]} and described["boxes"]["overlap"] == 0.6
    assert described["preprocessing"]["resize"]["shorter_side"] == 73 and described["precision"] == "fp32"
    every = sum(p.numel() for p in read_bundle(bundle)[0].parameters())
    every += sum(p.numel() for head in read_heads(bundle).values() for p in head.build().parameters())
    assert described["cost"]["parameters"] == every


def test_outputs_are_those_that_are_asked_for_in_their_order(bundle):
    backbone, heads = read_bundle(bundle)[0], read_heads(bundle)
    program = Program(backbone, CARD, "uint8", heads, ["far", "features", "kind"])
    with torch.no_grad():
        found = program(levels(2))
        features = backbone(normalize(levels(2).float() / 255, CARD["mean"], CARD["std"]))
    assert list(found) == ["far", "features", "kind"] and apart(found["features"], features) <= 1e-6
    truth = wanted(bundle, levels(2))
    assert all(apart(found[name], truth[name]) <= 1e-6 for name in ("far", "kind"))
    assert list(Program(backbone, CARD, heads=heads)(torch.zeros(1, 3, 64, 64))) == OUTPUTS
    assert list(Program(backbone, CARD)(torch.zeros(1, 3, 64, 64))) == ["features"]


@pytest.mark.parametrize(
    ("names", "words"),
    [(["kin"], ("kin", "where", "features")), ([], ("at least one",)), (["far", "far"], ("once",))],
)
def test_a_name_that_is_no_head_is_refused(bundle, names, words):
    with pytest.raises(RequestError, match=naming(*words)):
        Program(read_bundle(bundle)[0], CARD, heads=read_heads(bundle), names=names)


def test_two_outputs_of_one_name_are_refused():
    backbone = small()
    cards = {"a": CARDS["boxes"], "a_scores": CARDS["kind"]}
    with pytest.raises(RequestError, match=naming("a_scores")):
        Program(backbone, CARD, heads=with_heads(backbone, cards))


def test_a_head_of_another_backbone_is_refused(bundle):
    other = small()
    with torch.no_grad():
        other.stem.conv.weight.add_(1e-3)
    with pytest.raises(RequestError, match=naming("kind", "hash")):
        Program(other, CARD, heads=read_heads(bundle))


@pytest.mark.slow
def test_a_head_at_stage2_has_no_weight_of_later_stages(tmp_path, bundle):
    """By the names of tensors in the file, and by its size."""
    whole = exported(to_torch_export, bundle, tmp_path / "whole", 2, names=["kind"])
    part = exported(to_torch_export, bundle, tmp_path / "part", 2, names=["far", "where"])
    names = {key: list(torch.export.load(one["file"]).state_dict) for key, one in (("whole", whole), ("part", part))}
    assert any("stage3" in name for name in names["whole"]) and any("stage4" in name for name in names["whole"])
    assert any("stage2" in name for name in names["part"])
    assert not [name for name in names["part"] if "stage3" in name or "stage4" in name]
    loaded = torch.export.load(part["file"])
    left = sum(tensor.nbytes for tensor in loaded.state_dict.values())
    every = sum(tensor.nbytes for tensor in torch.export.load(whole["file"]).state_dict.values())
    sizes = [os.path.getsize(one["file"]) for one in (part, whole)]
    assert left < 0.5 * every and sizes[1] - sizes[0] > 0.9 * (every - left)
    truth = wanted(bundle, levels(4))
    found = loaded.module()(levels(4))
    assert all(apart(found[name], truth[name]) <= 1e-6 for name in ("far", "where"))


def test_stages_of_a_resnet_are_left_out_as_well():
    torch.manual_seed(0)
    backbone = ResNet((1, 1, 1, 1)).eval()
    cards = {"far": HeadCard("regress", ("layer2",), (512,), 2)}
    program = Program(backbone, CARD, heads=with_heads(backbone, cards))
    kept = list(program.state_dict())
    assert any("layer2" in name for name in kept) and not [n for n in kept if "layer3" in n or "layer4" in n]
    assert "layer4.0.conv1.weight" in backbone.state_dict()  # the one that was given is whole
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(program(x)["far"], program.truth(x)["far"])


def weights_of_convolutions(module) -> list[str]:
    convolutions = [node for node in module.graph.nodes if node.target in CONVOLUTIONS]
    return [str(node.args[1].target) for node in convolutions]


def test_convolutions_that_stages_share_get_weights_of_their_own(bundle):
    """ExecuTorch 1.5.1 folds batch norms into a weight in place: scores of all stages but the last were 5 % off."""
    program = Program(read_bundle(bundle)[0], CARD, "uint8", read_heads(bundle), ["boxes"])
    module = traced(program, batch=1).module()
    before = weights_of_convolutions(module)
    assert len(before) - len(set(before)) == 2 * (
        2 * 4 + 2
    )  # more uses of each: two towers of four, scores and distances
    with torch.no_grad():
        said = module(levels(1))
        after = weights_of_convolutions(unshared(module))
        assert len(after) == len(set(after)) == len(before)
        assert all(torch.equal(one, said[name]) for name, one in module(levels(1)).items())


@pytest.mark.slow  # 20 s: torch takes that long to translate
def test_every_kind_of_head_in_one_onnx_file(tmp_path, bundle):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = exported(to_onnx, bundle, tmp_path, 3)
    assert result["outputs"] == OUTPUTS and result["parity"] <= result["tolerance"] == 3e-5
    session = runtime.InferenceSession(result["file"], providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == OUTPUTS
    pixels = levels(64)
    truth = wanted(bundle, pixels)
    for batch in (1, 3, 8):
        parts = [session.run(OUTPUTS, {"images": part.numpy()}) for part in pixels.split(batch)]
        for at, name in enumerate(OUTPUTS):
            assert apart(torch.cat([torch.from_numpy(part[at]) for part in parts]), truth[name]) <= 3e-5, (batch, name)
    part = exported(to_onnx, bundle, tmp_path / "part.onnx", 2, names=["far"])
    import onnx

    shapes = [list(one.dims) for one in onnx.load(part["file"]).graph.initializer]
    assert [24, 24, 1, 1] in shapes and [40, 40, 1, 1] not in shapes and [64, 64, 1, 1] not in shapes


@pytest.fixture(scope="module")
def pte(tmp_path_factory, bundle):
    """Results of the program in float32 and in int8; about a minute."""
    for module in to_executorch.MODULES:
        pytest.importorskip(module, reason="the extra [device] is not installed: pip install 'seer-pretrain[device]'")
    folder = tmp_path_factory.mktemp("pte")
    return {
        "fp32": exported(to_executorch, bundle, folder / "fp32", 3),
        "int8": exported(to_executorch, bundle, folder / "int8", 16, int8=True, calibration=levels(32), names=IN_INT8),
    }


@pytest.mark.slow
def test_every_kind_of_head_in_one_pte(bundle, pte):
    from executorch.runtime import Runtime

    result = pte["fp32"]
    assert result["outputs"] == OUTPUTS and result["parity"] <= result["tolerance"] == 3e-5
    method = Runtime.get().load_program(Path(result["file"])).load_method("forward")
    pixels = levels(64)
    truth, load = wanted(bundle, pixels), to_executorch.load(result["file"])
    rows = [[value.clone() for value in method.execute([one])] for one in pixels.split(1)]
    for at, name in enumerate(OUTPUTS):
        assert apart(torch.cat([row[at] for row in rows]), truth[name]) <= 3e-5, name
    assert apart(load(pixels[:2])["where"], truth["where"][:2]) <= 3e-5
    described = program_file.read(result["file"])
    assert described["batch"] == {"least": 1, "most": 1} and described["precision"] == "fp32"
    assert described["target"] == "executorch" and sum(described["arena_bytes"]) > 0
    assert {"torch", "executorch", "torchao"} <= described["versions"].keys()


@pytest.mark.slow
def test_int8_is_compared_by_what_it_decides(bundle, pte):
    result, pixels = pte["int8"], levels(64)
    described = program_file.read(result["file"])
    assert described["parity"] is None and described["tolerance"] is None and described["precision"] == "int8"
    assert described["calibration"] == {"images": 32}
    assert [set(row["agreement"]) for row in described["outputs"]] == [
        {"cosine", "argmax"}, {"cosine"}, {"cosine"}, {"cosine", "argmax"},
    ]  # fmt: skip
    truth, found = wanted(bundle, pixels), to_executorch.load(result["file"])(pixels)
    for name in IN_INT8:
        cosine = torch.cosine_similarity(found[name].flatten(1), truth[name].flatten(1)).mean().item()
        assert cosine > 0.9 and apart(found[name], truth[name]) > 1e-4, name
    agreed = (found["where"].argmax(1) == truth["where"].argmax(1)).double().mean().item()
    assert agreed > 0.8 and abs(agreed - described["outputs"][3]["agreement"]["argmax"]) < 0.1
    sizes = [os.path.getsize(pte[kind]["file"]) for kind in ("int8", "fp32")]
    assert sizes[0] < 0.7 * sizes[1]
    root = str(Path(__file__).resolve().parents[2]).encode()
    assert not any(root in Path(one["file"]).read_bytes() for one in pte.values())


def test_a_detector_in_int8_is_refused_before_anything_is_made(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(to_executorch, "needs", lambda *_, **__: None)
    with pytest.raises(RequestError, match=naming("int8", "boxes", "detect", "outputs=[kind,any,far,where]")):
        exported(to_executorch, bundle, tmp_path, 3, int8=True, calibration=levels(32))
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "altered"])
def test_a_damaged_pte_is_refused_before_the_runtime_sees_it(tmp_path, pte, monkeypatch, how):
    file = Path(pte["fp32"]["file"])
    for one in (file, program_file.beside(file)):
        (tmp_path / one.name).write_bytes(one.read_bytes())
    damaged(tmp_path / file.name, how)
    monkeypatch.setattr(to_executorch, "_method", lambda *_: pytest.fail("the runtime has seen it"))
    with pytest.raises(BadDataError, match=naming(file.name, "bytes", "again")):
        to_executorch.load(tmp_path / file.name)


@pytest.mark.parametrize("missing", to_executorch.MODULES)
def test_without_executorch_one_line_says_what_to_install(tmp_path, monkeypatch, missing):
    for name in to_executorch.MODULES:
        for part in (name.split(".")[0], name):
            monkeypatch.setitem(sys.modules, part, sys)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RequestError, match=naming("to=executorch", missing, "seer-pretrain[device]")) as caught:
        to_executorch.export(small(), CARD, tmp_path, levels(1))
    assert caught.value.exit_status == 78 and os.listdir(tmp_path) == [] and json.dumps(str(caught.value))
