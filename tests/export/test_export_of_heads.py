"""`seer export` of a bundle with heads: which outputs a program has, what is refused, and what a run that goes on gives."""

import json
import sys
from pathlib import Path

import pytest
import torch

from seer.cli import export as cli_export
from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.engine.checkpoint_files import read_part
from seer.export import to_executorch
from seer.models.bundle import read_heads, write_bundle
from seer.run.exported_heads import heads_with, trained_on
from seer.run.weights import state
from tests.cli.test_adapt import FEW
from tests.export.test_export import small
from tests.export.test_program_heads import CARDS, OUTPUTS, with_heads
from tests.export.test_programs import CARD
from tests.messages import says
from tests.program import seer, start, wait


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    backbone = small().eval()
    return write_bundle(tmp_path_factory.mktemp("bundle"), backbone, card=CARD, heads=with_heads(backbone))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "outputs"),
    [((), OUTPUTS), (("outputs=[far,features]",), ["far", "features"]), (("heads=where",), ["where"])],
)
def test_heads_name_the_outputs_of_a_program(bundle, tmp_path, capfd, words, outputs):
    asked = (f"weights={bundle}", "to=torch_export", f"output={tmp_path}", "preprocessing=inside", "pictures=2", *words)
    ended = seer(capfd, "export", *asked)
    assert ended.status == 0, ended.result
    assert ended.result["outputs"] == outputs and ended.result["parity"] <= 1e-6
    described = json.loads((tmp_path / "model.pt2.json").read_text())
    assert [row["name"] for row in described["outputs"]] == outputs and described["input"]["dtype"] == "uint8"
    assert (described["labels"] or {}).keys() == {
        name for name in CARDS if name != "far" and (not words or name in words[0])
    }


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("to=torch_export", "outputs=[kin]"), ("outputs=kin", "kind", "features")),
        (("to=safetensors", "heads=[kind]"), ("to=safetensors", "to=torch_export")),
        (("to=onnx", "int8=true"), ("to=onnx", "to=executorch")),
        (("to=executorch", "int8=true"), ("int8=true", "calibration=")),
        (("to=executorch", "int8=true", "calibration={few}", "calibration_images=8"), ("calibration_images", "32")),
        (
            ("to=executorch", "int8=true", "calibration={few}", "outputs=[kind]"),
            ("int8=true", "20 images", "32"),
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(bundle, tmp_path, capfd, monkeypatch, words, named):
    for name in to_executorch.MODULES:
        monkeypatch.setitem(sys.modules, name, sys)  # installed, as far as is looked
    few = tmp_path / "few"
    write_shards(sample.samples(20, seed=0), few, total=20, per_shard=20)
    asked = [word.format(few=few) for word in words]
    ended = seer(capfd, "export", f"weights={bundle}", f"output={tmp_path / 'out'}", "pictures=1", *asked)
    assert ended.status == 78 and says(ended.result["error"], *named), ended.result
    assert not list((tmp_path / "out").rglob("*.p*"))


def test_images_that_calibrate_are_spread_over_all_classes(tmp_path):
    """Folders lie class by class, so the first ones would all be of one."""
    write_shards(sample.samples(60, seed=0), tmp_path, total=60, per_shard=20)
    settings = {"calibration": str(tmp_path), "calibration_images": 40}
    found = cli_export._calibration(settings, small(), CARD)
    every = cli_export._pixels(str(tmp_path), 60, small(), CARD)
    assert found.shape == (40, 3, 64, 64)
    at = [next(i for i in range(60) if torch.equal(every[i], one)) for one in found]
    assert at == [i * 60 // 40 for i in range(40)]
    said = {**CARD, "recipe": json.dumps({"data.source": str(tmp_path)})}  # of a run: what it was trained on
    assert torch.equal(cli_export._calibration(settings | {"calibration": None}, small(), said), found)


@pytest.mark.parametrize(
    "recipe", [None, "swav", "[1]", '{"data.source": "/nowhere"}', '{"data.source": null}', '{"data.source": 3}']
)
def test_images_that_are_not_here_are_none(recipe):
    assert trained_on({"recipe": recipe}) is None


@pytest.mark.slow
def test_a_checkpoint_gives_the_heads_of_its_own_step(tmp_path, capfd):
    data, run = tmp_path / "data", tmp_path / "run"
    write_shards(sample.samples(32, seed=0), data, total=32, per_shard=32, card={"classes": list(sample.SHAPE_CLASSES)})
    backbone = write_bundle(tmp_path / "backbone", small().eval(), card=CARD)
    words = (
        "heads=classify",
        f"weights={backbone}",
        f"data.train={data}",
        f"output={run}",
    )
    ended = wait(start("adapt", *words, *FEW))
    assert ended.status == 0, ended.words
    step = run / "checkpoints" / "step-00000004"
    then, now = heads_with(str(step), state(str(step))), read_heads(run / "bundle")
    held = read_part(step, "task/classify.")[0]
    assert list(then) == list(now) == ["classify"] and then["classify"].card == now["classify"].card
    built = then["classify"].build().state_dict()
    assert all(torch.equal(built[name], held[name]) for name in held)
    assert not torch.equal(built["weight"], now["classify"].build().state_dict()["weight"])
    ended = seer(capfd, "export", f"weights={step}", "to=torch_export", f"output={tmp_path / 'out'}", "pictures=1")
    assert ended.status == 0 and ended.result["outputs"] == ["classify"], ended.result
    described = json.loads((tmp_path / "out" / "model.pt2.json").read_text())
    assert described["labels"] == {"classify": sorted(sample.SHAPE_CLASSES)}
