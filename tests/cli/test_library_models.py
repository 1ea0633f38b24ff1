"""`model=timm:NAME` and `model=torchvision:NAME`: SwAV and heads on them, resumed to the bit, handed over, and what they cannot do."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from seer.cli import config
from seer.core.errors import RequestError
from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.models.bundle import read_bundle
from seer.tasks.heads import HeadsTask
from seer.tasks.swav import SwAVTask
from tests.program import SMALL, seer, start, wait

NET = "model=timm:test_efficientnet"  # its batch norms are of a class of timm's
FEW = ("batch=8", "steps=4", "every.log=1", "every.evaluate=0", "every.checkpoint=2", "log.tensorboard=false", "data.threads=1",
    "precision=fp32", "parallel.device=cpu", "augment.size=32")  # fmt: skip
SWAV = (
    *(word for word in SMALL if not word.startswith(("model=", "batch="))),
    NET,
    "batch=8",
    "steps=3",
    "every.checkpoint=2",
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_shards(
        sample.samples(24, seed=3), folder, total=24, per_shard=24, card={"classes": list(sample.SHAPE_CLASSES)}
    )
    return folder


def same(a: Path, b: Path) -> bool:
    one, two = (load_file(run / "bundle" / "backbone.safetensors") for run in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["adapt", "pretrain"])
def test_a_run_that_is_stopped_goes_on_to_the_same_bits_and_its_bundle_answers_alike(
    verb, labelled, tmp_path, monkeypatch, capfd
):
    task = HeadsTask if verb == "adapt" else SwAVTask
    own = (NET, *FEW, "weights=null", "surgery=none", "task.heads_first=1") if verb == "adapt" else SWAV
    words = (verb, *own, f"data.source={labelled}")
    whole = seer(capfd, *words, f"output={tmp_path / 'whole'}")
    assert whole.status == 0, whole.words
    assert "export" in whole.words  # where this network cannot go is said when training begins
    after = task.after_step

    def stop(self, step: int) -> None:
        after(self, step)
        if step == 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(task, "after_step", stop)
        assert seer(capfd, *words, f"output={tmp_path / 'run'}").status == 75
    assert seer(capfd, *words, f"output={tmp_path / 'run'}").status == 0
    assert same(tmp_path / "whole", tmp_path / "run")
    backbone, described = read_bundle(tmp_path / "whole" / "bundle")
    assert described["architecture"]["name"] == "timm:test_efficientnet"
    again, _ = read_bundle(tmp_path / "run" / "bundle")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(backbone(x), again(x)) and backbone(x).std() > 0
    if verb == "pretrain":  # its weights say the network; a head on a stage of it leaves it to the bit
        more = ("adapt", f"weights={tmp_path / 'whole'}", *FEW, "heads=classify", "heads.classify.stages=[stage2]")
        ended = seer(capfd, *more, f"data.train={labelled}", f"output={tmp_path / 'more'}")
        assert ended.status == 0, ended.words
        assert same(tmp_path / "whole", tmp_path / "more")
        out = seer(capfd, "export", f"weights={tmp_path / 'whole'}", "to=timm", f"output={tmp_path / 'timm'}")
        assert out.status == 78 and "safetensors" in out.result["error"]
        out = seer(
            capfd, "export", f"weights={tmp_path / 'whole'}", "to=safetensors", f"output={tmp_path / 'own.safetensors'}"
        )
        assert out.status == 0, out.result


@pytest.mark.slow
def test_two_ranks_keep_statistics_of_their_own_and_go_on(labelled, tmp_path):
    words = ("adapt", NET, *FEW, "weights=null", "surgery=none", f"data.train={labelled}", f"output={tmp_path / 'run'}")
    refused = wait(start(*words, ranks=2))
    assert refused.status != 0 and "parallel.batch_norm_group=1" in refused.words and not (tmp_path / "run").exists()
    ended = wait(start(*words, "parallel.batch_norm_group=1", ranks=2))
    assert ended.status == 0, ended.words
    refused = wait(start(*words[:-1], "parallel.mode=fsdp", f"output={tmp_path / 'two'}", ranks=2))
    assert refused.status != 0 and "parallel.mode=ddp" in refused.words and not (tmp_path / "two").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["model=timm:resnet17"], "resnet17"),
        (["model=torchvision:vit_b_32"], "vit_b_32"),
        (["parallel.remat=block"], "parallel.remat=none"),
        (["layer_decay=0.5"], "layer_decay=1"),
        (["model.stem_stride=1"], "stem_stride=1"),
        (["model=torchvision:maxvit_t"], "32 x 32"),
    ],
)
def test_what_such_a_network_cannot_do_is_a_wrong_request_and_leaves_no_folder(words, named, labelled, tmp_path, capfd):
    base = ("adapt", NET, *FEW, "weights=null", "surgery=none", f"data.train={labelled}")
    ended = seer(capfd, *base, *words, f"output={tmp_path / 'run'}")
    assert ended.status == 78 and named in ended.result["error"], ended.result
    assert not (tmp_path / "run").exists()


def test_only_a_name_is_taken_and_the_node_is_the_zoo_s(tmp_path):
    found = config.read("adapt", ["model=timm:resnet18", "data.train=x"])["model"]
    assert found == {"_target_": "seer.models.zoo.build", "name": "timm:resnet18", "stem_stride": 2}
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: [{override /model: 'torchvision:resnet18'}]\nsteps: 3\n")
    assert config.read("pretrain", [f"recipe={file}", "data.source=x"])["model"]["name"] == "torchvision:resnet18"
    for word in ("model=timm:hf-hub:a/b", "model=timm:", "model=keras:resnet", "model=timm:../x"):
        with pytest.raises(RequestError):
            config.read("adapt", [word, "data.train=x"])
