"""`seer pretrain weights=…`: training goes on from foreign weights, with a new head and a backbone that may rest at first."""

import hashlib
import struct

import pytest
import torch
from torch import nn

from seer.core.errors import RequestError
from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.models.bundle import read_bundle, write_bundle
from seer.models.key_maps import VISSL
from seer.models.zoo import build
from seer.run.weights import digest, start_from
from tests.messages import says
from tests.program import SMALL, seer

COLORS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture
def vissl(tmp_path):
    """A consolidated checkpoint of VISSL with a 200MF whose weights nobody else has."""
    model = build("regnety_200mf")
    model.init_weights(torch.Generator().manual_seed(77))
    trunk = {f"_feature_blocks.{VISSL.from_ours(key)}": value for key, value in model.state_dict().items()}
    nest = {"base_model": {"model": {"trunk": trunk, "heads": {"0.prototypes0.weight": torch.zeros(16, 16)}}}}
    torch.save({"type": "consolidated", "classy_state_dict": nest}, tmp_path / "w.torch")
    return tmp_path / "w.torch", model


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [3, 2])
def test_a_run_starts_from_foreign_weights_and_leaves_them_alone_while_they_are_frozen(tmp_path, capfd, vissl, frozen):
    path, model = vissl
    write_shards(sample.samples(48, seed=1), tmp_path / "pictures", total=48, per_shard=48)
    rules = f"groups=[{{pattern: '^backbone\\.', frozen_steps: {frozen}}}]"
    words = (f"data.source={tmp_path / 'pictures'}", f"output={tmp_path / 'run'}", "steps=3", f"weights={path}", rules)
    ended = seer(capfd, "pretrain", *SMALL, *words)
    assert ended.status == 0, ended.words
    trained, described = read_bundle(tmp_path / "run" / "bundle")
    kept = {
        name: torch.equal(value, dict(model.named_parameters())[name]) for name, value in trained.named_parameters()
    }
    assert all(kept.values()) == (frozen == 3)
    assert kept["stem.conv.weight"] == (frozen == 3)
    assert says(described["provenance"]["licence"], "w.torch", "VISSL")
    assert says(ended.words, f"backbone starts from {path}")


@pytest.mark.slow
def test_weights_of_another_shape_are_refused_before_a_run_folder_is_made(tmp_path, capfd):
    write_shards(sample.samples(16, seed=1), tmp_path / "pictures", total=16, per_shard=16)
    write_bundle(tmp_path / "b", build("regnety_400mf"), card={})
    words = (
        f"data.source={tmp_path / 'pictures'}",
        f"output={tmp_path / 'run'}",
        "steps=1",
        f"weights={tmp_path / 'b'}",
    )
    ended = seer(capfd, "pretrain", *SMALL, *words)
    assert ended.status == 78
    assert says(ended.result["error"], "regnety_400mf", "regnety_200mf", "model=")
    assert not (tmp_path / "run").exists()


def test_every_tensor_is_copied_and_the_stride_may_differ(vissl):
    path, model = vissl
    backbone = build("regnety_200mf", stem_stride=1)
    assert "VISSL" in start_from(str(path), backbone, **COLORS)
    assert backbone.stem_stride == 1
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in backbone.state_dict().items())


def test_nothing_is_copied_when_the_shape_differs(vissl):
    backbone = build("regnety_400mf")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(RequestError):
        start_from(str(vissl[0]), backbone, **COLORS)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_another_normalization_is_told(tmp_path, caplog):
    write_bundle(tmp_path, build("regnety_200mf"), card={"mean": [0.5] * 3, "licence": "MIT"})
    with caplog.at_level("WARNING", logger="seer"):
        assert start_from(str(tmp_path), build("regnety_200mf"), **COLORS) == "MIT"
    assert says(caplog.text, "mean", "[0.5, 0.5, 0.5]")


@pytest.mark.slow
def test_a_run_whose_knn_falls_below_where_it_began_is_told_so(tmp_path, capfd):
    images = tmp_path / "first" / "pictures"
    small = (
        *(
            "recipe=sample",
            "batch=64",
            "every.log=10",
            "log.tensorboard=false",
        ),
        *("data.threads=1", "parallel.device=cpu"),
    )
    learned = ("data.drawn=600", "data.drawn_test=200", "steps=200", "schedule.peak=0.004")
    first = seer(capfd, "pretrain", *small, *learned, f"output={tmp_path / 'first'}")
    # 0.335 where this was written, 0.155 untrained: far enough above whatever a spoilt backbone gives
    assert first.status == 0 and first.result["knn_curve"][-1] > 0.22, first.result
    again = ("steps=8", "every.evaluate=4", "schedule.peak=3", "schedule.warmup=0", f"weights={tmp_path / 'first'}")
    where = (f"data.source={images / 'train'}", f"eval.train={images / 'train'}", f"eval.test={images / 'test'}")
    words = (
        "pretrain",
        *small,
        *again,
        *where,
        f"output={tmp_path / 'second'}",
        "task.kmeans=256",
        "every.checkpoint=4",
    )
    worse = seer(capfd, *words)
    assert worse.status == 0, worse.words
    assert worse.result["knn_curve"][0] == first.result["knn_curve"][-1]  # it began where the other ended
    assert "kNN below its start" in worse.result["alarms"]
    assert f"kNN fell to {worse.result['knn_curve'][1]:.3f} from {worse.result['knn_curve'][0]:.3f}" in worse.words


def test_the_hash_of_weights_is_of_their_names_kinds_and_bytes_and_can_be_made_by_hand():
    module = nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0]]))
        module.bias.copy_(torch.tensor([0.5]))
    by_hand = hashlib.sha256(
        b"bias float32 [1]\n" + struct.pack("<f", 0.5) + b"weight float32 [1, 2]\n" + struct.pack("<2f", 1.0, -2.0)
    )
    assert digest(module) == by_hand.hexdigest()
    with torch.no_grad():
        module.bias.add_(1)
    assert digest(module) != by_hand.hexdigest()
