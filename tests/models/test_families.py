"""A family is one file and one row: one that is registered here, from outside, is built, bundled, recomputed, counted and sharded."""

import json
import subprocess
from dataclasses import replace

import pytest
import torch
from torch import nn

from seer.core.errors import RequestError
from seer.export import model_card, to_huggingface, to_safetensors, to_timm, to_torchvision
from seer.models import families, zoo
from seer.models.bundle import read_bundle, write_bundle
from seer.models.heads.swav import SwAVHead
from seer.models.multicrop import MultiCropModel
from seer.models.pretrained import load_backbone
from seer.parallel.blocks import blocks
from seer.parallel.memory import recomputed_within, step_memory
from seer.parallel.remat import remat
from tests.export.test_export import drawn
from tests.messages import naming, says
from tests.models.plain_family import ROW, Plain
from tests.program import ROOT, SMALL, seer

SHAPES = [(8, 3, 64, 64), (8, 3, 48, 48)]
BLOCKS = ["part0.block0", "part0.block1", "part1.block0", "part1.block1"]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    families.register(ROW)


def trained() -> Plain:
    torch.manual_seed(0)
    model = zoo.build("plain_tiny")
    with torch.no_grad():
        model.train()(drawn(0, 4))
    return model.eval()


def multi_crop() -> MultiCropModel:
    torch.manual_seed(0)
    return MultiCropModel(zoo.build("plain_tiny"), SwAVHead(16, (16,), 8, 12))


def test_it_is_built_by_name_and_by_architecture_and_told_apart():
    model = zoo.build("plain_tiny", device="meta")
    assert type(model) is Plain and all(p.is_meta for p in model.parameters())
    again = zoo.of(model.architecture)
    assert again.architecture == model.architecture and zoo.name_of(model.architecture) == "plain_tiny"
    assert zoo.name_of({**model.architecture, "depth": 3}) is None
    assert zoo.names()[-1] == "plain_tiny" and zoo.features_of("plain_tiny") == 16
    assert families.of_model(model) is ROW and list(ROW.blocks(model)) == BLOCKS
    with pytest.raises(ValueError, match=naming("stem", "plain_tiny")):
        zoo.build("plain_tiny", stem_stride=1)


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match=naming("'plain'", "plain, plain_tiny")):
        families.register(ROW)
    with pytest.raises(ValueError, match="resnet_50"):
        families.register(replace(ROW, name="other", zoo={"resnet_50": {}}))


def test_an_architecture_without_a_family_is_a_regnets_and_an_unknown_one_is_refused():
    plain = zoo.build("regnety_200mf", device="meta")
    assert "family" not in plain.architecture and families.of(plain.architecture).name == "regnet"
    assert families.of_model(zoo.build("resnet_50", device="meta")).name == "resnet"
    named = zoo.of({"family": "regnet", **plain.architecture}, device="meta")
    assert named.architecture == plain.architecture
    for wrong in ("vit", ["regnet"], None):
        with pytest.raises(ValueError, match=naming("regnet", "resnet", "timm", "torchvision", "plain")) as caught:
            families.of({"family": wrong})
        assert repr(wrong) in str(caught.value)
    with pytest.raises(ValueError, match=naming("Linear", "architecture")):
        families.of_model(nn.Linear(1, 1))


@pytest.mark.parametrize("where", [".", "backbone.safetensors"])
def test_it_is_bundled_and_read_back_bit_for_bit(tmp_path, where):
    model = trained()
    write_bundle(tmp_path, model, card={})
    loaded = load_backbone(tmp_path / where)
    described = json.loads((tmp_path / "bundle.json").read_text())
    assert described["architecture"] == {"name": "plain_tiny", **model.architecture}
    assert type(loaded) is Plain and loaded.architecture == model.architecture
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    text = model_card.model_card(described)
    assert "plain_tiny: channels [8, 16], 2 blocks a stage" in text and "self-supervised, plain]" in text


def test_a_bundle_that_lacks_an_entry_of_the_family_names_it(tmp_path):
    write_bundle(tmp_path, trained(), card={})
    described = json.loads((tmp_path / "bundle.json").read_text())
    del described["architecture"]["depth"]
    (tmp_path / "bundle.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=naming("architecture.depth")):
        read_bundle(tmp_path)


def step(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    loss = model.train()([torch.randn(*shape, generator=generator) for shape in SHAPES])[1].square().sum()
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters()} | dict(model.named_buffers())


@pytest.mark.parametrize("policy", ["block", "stage", ["part0.block1"]], ids=str)
def test_it_is_recomputed_to_the_last_bit(policy):
    one, other = multi_crop(), remat(multi_crop(), policy)
    runs = dict.fromkeys(BLOCKS, 0)
    for name, block in blocks(other).items():
        block.conv.register_forward_hook(lambda *_, n=name: runs.update({n: runs[n] + 1}))
    wanted, found = step(one), step(other)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    again = {"block": BLOCKS, "stage": BLOCKS[:1], "['part0.block1']": BLOCKS[1:2]}[str(policy)]
    assert {name for name, count in runs.items() if count == 2 * len(SHAPES)} == set(again)
    assert {name for name, count in runs.items() if count == len(SHAPES)} == set(BLOCKS) - set(again)


def test_its_memory_is_counted_and_a_budget_chooses_among_its_blocks():
    everything = step_memory(multi_crop(), SHAPES)
    assert step_memory(multi_crop(), SHAPES, policy="block").kept < everything.kept
    assert recomputed_within(multi_crop(), everything.peak - 1, SHAPES) == ["part0.block0"]
    # what its convolution makes of both sizes, [8, 8, s, s]; what it gives stays, as the input of the next
    convolved = 4 * 8 * 8 * (16 * 16 + 12 * 12)
    without = step_memory(multi_crop(), SHAPES, policy=["part0.block0"])
    assert everything.kept - without.kept == pytest.approx(convolved, rel=0.01)


@pytest.mark.parametrize(
    ("exporter", "target"), [(to_torchvision, "torchvision"), (to_timm, "timm"), (to_huggingface, "huggingface")]
)
def test_where_it_does_not_go_is_answered_with_where_it_goes(tmp_path, exporter, target):
    with pytest.raises(RequestError, match=naming(f"to={target}", "'plain'", "safetensors")) as caught:
        exporter.export(trained(), {}, tmp_path / "out", drawn(0, 2))
    assert caught.value.exit_status == 78 and not (tmp_path / "out").exists()
    assert to_safetensors.export(trained(), {}, tmp_path / "bundle", drawn(0, 2))["parity"] == 0.0


@pytest.mark.slow
def test_the_whole_program_takes_it_by_name(tmp_path, capfd):
    words = (*SMALL, "model.name=plain_tiny", "data.drawn=40", "data.drawn_test=0", "steps=2")
    planned = seer(capfd, "plan", *(w for w in words if not w.startswith("data.")), "gpus=2", "parallel.mode=fsdp")
    assert planned.status == 0, planned.words
    assert all(name in planned.words for name in (*BLOCKS, "stem", "head"))
    run = tmp_path / "run"
    ended = seer(capfd, "pretrain", *words, f"output={run}", "parallel.remat=block")
    assert ended.status == 0, ended.words
    loaded, described = read_bundle(run / "bundle")
    assert type(loaded) is Plain and described["architecture"]["name"] == "plain_tiny"
    refused = [(target, 78) for target in ("torchvision", "timm", "huggingface")]
    for target, status in (*refused, ("safetensors", 0), ("torch_export", 0)):
        ended = seer(capfd, "export", f"weights={run}", f"to={target}", f"output={tmp_path / target}", "pictures=2")
        assert ended.status == status and says(ended.words, f"to={target}", "'plain'", "safetensors") == (status == 78)


def test_no_other_file_asks_what_a_network_is():
    found = subprocess.run(
        ["grep", "-rnE", r"isinstance\([^)]*\b(RegNet|ResNet)\b", "seer", "hubconf.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1, found.stdout
